"""The task's data. lm-eval adds the model's arguments (a sketch's `depth` among them), hence the other name here."""

from __future__ import annotations

from typing import Any

from datasets import DatasetDict

from sketch_eval.text import datasets


def dataset(fact_depth: float, **_: Any) -> DatasetDict:
    """50 documents of one depth, as split "test"."""
    return datasets.recall(fact_depth)
