"""Which cell is undercut: another cell has no more bytes, and is surely better on the same documents."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from scipy import stats

from sketch_eval.statistics import LEVEL, Score, difference, steps

NOBODY = "none"
"""`Row.undercut_by` of a cell that was compared with others and that none of them undercuts."""


class Entry(NamedTuple):
    """A cell on one task and metric.

    Attributes:
        row: the row's name.
        computation: equal for two cells that are one computation; these are not compared.
        total_bytes: of one sequence.
        score: by document; the full cache's where the cell bound nothing.
        asked: whether the row says what undercuts it; the others are there to be compared with.
    """

    row: str
    computation: Hashable
    total_bytes: int
    score: Score
    asked: bool = True


def undercut(entries: Sequence[Entry], higher_is_better: bool) -> dict[str, dict[str, Any]]:
    """By row, the columns `undercut_by`, `undercut`, `undercut_low` and `undercut_high` of `Row`.

    A cell is undercut by one of no more bytes that is better by more standard errors, paired by document, than chance
    gives one of the cells that it is compared with, at 95%: Student's t with Bonferroni's correction (Dunn, 1961,
    "Multiple Comparisons Among Means"). The interval that is shown has to exclude 0 as well. Of several such cells it
    is the best one of those that nothing undercuts.

    Args:
        entries: the cells of one task and metric, over the same documents.
        higher_is_better: whether more of the metric is better.
    """
    # What a perplexity sums are log-likelihoods, of which more is better.
    sign = 1 if higher_is_better or any(entry.score.kind != "mean" for entry in entries) else -1
    sure: dict[str, list[tuple[Entry, tuple[float, float, float]]]] = {}
    for mine in entries:
        cheaper = [
            other
            for other in entries
            if other.total_bytes <= mine.total_bytes and other.computation != mine.computation
        ]
        beyond = _critical(len(cheaper), mine.score.documents)
        ahead = [other for other in cheaper if sign * steps(other.score, mine.score) > beyond]
        ends = [(other, difference(mine.score, other.score)) for other in ahead]
        sure[mine.row] = [(other, found) for other, found in ends if not found[1] * found[2] <= 0]
    found: dict[str, dict[str, Any]] = {}
    for mine in entries:
        if not mine.asked:
            continue
        rivals = [pair for pair in sure[mine.row] if not sure[pair[0].row]] or sure[mine.row]
        if not rivals:
            found[mine.row] = {"undercut_by": NOBODY}
            continue
        best, (off, low, high) = max(rivals, key=lambda pair: sign * _mean(pair[0].score))
        found[mine.row] = {"undercut_by": best.row, "undercut": off, "undercut_low": low, "undercut_high": high}
    return found


def _mean(score: Score) -> float:
    """What a metric sums, by what it divides by: more is better of log-likelihoods, whatever the metric."""
    totals, weights = score.counted()
    return float(totals.sum() / weights.sum())


def _critical(compared: int, documents: int) -> float:
    """Standard errors that chance exceeds in any of so many comparisons with a probability of 1 - `LEVEL` at most."""
    if not compared or documents < 2:
        return math.inf
    return float(stats.t.ppf(1 - (1 - LEVEL) / 2 / compared, documents - 1))
