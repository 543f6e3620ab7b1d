"""The tasks' data, requests and scores."""

from __future__ import annotations

from typing import Any

from datasets import DatasetDict

from sketch_eval.text import induction
from sketch_eval.text.arguments import arguments
from sketch_eval.text.induction import process_results
from sketch_eval.text.spans import SpansTask

__all__ = ["SpansTask", "dataset", "process_results"]


def dataset(settings: dict[str, Any], **given: Any) -> DatasetDict:
    """The documents, as split "test"."""
    return induction.dataset(**arguments(settings, given))
