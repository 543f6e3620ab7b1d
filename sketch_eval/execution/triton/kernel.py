"""The scan on a GPU: the step of docs/design.md §2 over the tokens of a row, one program a row, in chunks of tokens.

Under teacher forcing the queries, keys and values of all tokens are known before the first decision, and dropping a
pair changes no product of a query with a key. So a program takes a chunk of tokens at a time:

1. `score_chunk`: the products of the chunk's queries with all keys that they may meet, those of the store and of the
   chunk itself, as matrix products; they go to memory, of which a row is read back for each token.
2. the steps, one token after the other: a softmax of numbers that are there already, masses, estimates, the victim. A
   step touches no key and no value, so it costs a few reductions over a vector of numbers.
3. `output_chunk`: the weights of the chunk's queries times the values, as matrix products.

Pairs are *columns* of these products: [0, cap) the store's slots, [NEW, NEW + chunk) the chunk's tokens and behind
them, where victims are folded, what folding makes of two pairs. A step works on vectors of the slots alone, and beside
them on the newest pair, which is a number: of a cap and one pairs that a query sees, it is the one. Then the newest
takes the slot that came free, and its products with the queries to come are copied to that slot's column, so that the
steps read lines. After the steps, `spread` gives the weights in a slot to the columns of the pairs that stood there.

A folded pair's products are the means of the two pairs', as products are linear, and cosines are made of those of the
keys with each other. It takes the survivor's slot, or the victim's where the newest is the survivor.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sketch_eval.execution.triton import plan
from sketch_eval.execution.triton.fold import fold
from sketch_eval.execution.triton.parts import (
    NONE,
    divide_table,
    from_order,
    gram_rows,
    oldest_least,
    order_key,
    output_chunk,
    read_ahead,
    read_table,
    score_chunk,
    spread,
    to_order,
    with_nan,
    write_weights,
)

COUNT_MIN, EXACT, LAST = tl.constexpr(plan.COUNT_MIN), tl.constexpr(plan.EXACT), tl.constexpr(plan.LAST)
FIXED, KNORM = tl.constexpr(plan.FIXED), tl.constexpr(plan.KNORM)
NEVER = tl.constexpr(2**63 - 1)
FIRST = tl.constexpr(-(2**63))
MAX_GAIN = tl.constexpr(2.0**plan.LOG_GAIN)
LOG2_E = tl.constexpr(1.4426950408889634)


# Compiled once for a cell and a model, whatever the lengths of texts.
@triton.jit(do_not_specialize=plan.VARYING)
def scan(  # type: ignore[no-untyped-def]
    q, keys, values, out, columns, count, seen, new_scores, cells, new_cells, table,
    src, own, positions, scores, counts, drawn, stands, logits, weights, gram, victims, survivors, hidden,
    length, places, slots, width, q_batch, q_head, q_token, out_batch, out_head, out_token, units,
    scaling, decay, sinks, recent, visible, visible_sinks, visible_recent, zero,
    SOURCE: tl.constexpr, FOLD: tl.constexpr, HIDE: tl.constexpr, FADES: tl.constexpr, BY_AGE: tl.constexpr,
    HALF: tl.constexpr,
    CAP: tl.constexpr, HEADS: tl.constexpr, QUERIES: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    HP: tl.constexpr, QP: tl.constexpr, B: tl.constexpr, S: tl.constexpr, NEW: tl.constexpr, W: tl.constexpr,
    BW: tl.constexpr, DEPTH: tl.constexpr, RP: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """One row of a layer's state and the tokens that arrive in it; `run.advance` says what it is given.

    q `[batch, heads, length, D]`, out `[batch, length, heads, D]`; keys, values `[rows, HEADS, places, D]`, the pool:
    the store's slots, the arriving tokens and, with FOLD, room for a folded pair for each of these. columns int32
    `[batch, length]`: the tokens that are no padding, of which there are count int32 `[batch]` after seen int32
    `[batch]`.
    new_scores float32 `[rows, length]`, new_cells int32 `[rows, length, DEPTH]`: theirs, in their order; cells int32
    `[rows, slots + length, DEPTH]`: all items'; table float32 `[rows, DEPTH, width]`. src (place of the vectors of a
    slot's pair), own (place of its item), positions, scores, counts: `[rows, W]`, the state, pairs leading. Scratch:
    drawn int32 `[rows, W]` (place of a column's vectors), stands int32 `[rows, 2, B]` (the slot that a token took, and
    what folding made at its step), logits float32 `[rows, QUERIES, B, W]` and two lines more, weights `[rows, PLANES,
    QUERIES, B, W]` (`write_weights`), gram float32 `[rows, W, W]`. victims, survivors, hidden int32 `[rows, length]`,
    without padding between.
    """
    row = tl.program_id(0).to(tl.int64)
    batch, unit = row // units, row % units
    GROUP: tl.constexpr = QUERIES // HEADS
    PLANES: tl.constexpr = 2 if HALF else 1
    q += batch * q_batch + unit * QUERIES * q_head
    out += batch * out_batch + unit * QUERIES * out_head
    keys += row * HEADS * places * D
    values += row * HEADS * places * D
    columns += batch * length
    new_scores += row * length
    cells += row * (slots + length) * DEPTH
    new_cells += row * length * DEPTH + tl.arange(0, RP) % DEPTH
    table += row * DEPTH * width
    src += row * W
    own += row * W
    positions += row * W
    scores += row * W
    counts += row * W
    drawn += row * W
    stands += row * 2 * B
    logits += row * QUERIES * B * W
    weights += row * PLANES * QUERIES * B * W
    gram += row * W * W
    victims += row * length
    survivors += row * length
    hidden += row * length

    tokens = tl.load(count + batch)
    start = tl.load(seen + batch)
    # By fours: numbers in half precision are written as those in float32 lie in the threads.
    col = tl.max_contiguous(tl.arange(0, S), 4)
    h, r, i = tl.arange(0, QP), tl.arange(0, RP), tl.arange(0, B)
    table_rows = table + (r % DEPTH) * width  # A sketch of three rows reads its first one twice.
    old = col < CAP
    held = tl.sum((tl.load(positions + col, mask=old, other=-1) >= 0).to(tl.int32))
    gain = tl.full((), 1.0, tl.float32)  # The table holds `gain` times its weights: decay need not touch every cell.
    line_at = logits + h * (B * W)
    asks, within = (h < QUERIES) | (QUERIES == QP), (col < NEW) | (NEW == S)
    taken = asks[:, None] & within[None, :]

    if FOLD and held > 0:  # The products of the pairs that were there before; they are carried along from here on.
        for first in range(0, CAP, B):
            gram_rows(keys, src, gram, first, places, HEADS, D, DP, B, W, BW, CAP, HALF)

    for chunk in range(0, tokens, B):
        steps = tl.minimum(tokens - chunk, B)
        began = start + chunk

        # The chunk's tokens take their columns.
        position = tl.load(positions + col, mask=old, other=-1)
        score = tl.load(scores + col, mask=old, other=0.0)
        place = tl.load(src + col, mask=old, other=-1)
        place = tl.where(position >= 0, place, -1)
        arriving = tl.load(columns + chunk + i, mask=i < steps, other=0)
        arriving = tl.where(i < steps, slots + arriving, -1)
        tl.store(drawn + col, place, mask=col < NEW)
        tl.store(drawn + NEW + i, arriving)
        tl.store(stands + i, -1)
        item = place
        logn = tl.zeros((S,), tl.float32)
        norm = tl.zeros((S,), tl.float32)
        if FOLD:
            logn = tl.log(tl.load(counts + col, mask=old & (position >= 0), other=1.0))
            item = tl.load(own + col, mask=old & (position >= 0), other=-1)
            tl.store(own + NEW + i, arriving)
            tl.store(counts + NEW + i, 1.0)
            tl.store(drawn + NEW + B + i, -1)
            tl.store(stands + B + i, -1)
        cell = tl.zeros((RP, S), tl.int32)
        new_cell = tl.zeros((RP,), tl.int32)
        next_cell = new_cell
        new_score = tl.full((), 0.0, tl.float32)
        estimate = score
        if SOURCE == COUNT_MIN:
            if gain > MAX_GAIN:
                divide_table(table, gain, DEPTH * width)
                gain = tl.full((), 1.0, tl.float32)
            at_cells = cells + item[None, :] * DEPTH + (r % DEPTH)[:, None]
            cell = tl.load(at_cells, mask=(item >= 0)[None, :], other=0)
            cell = tl.where((item >= 0)[None, :], cell, (col % width)[None, :])  # Empty slots are not all in one's way.
            new_cell = tl.load(new_cells + chunk * DEPTH)
            next_cell = tl.load(new_cells + (chunk + 1) * DEPTH, mask=steps > 1, other=0)
            if HIDE:
                estimate = read_table(table_rows[:, None] + cell, zero, WARPS)
        if SOURCE >= FIXED:
            new_score = tl.load(new_scores + chunk)
        tl.debug_barrier()
        score_chunk(
            q, keys, drawn, columns, logits, chunk, steps, scaling, q_head, q_token, places,
            QUERIES, GROUP, D, DP, B, W, BW, NEW + B, HALF,
        )  # fmt: skip
        if FOLD:
            gram_rows(keys, drawn, gram, NEW, places, HEADS, D, DP, B, W, BW, NEW + B, HALF)
        tl.debug_barrier()
        if FOLD:
            norm = tl.sqrt(tl.load(gram + col * (W + 1), mask=position >= 0, other=0.0))

        line = tl.load(line_at[:, None] + col[None, :], mask=taken, other=0.0)
        newest = tl.load(line_at + NEW, mask=asks, other=0.0)
        next_line, next_newest, next_own, to_come = read_ahead(line_at, 0, asks, taken, B, S, NEW, W)
        token = tl.load(columns + chunk)
        next_token = tl.load(columns + chunk + 1, mask=steps > 1, other=0)
        for step in range(steps):
            # 1. Append.
            t, now, mine = began + step, chunk + step, NEW + step  # The last: the newest pair's column.
            live, age = position >= 0, t - position

            # 2. Rank and attend.
            seen_now = live
            if HIDE:  # The newest is the first that it sees.
                worth = estimate / (age + 1).to(tl.float32) if BY_AGE else estimate
                worth = tl.where(worth == worth, worth, float("-inf"))
                guarded = (position < visible_sinks) | (age < visible_recent)
                order = tl.where(guarded, FIRST + 1 + age.to(tl.int64), order_key(-worth, position, col))
                order = tl.where(live, order, NEVER)
                last = tl.sum(tl.where(col == visible - 2, tl.sort(order), 0))
                seen_now = live & (order <= last) & (visible > 1)
                tl.store(hidden + now, held - tl.sum(seen_now.to(tl.int32)))
            logit = line + logn[None, :] if FOLD else line
            logit = tl.where(seen_now[None, :], logit, float("-inf"))
            highest = tl.maximum(from_order(tl.max(to_order(logit), axis=1)), newest)
            weight = tl.exp2((logit - highest[:, None]) * LOG2_E)
            new_weight = tl.exp2((newest - highest) * LOG2_E)
            part = 1.0 / (tl.sum(weight, axis=1) + new_weight)
            weight = weight * part[:, None]
            new_weight = new_weight * part
            put = weights + h * (B * W) + step * W
            write_weights(put[:, None] + col[None, :], weight, taken, QUERIES * B * W, HALF)
            write_weights(put + mine, new_weight, asks, QUERIES * B * W, HALF)
            mass = tl.sum(tl.where(asks[:, None], weight, 0.0), axis=0) / QUERIES
            new_mass = tl.sum(tl.where(asks, new_weight, 0.0), axis=0) / QUERIES

            # 3. Account.
            if SOURCE == EXACT:
                score = score * decay + mass
                new_score = new_mass
            elif SOURCE == LAST:
                score = mass
                new_score = new_mass
            estimate = score
            new_estimate = new_score
            if SOURCE == COUNT_MIN:
                gain = gain / decay
                if FADES and gain > MAX_GAIN:
                    divide_table(table, gain, DEPTH * width)
                    gain = tl.full((), 1.0, tl.float32)
                # What is none of the sketch's is given nothing, which costs less than a branch for each.
                given = tl.broadcast_to(tl.where(live, mass * gain, 0.0)[None, :], (RP, S))
                new_given = tl.zeros((RP,), tl.float32) + new_mass * gain
                if RP > DEPTH:
                    given = tl.where((r < DEPTH)[:, None], given, 0.0)
                    new_given = tl.where(r < DEPTH, new_given, 0.0)
                tl.atomic_add(table_rows[:, None] + cell, given, sem="relaxed", scope="cta")
                tl.atomic_add(table_rows + new_cell, new_given, sem="relaxed", scope="cta")
                tl.debug_barrier()
                found = tl.load(table_rows + new_cell, volatile=True)
                estimate = read_table(table_rows[:, None] + cell, zero, WARPS)
                new_estimate = with_nan(tl.min(found, axis=0), tl.sum(found, axis=0))

            # 4. Bound.
            full = held == CAP
            free = (position >= sinks) & (position <= t - recent)
            worth = estimate / (age + 1).to(tl.float32) if BY_AGE else estimate
            worth = tl.where(worth == worth, worth, float("-inf"))
            new_worth = tl.where(new_estimate == new_estimate, new_estimate, float("-inf"))
            new_free = (recent == 0) & (t >= sinks)
            low, least = oldest_least(worth, free, position, col)
            leaves = full & new_free & ((least == NONE) | (new_worth < low))  # The newest itself.
            slot = tl.where(full, least & 1023, held)
            tl.store(victims + now, tl.where(full, tl.where(leaves, t, least >> 10), -1))
            newest, line, stays, made = next_newest, next_line, leaves == 0, -1
            if FOLD:
                place, norm, logn, line, made, stays = fold(
                    keys, values, own, counts, drawn, stands, gram, survivors, line_at,
                    position, free, place, norm, logn, line, slot, full, leaves, new_free, t, slots + token,
                    slots + length + now, step, steps, now, places, HEADS, HP, QUERIES, D, DP, B, S, NEW, W,
                )  # fmt: skip

            here = (col == slot) & (leaves == 0)  # A newest that takes the victim in has its slot, too.
            tl.store(stands + step, slot, mask=stays)
            later = asks[:, None] & (i > step + 1)[None, :]
            tl.store(line_at[:, None] + i[None, :] * W + slot, to_come, mask=later & stays)
            line = tl.where(((col == slot) & stays)[None, :], next_own[:, None], line)
            position = tl.where(here, t, position)
            score = tl.where(here, new_score, score)
            if FOLD and SOURCE == KNORM:
                shifted = norm * 4097.0
                score = tl.where(col == made, -(shifted - (shifted - norm)), score)
            if HIDE:
                estimate = tl.where(here, new_estimate, estimate)
            if SOURCE == COUNT_MIN:
                cell = tl.where(here[None, :], new_cell[:, None], cell)
            held = tl.minimum(held + 1, CAP)

            # The next step's numbers are asked for behind a barrier, or the assembler would do so where it needs them.
            tl.debug_barrier()
            next_line, next_newest, next_own, to_come = read_ahead(line_at, step + 1, asks, taken, B, S, NEW, W)
            if FOLD:
                token = next_token
                next_token = tl.load(columns + now + 2, mask=step + 2 < steps, other=0)
            if SOURCE == COUNT_MIN:  # Two steps before, as addresses are made of it at once.
                new_cell = next_cell
                next_cell = tl.load(new_cells + (now + 2) * DEPTH, mask=step + 2 < steps, other=0)
            if SOURCE >= FIXED:
                new_score = tl.load(new_scores + now + 1, mask=step + 1 < steps, other=0.0)

        spread(weights, stands, src, drawn, QUERIES, B, NEW, W, FOLD, WARPS, HALF)
        tl.debug_barrier()
        output_chunk(
            out, values, drawn, columns, weights, chunk, steps, out_head, out_token, places,
            QUERIES, GROUP, D, DP, B, W, BW, NEW + (2 if FOLD else 1) * B, HALF,
        )  # fmt: skip
        tl.store(positions + col, position, mask=old)
        tl.store(scores + col, tl.where(position >= 0, score, 0.0), mask=old)
        tl.debug_barrier()

    if SOURCE == COUNT_MIN:
        divide_table(table, gain, DEPTH * width)
