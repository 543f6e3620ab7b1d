"""What lm-eval hands to the function that makes a task's data, sorted and checked.

It is one pile of keywords: the model's arguments, `--metadata`, and what the task's own YAML file says. A name that
comes from both sides ends lm-eval in a traceback, so a task's own settings stand under the one name `settings`.
"""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from sketch_eval.config import CacheConfig
from sketch_eval.errors import UsageError

OPTIONS = ("text_folder", "depths", "max_seq_lengths", "count")
"""What `--metadata` may say to a task."""

LENGTHS = "passkey_lengths, kv_lengths and needles_lengths take max_seq_lengths"


def arguments(settings: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """A task's settings with what was given beside them.

    Raises:
        UsageError: something given is fixed by the task, or nearly is one of the `OPTIONS`. What a model may be told
            is let through, whatever it resembles.
    """
    for name in settings.keys() & given.keys():
        raise UsageError(f"{name}={given[name]!r}: this task has {name}={settings[name]!r}; {LENGTHS}")
    if "length" in settings and given.get("max_seq_lengths") is not None:
        raise UsageError(f"max_seq_lengths: this task has length={settings['length']!r}; {LENGTHS}")
    for name, value in given.items():
        meant = difflib.get_close_matches(name, OPTIONS, n=1, cutoff=0.75)
        if meant and name not in OPTIONS and name not in _model_arguments():
            raise UsageError(f"{name}={value!r} is no option of this task (did you mean {meant[0]}?)")
    return {**given, **settings}


def _model_arguments() -> set[str]:
    from lm_eval.models.huggingface import HFLM  # imports much, and is needed for near misses alone

    return {*CacheConfig.model_fields, *inspect.signature(HFLM.__init__).parameters}


def numbers(name: str, values: Any, kind: str) -> list[Any]:
    """The list as it is; UsageError where it is none, or is empty."""
    if not isinstance(values, list | tuple) or not values:
        raise UsageError(f"{name}={values!r}: expected a list of {kind}, with at least one")
    return list(values)


def document_count(count: Any) -> int:
    """How many documents are asked for; UsageError where it is no whole number, or less than one."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise UsageError(f"count={count!r}: expected how many documents, a whole number of 1 or more")
    return count
