"""The front of loss against bytes, by paired intervals: which cells none of as few bytes surely beats."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from sketch_eval.statistics import Score, difference, steps

NOBODY = "none"
"""`Row.undercut_by` of a cell that was compared and that no other undercuts."""


class Entry(NamedTuple):
    """A cell on one task and metric.

    Attributes:
        row: the row's name.
        computation: what it is the same computation by as another cell, which it is then not compared with.
        total_bytes: of one sequence.
        score: by document.
    """

    row: str
    computation: Hashable
    total_bytes: int
    score: Score


def undercut(entries: Sequence[Entry], higher_is_better: bool) -> dict[str, dict[str, Any]]:
    """By row, the columns `undercut_by`, `undercut`, `undercut_low` and `undercut_high` of `Row`.

    A cell is undercut by one of no more bytes that is better with a 95% interval, paired by document, that excludes 0.
    Of several it is the one that is better by the most standard errors.

    Args:
        entries: the cells of one task and metric.
        higher_is_better: whether more of the metric is better.
    """
    # What a perplexity sums are log-likelihoods, of which more is better.
    sign = 1 if higher_is_better or any(entry.score.kind != "mean" for entry in entries) else -1
    found: dict[str, dict[str, Any]] = {}
    for mine in entries:
        cheaper = [
            (sign * steps(other.score, mine.score), other)
            for other in entries
            if other.total_bytes <= mine.total_bytes and other.computation != mine.computation
        ]
        found[mine.row] = {"undercut_by": NOBODY}
        for ahead, other in sorted(cheaper, key=lambda pair: -pair[0]):
            off, low, high = difference(mine.score, other.score)
            if ahead <= 0:
                break
            if (high < 0) if higher_is_better else (low > 0):
                ends = {"undercut": off, "undercut_low": low, "undercut_high": high}
                found[mine.row] = {"undercut_by": other.row, **ends}
                break
    return found
