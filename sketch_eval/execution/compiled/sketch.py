"""The sketches of the compiled loop: reading a table and adding to it."""

from __future__ import annotations

from sketch_eval.execution.compiled.jit import F, compiled
from sketch_eval.execution.compiled.sources import COUNT_MIN, RACE, RACE_QUERIES


@compiled
def read(source, table, cells, gain, row):  # type: ignore[no-untyped-def]
    """A sketch's estimate at one item's cells; `row` is scratch for a median."""
    depth = cells.shape[0]
    if source == COUNT_MIN:
        least = table[0, cells[0]]
        for r in range(1, depth):
            least = min(least, table[r, cells[r]])
        return least / gain
    if source in (RACE, RACE_QUERIES):
        total = F(0.0)
        for r in range(depth):
            total += table[r, cells[r]]
        return total / F(depth) / gain
    for r in range(depth):
        value = -table[r, ~cells[r]] if cells[r] < 0 else table[r, cells[r]]
        at = r
        while at > 0 and row[at - 1] > value:
            row[at] = row[at - 1]
            at -= 1
        row[at] = value
    return (row[(depth - 1) // 2] + row[depth // 2]) / F(2.0) / gain


@compiled
def add(table, cells, weight):  # type: ignore[no-untyped-def]
    """Add a weight at one item's cells; a negative one, `~cell`, counts with the sign turned."""
    for r in range(cells.shape[0]):
        if cells[r] < 0:
            table[r, ~cells[r]] -= weight
        else:
            table[r, cells[r]] += weight


@compiled
def add_conservatively(table, cells, weights, target, done, m):  # type: ignore[no-untyped-def]
    """Conservative update of a Count-Min table by the first m pairs at once, as `CountMinSketch.add` does it."""
    depth = cells.shape[1]
    for s in range(m):
        done[s] = False
    for s in range(m):
        target[s] = F(0.0)
        if done[s]:
            continue
        together = weights[s]
        for other in range(s + 1, m):
            r = 0
            while r < depth and cells[other, r] == cells[s, r]:
                r += 1
            if r == depth:
                together += weights[other]
                done[other] = True
        least = table[0, cells[s, 0]]
        for r in range(1, depth):
            least = min(least, table[r, cells[s, r]])
        target[s] = least + together
    for s in range(m):
        for r in range(depth):
            table[r, cells[s, r]] = max(table[r, cells[s, r]], target[s])


@compiled
def divide(table, by):  # type: ignore[no-untyped-def]
    """table ← table / by."""
    for r in range(table.shape[0]):
        for c in range(table.shape[1]):
            table[r, c] /= by
