"""The scan on one CPU core: the step of DESIGN §2 over the tokens of one sequence, in a compiled loop."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np

from sketch_eval.execution.compiled.attend import attend
from sketch_eval.execution.compiled.choose import least, mark_visible, worth
from sketch_eval.execution.compiled.fold import merge, nearest, turn
from sketch_eval.execution.compiled.jit import F, kept, version
from sketch_eval.execution.compiled.maths import norm, to_12_digits
from sketch_eval.execution.compiled.quantise import quantise
from sketch_eval.execution.compiled.sketch import add, add_conservatively, divide
from sketch_eval.execution.compiled.sources import DROP, EXACT, FOLD_TURNED, FOLD_VALUES, FORESEEN, KNORM, LAST, RACE
from sketch_eval.policies.fold_turned import STEPS

MAX_GAIN = F(2.0**40)
_f, _i, _b = numba.float32, numba.int32, numba.boolean


class Tokens(NamedTuple):
    """Tokens of one sequence that arrive, beside their queries, keys and values.

    Attributes:
        valid: bool `[tokens]`.
        cells: int32 `[units, tokens, depth]`, the tokens' cells in the tables; unused without a sketch.
        scores: float32 `[units, tokens]`, the tokens' first scores; unused with a sketch.
        ahead: float32 `[units, tokens, text]`, with FORESEEN the score of every position after each token.
    """

    valid: Any = _b[::1]
    cells: Any = _i[:, :, ::1]
    scores: Any = _f[:, ::1]
    ahead: Any = _f[:, :, ::1]


class Store(NamedTuple):
    """The store of one sequence: a unit for each row of it, with `heads` key/value heads.

    Attributes:
        keys: float32 `[units, heads, head_dim, slots]`; values: float32 `[units, heads, slots, head_dim]`.
        positions: int32 `[units, slots]`; counts: float32 `[units, slots]`.
        cells: int32 `[units, slots, depth]`; scores: float32 `[units, slots]`; table: float32 `[units, depth, width]`.
        key_grids, value_grids: float32 `[units, heads, slots, groups, 2]`, scales and zeros that folding gives, where
            pairs are quantised; no groups where they are not.
    """

    keys: Any = _f[:, :, :, ::1]
    values: Any = _f[:, :, :, ::1]
    positions: Any = _i[:, ::1]
    counts: Any = _f[:, ::1]
    cells: Any = _i[:, :, ::1]
    scores: Any = _f[:, ::1]
    table: Any = _f[:, :, ::1]
    key_grids: Any = _f[:, :, :, :, ::1]
    value_grids: Any = _f[:, :, :, :, ::1]


class Rules(NamedTuple):
    """The numbers of a cell.

    Attributes:
        sinks, recent: numbers of protected tokens, for eviction, and with `visible_` for what a query sees.
        visible: pairs a query sees; 0 for all.
        speeds: float32 `[pairs]`, how rotary positions turn the keys; empty where they do not.
        levels, group: the largest code of a quantised number, and how many of them share a grid; for levels,
            `quantise.HALF` where they are kept in float16, and 0 where they are kept as they are.
    """

    scaling: Any = _f
    decay: Any = _f
    by_age: Any = _b
    conservative: Any = _b
    sinks: Any = numba.int64
    recent: Any = numba.int64
    visible: Any = numba.int64
    visible_sinks: Any = numba.int64
    visible_recent: Any = numba.int64
    speeds: Any = _f[::1]
    levels: Any = numba.int64
    group: Any = numba.int64


class Decided(NamedTuple):
    """What is written: float32 `[tokens, query heads, head_dim]`, and int32 `[units, tokens]` as in `Trace`."""

    output: Any = _f[:, :, ::1]
    victims: Any = _i[:, ::1]
    survivors: Any = _i[:, ::1]
    hidden: Any = _i[:, ::1]


def _type(record: Any) -> numba.types.NamedTuple:
    return numba.types.NamedTuple(tuple(record()), record)


# Given in full, the types do not depend on what strides a caller's arrays happen to have: one function, compiled once.
# Queries, keys and values come with any strides, which Numba does not allow in a record.
_VECTORS = (_f[:, :, :],) * 3
SIGNATURE = numba.int64(*_VECTORS, _type(Tokens), _type(Store), _type(Rules), numba.int64, _type(Decided))


@lru_cache
def scan_for(source: int, fate: int) -> Any:
    """The loop for a source of importance and a fate, both of `sources`: they are constants of its machine code."""
    sketched, folds, turns, code = source <= RACE, fate != DROP, fate == FOLD_TURNED, version()
    normed = folds or source == KNORM
    steps = STEPS if turns else 0  # Closed over, so that a change of it in its own file is seen too.

    @kept(SIGNATURE)
    def scan(q, k, v, tokens, store, rules, seen_before, decided):  # type: ignore[no-untyped-def]
        """Append the valid tokens to the store, one after the other, and attend from each.

        Args:
            q: float32 `[tokens, query heads, head_dim]`; k, v: `[tokens, kv_heads, head_dim]`; any strides.
            tokens, store, rules: see there; the store is changed in place.
            seen_before: number of tokens appended by earlier calls.
            decided: what is written.

        Returns:
            Number of tokens appended so far.
        """
        code  # noqa: B018 - closed over, so that a change of another file is seen.
        length, head_dim = q.shape[0], q.shape[2]
        units, heads, slots, depth = store.keys.shape[0], store.keys.shape[1], store.keys.shape[3], store.cells.shape[2]
        queries, sinks, recent = q.shape[1] // units, rules.sinks, rules.recent
        p = np.empty((queries, slots), np.float32)
        exponent = np.empty(slots, np.int32)
        power = exponent.view(np.float32)
        mass, logn, norms = np.empty(slots, np.float32), np.zeros(slots, np.float32), np.zeros(slots, np.float32)
        importance, part = np.empty(slots, np.float32), np.empty(slots, np.float32)
        seen, done, rank = np.ones(slots, np.bool_), np.empty(slots, np.bool_), np.empty(slots, np.int32)
        query, vector = np.empty((queries, head_dim), np.float32), np.empty(head_dim, np.float32)
        row = np.empty(depth, np.float32)
        level = np.empty((heads, head_dim, slots) if turns else (1, 1, 1), np.float32)  # keys turned to position 0
        t = seen_before - 1

        for unit in range(units):
            keys, values, positions, counts = (
                store.keys[unit],
                store.values[unit],
                store.positions[unit],
                store.counts[unit],
            )
            cells, scores, table = store.cells[unit], store.scores[unit], store.table[unit]
            key_grids, value_grids = store.key_grids[unit], store.value_grids[unit]
            first, last = unit * queries, (unit + 1) * queries
            gain = F(1.0)  # The table holds `gain` times its weights, so that decay need not touch every cell a step.
            seen[:] = True
            m, slot = 0, -1
            for s in range(slots):
                if positions[s] >= 0:
                    m += 1
                    logn[s] = np.log(counts[s]) if folds else F(0.0)
                    norms[s] = norm(keys, s) if normed else F(0.0)
                    if turns:
                        turn(keys, level, s, -positions[s], rules.speeds)
                elif slot < 0:
                    slot = s
            t = seen_before - 1

            for i in range(length):
                if not tokens.valid[i]:
                    decided.output[i, first:last] = F(0.0)
                    continue

                # 1. Append.
                t += 1
                for h in range(queries):
                    for d in range(head_dim):
                        query[h, d] = q[i, unit * queries + h, d] * rules.scaling
                for h in range(heads):
                    for d in range(head_dim):
                        keys[h, d, slot] = k[i, unit * heads + h, d]
                        values[h, slot, d] = v[i, unit * heads + h, d]
                positions[slot] = t
                m += 1
                if sketched:
                    for r in range(depth):
                        cells[slot, r] = tokens.cells[unit, i, r]
                else:
                    scores[slot] = tokens.scores[unit, i]
                if folds:
                    key_grids[:, slot] = F(np.nan)
                    value_grids[:, slot] = F(np.nan)
                    counts[slot] = F(1.0)
                    logn[slot] = F(0.0)
                if normed:
                    norms[slot] = norm(keys, slot)
                if turns:
                    turn(keys, level, slot, -t, rules.speeds)

                # 2. Rank and attend.
                if 0 < rules.visible < m:
                    for s in range(m):
                        importance[s] = worth(source, s, table, cells, gain, row, scores, positions, t, rules.by_age)
                    decided.hidden[unit, i] = mark_visible(
                        seen,
                        rank,
                        importance,
                        positions,
                        t,
                        rules.visible,
                        rules.visible_sinks,
                        rules.visible_recent,
                        m,
                    )
                out = decided.output[i, first:last]  # Contiguous for Numba too, which a slice of the whole is not.
                attend(query, keys, values, logn, seen, p, exponent, power, mass, out, m)

                # 3. Account.
                if sketched:
                    gain /= rules.decay
                    if gain > MAX_GAIN:
                        divide(table, gain)
                        gain = F(1.0)
                    if rules.conservative:
                        for s in range(m):
                            part[s] = mass[s] * gain
                        add_conservatively(table, cells, part, importance, done, m)
                    else:
                        for s in range(m):
                            if mass[s] != F(0.0):
                                add(table, cells[s], mass[s] * gain)
                elif source == EXACT:
                    for s in range(m):
                        scores[s] = scores[s] * rules.decay + mass[s]
                elif source == FORESEEN:
                    for s in range(m):
                        scores[s] = tokens.ahead[unit, i, positions[s]]
                elif source == LAST:
                    for s in range(m):
                        scores[s] = mass[s]

                # 4. Bound.
                if m < slots:
                    slot = m
                    continue
                victim = least(source, table, cells, gain, row, scores, positions, t, rules.by_age, sinks, recent, m)
                decided.victims[unit, i] = positions[victim]
                if folds:
                    compared = level if turns else keys
                    into = nearest(
                        victim,
                        compared,
                        norms,
                        positions,
                        sinks,
                        t - recent,
                        vector,
                        part,
                        importance,
                        m,
                        steps,
                    )
                    if into >= 0:
                        decided.survivors[unit, i] = positions[into]
                        merge(into, victim, compared, values, counts, logn, norms, fate != FOLD_VALUES)
                        if turns:
                            turn(level, keys, into, positions[into], rules.speeds)
                        if rules.levels != 0:
                            for h in range(heads):
                                if fate != FOLD_VALUES:
                                    for d in range(head_dim):
                                        vector[d] = keys[h, d, into]
                                    quantise(vector, rules.levels, rules.group, key_grids[h, into], exponent, power)
                                    for d in range(head_dim):
                                        keys[h, d, into] = vector[d]
                                quantise(
                                    values[h, into], rules.levels, rules.group, value_grids[h, into], exponent, power
                                )
                            norms[into] = norm(keys, into)
                            if turns:
                                turn(keys, level, into, -positions[into], rules.speeds)
                        if source == KNORM:
                            scores[into] = -to_12_digits(norms[into])
                positions[victim] = -1
                m -= 1
                slot = victim

            if sketched and gain != F(1.0):
                divide(table, gain)
        return t + 1

    return scan
