"""The tasks' data and scores. What lm-eval adds to the arguments (its metadata) is not needed."""

from __future__ import annotations

from typing import Any

from datasets import DatasetDict

from sketch_eval.text import datasets, stress

process_results = datasets.rolling_scores


def drift(**_: Any) -> DatasetDict:
    """Texts that change their subject all the time."""
    return stress.dataset("drift")


def repeat(**_: Any) -> DatasetDict:
    """Texts that repeat themselves."""
    return stress.dataset("repeat")
