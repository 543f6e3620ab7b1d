"""The sketches of the compiled loop: reading a table and adding to it."""

from __future__ import annotations

import numpy as np

from sketch_eval.execution.compiled.jit import F, compiled, exactly
from sketch_eval.execution.compiled.sources import COUNT_MIN, COUNT_SKETCH, RACE, RACE_QUERIES

U = np.uint32
"""What a cell is made before it is an index: Numba looks at each signed one for whether it counts from the end."""


@exactly
def read(source, table, cells, gain, row):  # type: ignore[no-untyped-def]
    """The estimate of one item of a sketch other than Count-Min; `row` is scratch for a median."""
    depth = cells.shape[0]
    if source in (RACE, RACE_QUERIES):
        total = F(0.0)
        for r in range(depth):
            total += table[r, U(cells[r])]
        return total / F(depth) / gain
    for r in range(depth):
        value = -table[r, U(~cells[r])] if cells[r] < 0 else table[r, U(cells[r])]
        at = r
        while at > 0 and row[at - 1] > value:
            row[at] = row[at - 1]
            at -= 1
        row[at] = value
    return (row[(depth - 1) // 2] + row[depth // 2]) / F(2.0) / gain


@exactly
def read_all(source, table, cells, gain, row, out, m):  # type: ignore[no-untyped-def]
    """out ← the estimates of the first m items, whose cells are `[slots, depth]`; `row` is scratch of the depth."""
    if source != COUNT_MIN:
        for s in range(m):
            out[s] = read(source, table, cells[s], gain, row)
        return
    for s in range(m):
        out[s] = table[0, U(cells[s, 0])]
    for r in range(1, cells.shape[1]):
        for s in range(m):
            value = table[r, U(cells[s, r])]
            out[s] = value if value < out[s] else out[s]
    for s in range(m):
        out[s] /= gain


@compiled
def add(table, cells, weight):  # type: ignore[no-untyped-def]
    """Add a weight at one item's cells, none of which is negative."""
    for r in range(cells.shape[0]):
        table[r, U(cells[r])] += weight


@compiled
def add_all(source, table, cells, weights, m):  # type: ignore[no-untyped-def]
    """Add weights at the cells `[slots, depth]` of the first m items, in their order.

    In a Count Sketch a negative cell, `~cell`, counts with the sign turned.
    """
    for r in range(cells.shape[1]):
        for s in range(m):
            if source == COUNT_SKETCH and cells[s, r] < 0:
                table[r, U(~cells[s, r])] -= weights[s]
            else:
                table[r, U(cells[s, r])] += weights[s]


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
        least = table[0, U(cells[s, 0])]
        for r in range(1, depth):
            least = min(least, table[r, U(cells[s, r])])
        target[s] = least + together
    for s in range(m):
        for r in range(depth):
            table[r, U(cells[s, r])] = max(table[r, U(cells[s, r])], target[s])


@compiled
def divide(table, by):  # type: ignore[no-untyped-def]
    """table ← table / by."""
    for r in range(table.shape[0]):
        for c in range(table.shape[1]):
            table[r, c] /= by
