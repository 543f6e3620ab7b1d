"""The task's data and scores. What lm-eval adds to the arguments of ``dataset`` (its metadata) is not needed."""

from __future__ import annotations

from typing import Any

from datasets import DatasetDict

from sketch_eval.text import datasets

process_results = datasets.rolling_scores


def dataset(**_: Any) -> DatasetDict:
    """The excerpts, as split "test"."""
    return datasets.stdlib_text()
