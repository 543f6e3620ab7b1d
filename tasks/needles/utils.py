"""The tasks' data and scores."""

from __future__ import annotations

from typing import Any

from datasets import DatasetDict

from sketch_eval.text import needles
from sketch_eval.text.arguments import arguments
from sketch_eval.text.needles import known_mean, process_results

__all__ = ["dataset", "known_mean", "process_results"]


def dataset(settings: dict[str, Any], **given: Any) -> DatasetDict:
    """The documents, as split "test"."""
    return needles.dataset(**arguments(settings, given))
