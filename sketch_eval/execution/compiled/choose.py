"""The choices of the compiled loop: what a pair is worth, which pairs a query sees, and which one leaves."""

from __future__ import annotations

import numpy as np

from sketch_eval.execution.compiled.jit import F, compiled, exactly
from sketch_eval.execution.compiled.sketch import read_all
from sketch_eval.execution.compiled.sources import RACE_QUERIES

LEAST = F(-np.inf)
"""The importance of a pair whose estimate is not a number."""


@exactly
def weigh(source, table, cells, gain, row, scores, positions, t, by_age, importance, m):  # type: ignore[no-untyped-def]
    """importance ← that of the first m pairs when token t has come; `row` is scratch of the sketch's depth."""
    if source <= RACE_QUERIES:
        read_all(source, table, cells, gain, row, importance, m)
    else:
        importance[:m] = scores[:m]
    for s in range(m):
        estimate = importance[s] / F(t - positions[s] + 1) if by_age else importance[s]
        importance[s] = LEAST if np.isnan(estimate) else estimate


@compiled
def least(importance, positions, t, sinks, recent, m):  # type: ignore[no-untyped-def]
    """The slot of the unprotected pair of least importance, ties to the oldest."""
    victim, lowest = -1, F(3.0e38)
    for s in range(m):
        if positions[s] < sinks or positions[s] > t - recent:
            continue
        if victim < 0 or importance[s] < lowest or (importance[s] == lowest and positions[s] < positions[victim]):
            lowest, victim = importance[s], s
    return victim


@compiled
def mark_visible(seen, rank, importance, positions, t, k, sinks, recent, m):  # type: ignore[no-untyped-def]
    """seen ← the k pairs of docs/design.md §2, step 2; `rank` is int32 scratch. Returns how many are hidden."""
    for s in range(m):
        seen[s] = positions[s] == t
        if seen[s]:
            rank[0] = s
    taken = 1
    # Protected pairs, newest first: an insertion sort that keeps the best k.
    for s in range(m):
        if seen[s] or not (positions[s] < sinks or positions[s] > t - recent):
            continue
        at = min(taken, k)
        while at > 1 and positions[rank[at - 1]] < positions[s]:
            if at < k:
                rank[at] = rank[at - 1]
            at -= 1
        if at < k:
            rank[at] = s
            taken = min(taken + 1, k)
    newest = taken
    # The others by importance, ties to the oldest, behind them.
    for s in range(m):
        if positions[s] == t or positions[s] < sinks or positions[s] > t - recent:
            continue
        at = min(taken, k)
        while at > newest and (
            importance[rank[at - 1]] < importance[s]
            or (importance[rank[at - 1]] == importance[s] and positions[rank[at - 1]] > positions[s])
        ):
            if at < k:
                rank[at] = rank[at - 1]
            at -= 1
        if at < k:
            rank[at] = s
            taken = min(taken + 1, k)
    for i in range(taken):
        seen[rank[i]] = True
    return m - taken
