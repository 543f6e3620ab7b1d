"""The scan on a GPU: the step of docs/design.md §2 over the tokens of a row, one program a row, in chunks of tokens.

Under teacher forcing the queries, keys and values of all tokens are known before the first decision, and dropping a
pair changes no product of a query with a key. So a program takes a chunk of tokens at a time:

1. `score_chunk`: the products of the chunk's queries with all keys that they may meet, those of the store and of the
   chunk itself, as matrix products; they go to memory, of which a row is read back for each token.
2. the steps, one token after the other: a softmax of numbers that are there already, masses, estimates, the victim. A
   step touches no key and no value, so it costs a few reductions over a vector of numbers.
3. `output_chunk`: the weights of the chunk's queries times the values, as matrix products.

Pairs are *columns* of these products: [0, cap) the store's, [cap, cap + chunk) the chunk's, and behind them, where
victims are folded, what folding makes of two columns: a new one, while both leave. Since products are linear, its
products are the means of theirs; that holds for the keys' products with each other too, of which cosines are made. No
column's vectors ever change, so what a query saw is what the matrix products take. After a chunk the columns that are
left move to the front, by their places in the pool of vectors, which stay where they are.

Of a Count-Min table a column has its own cells' numbers in registers, from a chunk's beginning to its end. Only those
of cells that several of the chunk's columns have are added up in memory, at every step: of additions in memory a GPU
makes the fewest. Where victims are folded all are added up there, since a column's cells go on to others.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sketch_eval.execution.triton import plan
from sketch_eval.execution.triton.parts import (
    NONE,
    divide_table,
    gram_rows,
    mix,
    oldest_least,
    order_key,
    output_chunk,
    read_table,
    score_chunk,
    shared_cells,
)

COUNT_MIN, EXACT, LAST = tl.constexpr(plan.COUNT_MIN), tl.constexpr(plan.EXACT), tl.constexpr(plan.LAST)
FIXED, KNORM = tl.constexpr(plan.FIXED), tl.constexpr(plan.KNORM)
NEVER = tl.constexpr(2**63 - 1)
FIRST = tl.constexpr(-(2**63))
MAX_GAIN = tl.constexpr(2.0**plan.LOG_GAIN)


# Compiled once for a cell and a model, whatever the lengths of texts.
@triton.jit(do_not_specialize=plan.VARYING)
def scan(  # type: ignore[no-untyped-def]
    q, keys, values, out, columns, count, seen, new_scores, cells, table, owners,
    src, own, positions, scores, counts, moves, logits, gram, victims, survivors, hidden,
    length, places, slots, width, q_batch, q_head, q_token, out_batch, out_head, out_token, units,
    scaling, decay, sinks, recent, visible, visible_sinks, visible_recent, zero,
    SOURCE: tl.constexpr, FOLD: tl.constexpr, HIDE: tl.constexpr, FADES: tl.constexpr, BY_AGE: tl.constexpr,
    HALF: tl.constexpr,
    CAP: tl.constexpr, HEADS: tl.constexpr, QUERIES: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    HP: tl.constexpr, QP: tl.constexpr, B: tl.constexpr, W: tl.constexpr, BW: tl.constexpr,
    DEPTH: tl.constexpr, RP: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """One row of a layer's state and the tokens that arrive in it; `run.advance` says what it is given.

    q `[batch, heads, length, D]`, out `[batch, length, heads, D]`; keys, values `[rows, HEADS, places, D]`, the pool:
    the store's slots, the arriving tokens and, with FOLD, room for a folded pair for each of these. columns int32
    `[batch, length]`: the tokens that are no padding, of which there are count int32 `[batch]` after seen int32
    `[batch]`.
    new_scores float32 `[rows, length]`; cells int32 `[rows, slots + length, DEPTH]`; table float32 `[rows, DEPTH,
    width]`. src (place of a column's vectors), own (place of its item), positions, scores, counts: `[rows, W]`, the
    state, pairs leading. Scratch: owners int32, as table; moves int32 `[rows, W]`, logits float32 `[rows, QUERIES, B,
    W]`, gram float32 `[rows, 2, W, W]`. victims, survivors, hidden int32 `[rows, length]`, without padding between.
    """
    row = tl.program_id(0).to(tl.int64)
    batch, unit = row // units, row % units
    GROUP: tl.constexpr = QUERIES // HEADS
    USED: tl.constexpr = CAP + (2 if FOLD else 1) * B
    NEW: tl.constexpr = CAP + B
    q += batch * q_batch + unit * QUERIES * q_head
    out += batch * out_batch + unit * QUERIES * out_head
    keys += row * HEADS * places * D
    values += row * HEADS * places * D
    columns += batch * length
    new_scores += row * length
    cells += row * (slots + length) * DEPTH
    table += row * DEPTH * width
    owners += row * DEPTH * width
    src += row * W
    own += row * W
    positions += row * W
    scores += row * W
    counts += row * W
    moves += row * W
    logits += row * QUERIES * B * W
    gram += row * 2 * W * W
    spare = gram + W * W
    victims += row * length
    survivors += row * length
    hidden += row * length

    tokens = tl.load(count + batch)
    start = tl.load(seen + batch)
    col, h, r, i = tl.arange(0, W), tl.arange(0, QP), tl.arange(0, RP), tl.arange(0, B)
    rows_of_table = table + (r % DEPTH)[:, None] * width  # A sketch of three rows reads its first one twice.
    rows_of_owners = owners + (r % DEPTH)[:, None] * width
    held = tl.sum((tl.load(positions + col, mask=col < CAP, other=-1) >= 0).to(tl.int32))
    gain = tl.full((), 1.0, tl.float32)  # The table holds `gain` times its weights: decay need not touch every cell.
    taken = (h < QUERIES)[:, None] & (col < USED)[None, :]

    if FOLD and held > 0:  # The products of the pairs that were there before; they are carried along from here on.
        for first in range(0, CAP, B):
            gram_rows(keys, src, gram, first, places, HEADS, D, DP, B, W, BW, CAP, HALF)

    for chunk in range(0, tokens, B):
        steps = tl.minimum(tokens - chunk, B)

        # The chunk's tokens take their columns.
        old, fresh = col < CAP, (col >= CAP) & (col < CAP + steps)
        token = tl.load(columns + chunk + col - CAP, mask=fresh, other=0)
        position = tl.load(positions + col, mask=old, other=-1)
        position = tl.where(fresh, start + chunk + col - CAP, position)
        score = tl.load(scores + col, mask=old, other=0.0)
        if SOURCE >= FIXED:
            score = tl.where(fresh, tl.load(new_scores + token, mask=fresh, other=0.0), score)
        place = tl.load(src + col, mask=old, other=-1)
        place = tl.where(fresh, slots + token, tl.where(old & (position >= 0), place, -1))
        tl.store(src + col, place)
        logn = tl.zeros((W,), tl.float32)
        if FOLD:
            n = tl.load(counts + col, mask=old, other=1.0)
            logn = tl.log(n)
            tl.store(counts + col, n)
            item = tl.where(old, tl.load(own + col, mask=old, other=-1), place)
            tl.store(own + col, item)
        else:
            item = place
        cell = tl.zeros((RP, W), tl.int32)
        value, estimate = tl.zeros((RP, W), tl.float32), score
        shared = tl.zeros((RP, W), tl.int1)
        keeps = shared
        if SOURCE == COUNT_MIN:
            if gain > MAX_GAIN:
                divide_table(table, gain, DEPTH * width)
                gain = tl.full((), 1.0, tl.float32)
            at_cells = cells + item[None, :] * DEPTH + (r % DEPTH)[:, None]
            keeps = tl.broadcast_to((item >= 0)[None, :], (RP, W))
            cell = tl.load(at_cells, mask=keeps, other=0)
            if not FOLD:
                shared = shared_cells(rows_of_owners + cell, col, keeps)
                value = tl.load(rows_of_table + cell, mask=keeps, other=0.0, volatile=True)
                estimate = tl.min(value, axis=0)
        tl.debug_barrier()
        score_chunk(
            q, keys, src, columns, logits, chunk, steps, scaling, q_head, q_token, places,
            QUERIES, GROUP, D, DP, B, W, BW, NEW, HALF,
        )  # fmt: skip
        norm = tl.zeros((W,), tl.float32)
        if FOLD:
            gram_rows(keys, src, gram, CAP, places, HEADS, D, DP, B, W, BW, NEW, HALF)
            tl.debug_barrier()
            norm = tl.sqrt(tl.load(gram + col * (W + 1), mask=position >= 0, other=0.0))
        tl.debug_barrier()

        at = logits + h[:, None] * (B * W) + col[None, :]
        line = tl.load(at, mask=taken, other=0.0)
        for step in range(steps):
            # 1. Append: a pair is there from its own token on.
            t = start + chunk + step
            now = chunk + step
            live = (position >= 0) & (position <= t)
            age = t - position
            held += 1

            # 2. Rank and attend.
            seen_now = live
            if HIDE:
                worth = estimate / (age + 1).to(tl.float32) if BY_AGE else estimate
                worth = tl.where(worth == worth, worth, float("-inf"))
                guarded = (position < visible_sinks) | (age < visible_recent)
                order = tl.where(guarded, FIRST + 1 + age.to(tl.int64), order_key(-worth, position, col))
                order = tl.where(live, tl.where(age == 0, FIRST, order), NEVER)
                last = tl.sum(tl.where(col == visible - 1, tl.sort(order), 0))
                seen_now = live & (order <= last)
                tl.store(hidden + now, tl.sum(live.to(tl.int32)) - tl.sum(seen_now.to(tl.int32)))
            logit = line + logn[None, :] if FOLD else line
            if not FOLD:  # The next token's, which folding may change yet.
                line = tl.load(at + (step + 1) * W, mask=taken & (step + 1 < steps), other=0.0)
            logit = tl.where(seen_now[None, :], logit, float("-inf"))
            weight = tl.exp(logit - tl.max(logit, axis=1)[:, None])
            weight = weight / tl.sum(weight, axis=1)[:, None]
            tl.store(at + step * W, weight, mask=taken)
            mass = tl.sum(tl.where((h < QUERIES)[:, None], weight, 0.0), axis=0) / QUERIES

            # 3. Account.
            if SOURCE == EXACT:
                score = tl.where(live, score * decay + mass, score)
            elif SOURCE == LAST:
                score = tl.where(live, mass, score)
            estimate = score
            if SOURCE == COUNT_MIN:
                gain = gain / decay
                if FADES and gain > MAX_GAIN:
                    divide_table(table, gain, DEPTH * width)
                    value = value / gain
                    gain = tl.full((), 1.0, tl.float32)
                given = tl.broadcast_to(tl.where(live, mass * gain, 0.0)[None, :], (RP, W))
                added = tl.broadcast_to(live[None, :], (RP, W)) if FOLD else shared & live[None, :]
                mine = added & (r < DEPTH)[:, None]
                tl.atomic_add(rows_of_table + cell, given, mask=mine, sem="relaxed", scope="cta")
                tl.debug_barrier()
                value = tl.where(added, read_table(rows_of_table + cell, added, zero, WARPS), value + given)
                estimate = tl.min(value, axis=0)

            # 4. Bound.
            full = held > CAP
            free = live & (position >= sinks) & (age >= recent)
            worth = estimate / (age + 1).to(tl.float32) if BY_AGE else estimate
            worth = tl.where(worth == worth, worth, float("-inf"))
            least = oldest_least(worth, free, position, col)
            victim = least & 1023
            gone = (col == victim) & full
            tl.store(victims + now, tl.where(full, least >> 10, -1))
            if FOLD:
                products = tl.load(gram + victim * W + col, mask=full & (col < USED), other=0.0)
                square = tl.load(gram + victim * (W + 1), mask=full, other=0.0)
                cosine = products / tl.maximum(norm * tl.sqrt(square), 1e-12)
                partner = free & (col != victim) & (cosine == cosine)
                nearest = oldest_least(-cosine, partner, position, col)
                folds = full & (nearest != NONE)
                into, since, made = nearest & 1023, nearest >> 10, NEW + step
                tl.store(survivors + now, tl.where(folds, since, -1))
                # All that folding reads, asked for at once.
                later = logits + h[:, None] * (B * W) + i[None, :] * W
                open_ = folds & (h < QUERIES)[:, None] & (i > step)[None, :]
                others = tl.load(gram + into * W + col, mask=folds & (col < USED), other=0.0, volatile=True)
                left = tl.load(later + into, mask=open_, other=0.0, volatile=True)
                right = tl.load(later + victim, mask=open_, other=0.0, volatile=True)
                one = tl.load(src + into, mask=folds, other=0, volatile=True)
                two = tl.load(src + victim, mask=folds, other=0, volatile=True)
                item_of = tl.load(own + into, mask=folds, other=0, volatile=True)
                its = tl.load(counts + victim, mask=folds, other=1.0, volatile=True)
                mine_n = tl.load(counts + into, mask=folds, other=1.0, volatile=True)
                between = tl.load(gram + victim * W + into, mask=folds, other=0.0, volatile=True)
                itself = tl.load(gram + into * (W + 1), mask=folds, other=0.0, volatile=True)
                room = slots + length + now
                mix(keys, values, one, two, mine_n, its, room, places, folds, HEADS, HP, D, DP)

                # Products of the new key: the means of the two keys', and with itself those of both with both.
                total = its + mine_n
                itself = itself * mine_n * mine_n + between * (2 * mine_n * its) + square * its * its
                itself = itself / (total * total)
                means = tl.where(col == made, itself, (others * mine_n + products * its) / total)
                tl.store(gram + made * W + col, means, mask=folds & (col < USED))
                tl.store(gram + col * W + made, means, mask=folds & (col < USED))
                tl.store(later + made, (left * mine_n + right * its) / total, mask=open_)
                tl.store(src + made, room, mask=folds)
                tl.store(own + made, item_of, mask=folds)
                tl.store(counts + made, total, mask=folds)

                # The new column stands where the survivor stood.
                here, left_behind = (col == made) & folds, (col == into) & folds
                norm = tl.where(here, tl.sqrt(itself), norm)
                logn = tl.where(here, tl.log(total), logn)
                if SOURCE == KNORM:
                    shifted = tl.sqrt(itself) * 4097.0
                    score = tl.where(here, -(shifted - (shifted - tl.sqrt(itself))), score)
                else:
                    score = tl.where(here, tl.sum(tl.where(left_behind, score, 0.0)), score)
                if SOURCE == COUNT_MIN:
                    of_survivor = tl.sum(tl.where(left_behind[None, :], cell, 0), axis=1)
                    cell = tl.where(here[None, :], of_survivor[:, None], cell)
                position = tl.where(here, since, tl.where(left_behind, -1, position))
                tl.debug_barrier()
                line = tl.load(at + (step + 1) * W, mask=taken & (step + 1 < steps), other=0.0)
            position = tl.where(gone, -1, position)
            held -= full.to(tl.int32)

        tl.debug_barrier()
        output_chunk(
            out, values, src, columns, logits, chunk, steps, out_head, out_token, places,
            QUERIES, GROUP, D, DP, B, W, BW, USED, HALF,
        )  # fmt: skip

        if SOURCE == COUNT_MIN and not FOLD:
            tl.store(rows_of_table + cell, value, mask=keeps & (shared == 0))

        # What is left moves to the front.
        left_over = position >= 0
        to = tl.cumsum(left_over.to(tl.int32), axis=0) - 1
        place = tl.load(src + col)
        if FOLD:
            item, n = tl.load(own + col), tl.load(counts + col)
        tl.debug_barrier()
        tl.store(positions + col, -1, mask=(col >= held) & (col < CAP))
        tl.store(positions + to, position, mask=left_over)
        tl.store(scores + to, score, mask=left_over)
        tl.store(src + to, place, mask=left_over)
        if FOLD:
            tl.store(own + to, item, mask=left_over)
            tl.store(counts + to, n, mask=left_over)
            tl.store(moves + to, col, mask=left_over)
            tl.debug_barrier()
            for first in range(0, held, B):
                row_at = tl.load(moves + first + i, mask=first + i < held, other=0)
                col_at = tl.load(moves + col, mask=col < held, other=0)
                kept = (first + i < held)[:, None] & (col < held)[None, :]
                moved = tl.load(gram + row_at[:, None] * W + col_at[None, :], mask=kept, other=0.0)
                tl.store(spare + (first + i)[:, None] * W + col[None, :], moved, mask=kept)
            gram, spare = spare, gram
        tl.debug_barrier()

    if SOURCE == COUNT_MIN:
        divide_table(table, gain, DEPTH * width)
