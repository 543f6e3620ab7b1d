"""The tasks' data, requests and scores."""

from __future__ import annotations

from typing import Any

from datasets import DatasetDict

from sketch_eval.text import long_text
from sketch_eval.text.arguments import arguments
from sketch_eval.text.long_text import process_results
from sketch_eval.text.spans import SpansTask

__all__ = ["SpansTask", "dataset", "process_results"]


def dataset(settings: dict[str, Any] | None = None, **given: Any) -> DatasetDict:
    """The documents, as split "test"."""
    return long_text.dataset(**arguments(settings or {}, given))
