"""The compiled loop of the scan: the step of DESIGN §2 over the tokens of one sequence, for one CPU core.

Plain loops over float32 arrays, written so that LLVM makes vectors of the innermost ones. Numba keeps the machine code
on disk, so only the first process of a machine compiles. It notices changes of the file of `scan` only, so what `scan`
calls stays in this file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

COUNT_MIN, COUNT_SKETCH, RACE, EXACT, LAST, FIXED, KNORM = range(7)
"""Importance sources, as `Importance.compiled` numbers them."""

_F = np.float32
_MAX_GAIN = _F(2.0**40)
_LEAST = _F(-np.inf)
"""The importance of a pair whose estimate is not a number."""


def _compiled(*signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Numba's njit, on disk where there is a place for it: a read-only install with no home compiles each time."""

    def compile_it(function: Callable[..., Any]) -> Any:
        # Not "reassoc": with it, code just compiled and the same code from the disk sum in other orders, and the first
        # process of a machine scores otherwise than all that follow.
        options = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz", "arcp"}}
        try:
            return numba.njit(*signature, cache=True, **options)(function)
        except RuntimeError as error:
            if "no locator" not in str(error):
                raise
            return numba.njit(*signature, **options)(function)

    return compile_it


@_compiled()
def _exp(x, exponent, power):  # type: ignore[no-untyped-def]
    """x ← e^x for float32 x ≤ 0, to 2 ulp: the loop is a vector one, which calls of the C library's are not.

    `exponent` is int32 scratch of the same length and `power` a float32 view of it.
    """
    for i in range(x.shape[0]):
        a = max(x[i], _F(-87.0))
        n = np.floor(a * _F(1.44269504) + _F(0.5))
        r = a - n * _F(0.693359375) - n * _F(-2.12194440e-4)
        p = _F(1.9875691500e-4)
        p = p * r + _F(1.3981999507e-3)
        p = p * r + _F(8.3334519073e-3)
        p = p * r + _F(4.1665795894e-2)
        p = p * r + _F(1.6666665459e-1)
        p = p * r + _F(5.0000001201e-1)
        x[i] = p * r * r + r + _F(1.0)
        exponent[i] = (np.int32(n) + np.int32(127)) << np.int32(23)
    for i in range(x.shape[0]):
        x[i] *= power[i]


@_compiled()
def _products(vector, columns, out, m):  # type: ignore[no-untyped-def]
    """out[s] ← Σ_d vector[d]·columns[d, s] for the first m columns."""
    for s in range(m):
        out[s] = _F(0.0)
    for d in range(0, vector.shape[0] - 3, 4):
        a, b, c, e = vector[d], vector[d + 1], vector[d + 2], vector[d + 3]
        for s in range(m):
            out[s] += a * columns[d, s] + b * columns[d + 1, s] + c * columns[d + 2, s] + e * columns[d + 3, s]
    for d in range(vector.shape[0] - vector.shape[0] % 4, vector.shape[0]):
        a = vector[d]
        for s in range(m):
            out[s] += a * columns[d, s]


@_compiled()
def _mixture(weights, rows, out, m):  # type: ignore[no-untyped-def]
    """out[d] ← Σ_s weights[s]·rows[s, d] over the first m rows."""
    for d in range(out.shape[0]):
        out[d] = _F(0.0)
    for s in range(0, m - 3, 4):
        a, b, c, e = weights[s], weights[s + 1], weights[s + 2], weights[s + 3]
        for d in range(out.shape[0]):
            out[d] += a * rows[s, d] + b * rows[s + 1, d] + c * rows[s + 2, d] + e * rows[s + 3, d]
    for s in range(m - m % 4, m):
        a = weights[s]
        for d in range(out.shape[0]):
            out[d] += a * rows[s, d]


