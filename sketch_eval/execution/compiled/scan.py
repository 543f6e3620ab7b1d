"""The scan on one CPU core: the step of docs/design.md §2 over the tokens of one sequence, in a compiled loop."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from sketch_eval.execution.compiled.attend import attend
from sketch_eval.execution.compiled.choose import least, mark_visible, weigh
from sketch_eval.execution.compiled.fold import merge, nearest, nearest_in_place, turn
from sketch_eval.execution.compiled.jit import F, kept
from sketch_eval.execution.compiled.maths import norm, to_12_digits
from sketch_eval.execution.compiled.near import find_nearest, has_come, has_gone
from sketch_eval.execution.compiled.quantise import quantise
from sketch_eval.execution.compiled.records import SIGNATURE
from sketch_eval.execution.compiled.renew import measure, recall, remember, renew
from sketch_eval.execution.compiled.sketch import add, add_all, add_conservatively, divide
from sketch_eval.execution.compiled.sources import (
    DROP,
    EXACT,
    EXPECTED,
    FOLD_COST,
    FOLD_NEAR,
    FOLD_TURNED,
    FOLD_UNWEIGHTED,
    FOLD_VALUES,
    FORESEEN,
    KEYDIFF,
    KNORM,
    LAST,
    LEARNED,
    RACE_QUERIES,
    SNAPKV,
    VATP,
)  # fmt: skip
from sketch_eval.policies.base import STEPS
from sketch_eval.policies.learned import DECAYS, LEAST
from sketch_eval.policies.snapkv import REACH

MAX_GAIN = F(2.0**40)


@lru_cache
def scan_for(source: int, fate: int) -> Any:
    """The loop for a source of importance and a fate, both of `sources`: they are constants of its machine code."""
    sketched, folds, turns = source <= RACE_QUERIES, fate != DROP, fate == FOLD_TURNED
    normed, renewed, expected = (
        folds or source in (KNORM, KEYDIFF, FOLD_COST, LEARNED),
        source >= VATP,
        source == EXPECTED,
    )
    weighs = folds and fate != FOLD_UNWEIGHTED
    # Closed over, so that a change of them in their own files is seen too.
    reach, cosines, least_mass = REACH, STEPS, F(LEAST)
    decays = tuple(F(decay) for decay in DECAYS)
    steps = STEPS if turns else 0

    @kept(SIGNATURE, f"scan_{source}_{fate}")
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
        sums = np.empty((queries if expected else 1, slots), np.float32)
        squares = np.empty((queries if expected else 1, slots), np.float32)
        sizes = np.empty((heads, slots), np.float32)
        scratch = (vector, part, exponent, power)
        which = np.full(slots, -1, np.int32)
        where = np.full(seen_before + length if source == SNAPKV else 1, -1, np.int32)  # slots by position
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
            memory, moments, weight = store.memory[unit], store.moments[unit], store.weight[unit]
            held = (scores, memory, weight, sums, squares, sizes, keys, norms, positions, where)
            first, last = unit * queries, (unit + 1) * queries
            where[:] = -1
            gain = F(1.0)  # The table holds `gain` times its weights, so that decay need not touch every cell a step.
            seen[:] = True
            m, slot = 0, -1
            for s in range(slots):
                if positions[s] >= 0:
                    m += 1
                    logn[s] = np.log(counts[s]) if weighs else F(0.0)
                    norms[s] = norm(keys, s) if normed else F(0.0)
                    if turns:
                        turn(keys, level, s, -positions[s], rules.speeds)
                    if source == SNAPKV:
                        where[positions[s]] = s
                    if renewed:
                        measure(source, values, sizes, s)
                    if expected:
                        recall(moments, keys, sums, squares, s)
                elif slot < 0:
                    slot = s
            if source == FOLD_COST:
                for s in range(slots):
                    if positions[s] >= 0:
                        find_nearest(s, sums[0], which, keys, norms, positions, vector, importance, part, cosines)
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
                if sketched or source == LEARNED:
                    for r in range(depth):
                        cells[slot, r] = tokens.cells[unit, i, r]
                if not sketched:
                    scores[slot] = tokens.scores[unit, i]
                if folds:
                    key_grids[:, slot] = F(-1.0)
                    value_grids[:, slot] = F(-1.0)
                    counts[slot] = F(1.0)
                    logn[slot] = F(0.0)
                if normed:
                    norms[slot] = norm(keys, slot)
                if turns:
                    turn(keys, level, slot, -t, rules.speeds)
                if source == FOLD_COST:
                    has_come(slot, sums[0], which, keys, norms, positions, vector, importance, part, cosines)
                if source == SNAPKV:
                    where[t] = slot
                if renewed:
                    measure(source, values, sizes, slot)
                    if source in (VATP, SNAPKV, FOLD_COST, LEARNED):
                        memory[:, slot] = F(0.0)
                if expected:
                    recall(moments, keys, sums, squares, slot)

                # 2. Rank and attend.
                if 0 < rules.visible < m:
                    if renewed:
                        renew(source, held, scratch, t, reach, cosines, least_mass, m)
                    weigh(source, table, cells, gain, row, scores, positions, t, rules.by_age, importance, m)
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
                    if source == RACE_QUERIES:
                        add(table, tokens.asked[unit, i], gain)
                    else:
                        for s in range(m):
                            part[s] = mass[s] * gain
                        if rules.conservative:
                            add_conservatively(table, cells, part, importance, done, m)
                        else:
                            add_all(source, table, cells, part, m)
                elif source == EXACT:
                    for s in range(m):
                        scores[s] = scores[s] * rules.decay + mass[s]
                elif source == FORESEEN:
                    for s in range(m):
                        scores[s] = tokens.ahead[unit, i, positions[s]]
                elif source == LAST:
                    for s in range(m):
                        scores[s] = mass[s]
                elif renewed:
                    remember(
                        source,
                        memory,
                        moments,
                        weight,
                        sums,
                        squares,
                        query,
                        keys,
                        mass,
                        part,
                        rules.decay,
                        decays,
                        m,
                    )
                    if source == LEARNED:
                        for s in range(m):
                            if cells[s, 0] == cells[slot, 0] and positions[s] < t:
                                memory[len(decays), s] = F(1.0)

                # 4. Bound.
                if m < slots:
                    slot = m
                    continue
                if renewed:
                    renew(source, held, scratch, t, reach, cosines, least_mass, m)
                weigh(source, table, cells, gain, row, scores, positions, t, rules.by_age, importance, m)
                victim = least(importance, positions, t, sinks, recent, m)
                decided.victims[unit, i] = positions[victim]
                if folds:
                    compared = level if turns else keys
                    if fate == FOLD_NEAR:
                        into = nearest_in_place(victim, positions, sinks, t - recent, m)
                    else:
                        into = nearest(
                            victim, compared, norms, positions, sinks, t - recent, vector, part, importance, m, steps
                        )
                    if into >= 0:
                        decided.survivors[unit, i] = positions[into]
                        merge(into, victim, compared, values, counts, logn, norms, fate != FOLD_VALUES, weighs)
                        if turns:
                            turn(level, keys, into, positions[into], rules.speeds)
                        if rules.value_levels != 0:
                            for h in range(heads):
                                if fate != FOLD_VALUES:
                                    for d in range(head_dim):
                                        vector[d] = keys[h, d, into]
                                    quantise(vector, rules.key_levels, rules.group, key_grids[h, into], exponent, power)
                                    for d in range(head_dim):
                                        keys[h, d, into] = vector[d]
                                quantise(
                                    values[h, into],
                                    rules.value_levels,
                                    rules.group,
                                    value_grids[h, into],
                                    exponent,
                                    power,
                                )
                            norms[into] = norm(keys, into)
                            if turns:
                                turn(keys, level, into, -positions[into], rules.speeds)
                        if renewed:
                            measure(source, values, sizes, into)
                        if expected:
                            recall(moments, keys, sums, squares, into)
                        if source == FOLD_COST:
                            has_come(into, sums[0], which, keys, norms, positions, vector, importance, part, cosines)
                        if source == KNORM:
                            scores[into] = -to_12_digits(norms[into])
                if source == SNAPKV:
                    where[positions[victim]] = -1
                positions[victim] = -1
                if source == FOLD_COST:
                    has_gone(victim, sums[0], which, keys, norms, positions, vector, importance, part, cosines)
                m -= 1
                slot = victim

            if sketched and gain != F(1.0):
                divide(table, gain)
        return t + 1

    return scan
