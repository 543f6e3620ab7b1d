"""One-line errors for the people who type the commands."""

from __future__ import annotations

import sys
import traceback
from types import TracebackType


class UsageError(ValueError):
    """Bad input: the message names the argument, the value given and what would do.

    After `report_in_one_line`, where nothing catches it, the interpreter prints the message alone, without a traceback,
    and exits with status 1.
    """


def report_in_one_line() -> None:
    """Have this process, a command line, report a UsageError by its message alone."""
    sys.excepthook = _one_line_excepthook


def _one_line_excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, UsageError):
        print(f"sketch_eval: error: {error}", file=sys.stderr)
    elif isinstance(error, OSError) and _passed_through("datasets.load", trace):
        print(
            f"sketch_eval: error: tasks: {first_line(error)}: a task's documents cannot be had; check the network, or "
            "name tasks that need none, such as stdlib_text or recall",
            file=sys.stderr,
        )
    else:
        _previous_excepthook(kind, error, trace)


def _passed_through(module: str, trace: TracebackType | None) -> bool:
    return any(frame.f_globals.get("__name__") == module for frame, _ in traceback.walk_tb(trace))


_previous_excepthook = sys.excepthook


def first_line(error: Exception) -> str:
    """The first line of an error's message; its kind where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def last_line(error: Exception) -> str:
    """The last line of an error's message, where long stories come to the point; its kind where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


def on_one_line(error: Exception) -> str:
    """The whole message of an error on one line, cut after 300 characters."""
    return " ".join(str(error).split())[:300]


def sentence(error: Exception) -> str:
    """The same as a sentence, which another one can follow."""
    return first_line(error).rstrip(" .:") + "."