@_compiled()
def _read(source, table, cells, gain, row):  # type: ignore[no-untyped-def]
    """A sketch's estimate at one item's cells; `row` is scratch for a median."""
    depth = cells.shape[0]
    if source == COUNT_MIN:
        least = table[0, cells[0]]
        for r in range(1, depth):
            least = min(least, table[r, cells[r]])
        return least / gain
    if source == RACE:
        total = _F(0.0)
        for r in range(depth):
            total += table[r, cells[r]]
        return total / _F(depth) / gain
    for r in range(depth):
        value = -table[r, ~cells[r]] if cells[r] < 0 else table[r, cells[r]]
        at = r
        while at > 0 and row[at - 1] > value:
            row[at] = row[at - 1]
            at -= 1
        row[at] = value
    return (row[(depth - 1) // 2] + row[depth // 2]) / _F(2.0) / gain


@_compiled()
def _add(table, cells, weight):  # type: ignore[no-untyped-def]
    for r in range(cells.shape[0]):
        if cells[r] < 0:
            table[r, ~cells[r]] -= weight
        else:
            table[r, cells[r]] += weight


@_compiled()
def _add_conservatively(table, cells, weights, target, done, m):  # type: ignore[no-untyped-def]
    """Conservative update of a Count-Min table by the first m pairs at once, as `CountMinSketch.add` does it."""
    depth = cells.shape[1]
    for s in range(m):
        done[s] = False
    for s in range(m):
        target[s] = _F(0.0)
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


@_compiled()
def _attend(q, keys, values, logn, seen, p, exponent, power, mass, out, m):  # type: ignore[no-untyped-def]
    """out[h] ← attention of the scaled query over the seen ones of m pairs; mass ← its weights' mean over heads."""
    heads = q.shape[0]
    for s in range(m):
        mass[s] = _F(0.0)
    for h in range(heads):
        weights = p[h, :m]
        _products(q[h], keys[h], weights, m)
        top = _F(-3.0e38)
        for s in range(m):
            weights[s] = weights[s] + logn[s] if seen[s] else _F(-3.0e38)
            top = weights[s] if weights[s] > top else top
        for s in range(m):
            weights[s] -= top
        _exp(weights, exponent[:m], power[:m])
        total = _F(0.0)
        for s in range(m):
            weights[s] = weights[s] if seen[s] else _F(0.0)
            total += weights[s]
        share = _F(1.0) / total
        for s in range(m):
            weights[s] *= share
            mass[s] += weights[s]
        _mixture(weights, values[h], out[h], m)
    for s in range(m):
        mass[s] /= _F(heads)


@_compiled()
def _mark_visible(seen, rank, importance, positions, t, k, sinks, recent, m):  # type: ignore[no-untyped-def]
    """seen ← the k pairs of DESIGN §2, step 2; `rank` is int32 scratch. Returns how many are hidden."""
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


@_compiled()
def _nearest(victim, keys, norms, positions, sinks, newest_free, vector, dots, part, m):  # type: ignore[no-untyped-def]
    """The unprotected pair whose concatenated key has the largest cosine with the victim's, or -1 where none is."""
    heads, head_dim = keys.shape[0], keys.shape[1]
    for s in range(m):
        dots[s] = _F(0.0)
    for h in range(heads):
        for d in range(head_dim):
            vector[d] = keys[h, d, victim]
        _products(vector, keys[h], part, m)
        for s in range(m):
            dots[s] += part[s]
    best, found = _F(-3.0e38), -1
    for s in range(m):
        if s == victim or positions[s] < sinks or positions[s] > newest_free:
            continue
        cosine = dots[s] / max(norms[s] * norms[victim], _F(1e-12))
        if cosine > best or (cosine == best and positions[s] < positions[found]):
            best, found = cosine, s
    return found


@_compiled()
def _norm(keys, s):  # type: ignore[no-untyped-def]
    total = _F(0.0)
    for h in range(keys.shape[0]):
        for d in range(keys.shape[1]):
            total += keys[h, d, s] * keys[h, d, s]
    return np.sqrt(total)


# Given in full, the types do not depend on what strides a caller's arrays happen to have: one function, compiled once.
_f, _i, _b = numba.float32, numba.int32, numba.boolean
_SIGNATURE = numba.int64(
    _f[:, :, :], _f[:, :, :], _f[:, :, :], _b[:], _i[:, ::1], _f[::1],
    _f[:, :, ::1], _f[:, :, ::1], _i[::1], _f[::1], _i[:, ::1], _f[::1], _f[:, ::1], numba.int64,
    numba.int64, _b, _b, _b, _f, _f, *(numba.int64,) * 5,
    _f[:, :, ::1], _i[::1], _i[::1], _i[::1],
)  # fmt: skip


@_compiled(_SIGNATURE)
def scan(  # type: ignore[no-untyped-def]
    q, k, v, valid, new_cells, new_scores,
    keys, values, positions, counts, cells, scores, table, seen_before,
    source, folds, by_age, conservative, decay, scaling, sinks, recent, visible, visible_sinks, visible_recent,
    out, victims, survivors, hidden,
):  # fmt: skip
    """Append the valid tokens of one sequence to its store, one after the other, and attend from each.

    Args:
        q, k, v: float32 `[tokens, heads, head_dim]`, any strides.
        valid: bool `[tokens]`.
        new_cells: int32 `[tokens, depth]`, the tokens' cells in the table; unused without a sketch.
        new_scores: float32 `[tokens]`, the tokens' first scores; unused with a sketch.
        keys: float32 `[heads, head_dim, slots]`; values: float32 `[heads, slots, head_dim]`.
        positions: int32 `[slots]`; counts: float32 `[slots]`; cells: int32 `[slots, depth]`.
        scores: float32 `[slots]`; table: float32 `[depth, width]`.
        seen_before: tokens appended by earlier calls.
        source: one of the constants above.
        folds, by_age, conservative: bool; decay, scaling: float32.
        sinks, recent: numbers of protected tokens, for eviction, and with `visible_` for what a query sees.
        visible: pairs a query sees; 0 for all.
        out: float32 `[tokens, heads, head_dim]`; victims, survivors, hidden: int32 `[tokens]`, as in `Trace`.

    Returns:
        Tokens appended so far.
    """
    length, heads, head_dim = q.shape
    slots, depth = positions.shape[0], cells.shape[1]
    sketched = source <= RACE
    normed = folds or source == KNORM
    p = np.empty((heads, slots), np.float32)
    exponent = np.empty(slots, np.int32)
    power = exponent.view(np.float32)
    mass, logn, norms = np.empty(slots, np.float32), np.zeros(slots, np.float32), np.zeros(slots, np.float32)
    importance, part = np.empty(slots, np.float32), np.empty(slots, np.float32)
    seen, done, rank = np.ones(slots, np.bool_), np.empty(slots, np.bool_), np.empty(slots, np.int32)
    query, vector, row = (
        np.empty((heads, head_dim), np.float32),
        np.empty(head_dim, np.float32),
        np.empty(depth, np.float32),
    )
    gain = _F(1.0)  # The table holds `gain` times its weights, so that decay need not touch every cell a step.

    m, slot = 0, -1
    for s in range(slots):
        if positions[s] >= 0:
            m += 1
            logn[s] = np.log(counts[s]) if folds else _F(0.0)
            norms[s] = _norm(keys, s) if normed else _F(0.0)
        elif slot < 0:
            slot = s
    t = seen_before - 1

    for i in range(length):
        if not valid[i]:
            out[i] = _F(0.0)
            continue

        # 1. Append.
        t += 1
        for h in range(heads):
            for d in range(head_dim):
                query[h, d] = q[i, h, d] * scaling
                keys[h, d, slot] = k[i, h, d]
                values[h, slot, d] = v[i, h, d]
        positions[slot] = t
        m += 1
        if sketched:
            for r in range(depth):
                cells[slot, r] = new_cells[i, r]
        else:
            scores[slot] = new_scores[i]
        if folds:
            counts[slot] = _F(1.0)
            logn[slot] = _F(0.0)
        if normed:
            norms[slot] = _norm(keys, slot)

        # 2. Rank and attend.
        if 0 < visible < m:
            for s in range(m):
                estimate = _read(source, table, cells[s], gain, row) if sketched else scores[s]
                if by_age:
                    estimate /= _F(t - positions[s] + 1)
                importance[s] = _LEAST if np.isnan(estimate) else estimate
            hidden[i] = _mark_visible(seen, rank, importance, positions, t, visible, visible_sinks, visible_recent, m)
        _attend(query, keys, values, logn, seen, p, exponent, power, mass, out[i], m)

        # 3. Account.
        if sketched:
            gain /= decay
            if gain > _MAX_GAIN:
                for r in range(depth):
                    for c in range(table.shape[1]):
                        table[r, c] /= gain
                gain = _F(1.0)
            if conservative:
                for s in range(m):
                    part[s] = mass[s] * gain
                _add_conservatively(table, cells, part, importance, done, m)
            else:
                for s in range(m):
                    if mass[s] != _F(0.0):
                        _add(table, cells[s], mass[s] * gain)
        elif source == EXACT:
            for s in range(m):
                scores[s] = scores[s] * decay + mass[s]
        elif source == LAST:
            for s in range(m):
                scores[s] = mass[s]

        # 4. Bound.
        if m < slots:
            slot = m
            continue
        newest_free, victim, least = t - recent, -1, _F(3.0e38)
        for s in range(m):
            if positions[s] < sinks or positions[s] > newest_free:
                continue
            estimate = _read(source, table, cells[s], gain, row) if sketched else scores[s]
            if by_age:
                estimate /= _F(t - positions[s] + 1)
            if np.isnan(estimate):
                estimate = _LEAST
            if victim < 0 or estimate < least or (estimate == least and positions[s] < positions[victim]):
                least, victim = estimate, s
        victims[i] = positions[victim]
        if folds:
            into = _nearest(victim, keys, norms, positions, sinks, newest_free, vector, part, importance, m)
            if into >= 0:
                survivors[i] = positions[into]
                total = counts[into] + counts[victim]
                mine, its = counts[into] / total, counts[victim] / total
                for h in range(heads):
                    for d in range(head_dim):
                        keys[h, d, into] = keys[h, d, into] * mine + keys[h, d, victim] * its
                        values[h, into, d] = values[h, into, d] * mine + values[h, victim, d] * its
                counts[into] = total
                logn[into] = np.log(total)
                norms[into] = _norm(keys, into)
                if source == KNORM:
                    scores[into] = -norms[into]
        positions[victim] = -1
        m -= 1
        slot = victim

    if sketched and gain != _F(1.0):
        for r in range(depth):
            for c in range(table.shape[1]):
                table[r, c] /= gain
    return t + 1
