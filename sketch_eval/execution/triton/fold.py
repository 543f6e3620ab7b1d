"""The part of a step that folds its victim into the pair of the nearest key."""

from __future__ import annotations

import triton
import triton.language as tl

from sketch_eval.execution.triton.parts import NONE, oldest_least


@triton.jit
def fold(  # type: ignore[no-untyped-def]
    keys, values, own, counts, drawn, stands, gram, survivors, line_at,
    position, free, place, norm, logn, line, slot, full, leaves, new_free, t, token_place, room, step, steps, now,
    places,
    HEADS: tl.constexpr, HP: tl.constexpr, QUERIES: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, B: tl.constexpr,
    S: tl.constexpr, NEW: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """Fold the victim, and bring the keys' products up to what stands in the slots after the step.

    `own`, `counts`, `gram` and `line_at` are indexed by the columns in which a pair stands now: a slot, or the
    newest's own column.

    Args:
        slot: the victim's slot, or the free one; leaves: the victim is the newest, which has no slot.
        token_place, room: the places of the newest's vectors, and of what folding makes.
        new_free: whether the newest is unprotected.

    Returns:
        place, norm, logn and line after it; the slot of the pair that was made, or -1; whether the newest stays as it
        came.
    """
    QP: tl.constexpr = line_at.shape[0]
    col, h, i = tl.arange(0, S), tl.arange(0, QP), tl.arange(0, B)
    mine = NEW + step
    within = col < NEW
    victim = tl.where(leaves, mine, slot)
    new_row = tl.load(gram + mine * W + col, mask=within, other=0.0, volatile=True)
    new_rest = tl.load(gram + mine * W + NEW + i, volatile=True)
    new_square = tl.load(gram + mine * (W + 1), volatile=True)
    products = tl.load(gram + victim * W + col, mask=full & within, other=0.0, volatile=True)
    new_product = tl.load(gram + victim * W + mine, mask=full, other=0.0, volatile=True)
    square = tl.load(gram + victim * (W + 1), mask=full, other=0.0, volatile=True)
    cosine = products / tl.maximum(norm * tl.sqrt(square), 1e-12)
    partner = free & (col != victim) & (cosine == cosine)
    low, nearest = oldest_least(-cosine, partner, position, col)
    new_norm = tl.sqrt(new_square)
    new_cosine = new_product / tl.maximum(new_norm * tl.sqrt(square), 1e-12)
    new_partner = full & new_free & (leaves == 0) & (new_cosine == new_cosine)
    takes_in = new_partner & ((nearest == NONE) | (-new_cosine < low))  # The survivor is the newest.
    folds = full & (takes_in | (nearest != NONE))
    into = tl.where(takes_in, mine, nearest & 1023)
    tl.store(survivors + now, tl.where(folds, tl.where(takes_in, t, nearest >> 10), -1))
    made = tl.where(takes_in, slot, into)
    stays = (leaves == 0) & (takes_in == 0)

    # All that folding reads, asked for at once, the vectors first: the assembler keeps to the order of volatile ones.
    one = tl.where(takes_in, token_place, tl.max(tl.where(col == into, place, -1), axis=0))
    two = tl.where(leaves, token_place, tl.max(tl.where(col == victim, place, -1), axis=0))
    head, d = tl.arange(0, HP)[:, None], tl.arange(0, DP)[None, :]
    at, pooled = head * (places * D) + d, folds & (head < HEADS) & (d < D)
    key = tl.load(keys + at + one * D, mask=pooled, other=0.0, volatile=True)
    its_key = tl.load(keys + at + two * D, mask=pooled, other=0.0, volatile=True)
    value = tl.load(values + at + one * D, mask=pooled, other=0.0, volatile=True)
    its_value = tl.load(values + at + two * D, mask=pooled, other=0.0, volatile=True)
    to_come = line_at[:, None] + i[None, :] * W
    open_ = folds & (h < QUERIES)[:, None] & (i > step + 1)[None, :]
    others = tl.load(gram + into * W + col, mask=folds & within, other=0.0, volatile=True)
    its_rest = tl.load(gram + victim * W + NEW + i, mask=folds, other=0.0, volatile=True)
    other_rest = tl.load(gram + into * W + NEW + i, mask=folds, other=0.0, volatile=True)
    left = tl.load(to_come + into, mask=open_, other=0.0, volatile=True)
    right = tl.load(to_come + victim, mask=open_, other=0.0, volatile=True)
    next_there = folds & (h < QUERIES) & (step + 1 < steps)
    next_left = tl.load(line_at + (step + 1) * W + into, mask=next_there, other=0.0, volatile=True)
    next_right = tl.load(line_at + (step + 1) * W + victim, mask=next_there, other=0.0, volatile=True)
    its = tl.load(counts + victim, mask=folds, other=1.0, volatile=True)
    others_n = tl.load(counts + into, mask=folds, other=1.0, volatile=True)
    between = tl.load(gram + victim * W + into, mask=folds, other=0.0, volatile=True)
    with_new = tl.load(gram + into * W + mine, mask=folds, other=0.0, volatile=True)
    itself = tl.load(gram + into * (W + 1), mask=folds, other=0.0, volatile=True)
    mean(keys + at, key, its_key, others_n, its, room * D, pooled)
    mean(values + at, value, its_value, others_n, its, room * D, pooled)
    tl.debug_barrier()  # What was read is written to below.

    # Products of the new key: the means of the two keys', and with itself those of both with both.
    total = its + others_n
    itself = itself * others_n * others_n + between * (2 * others_n * its) + square * its * its
    itself = itself / (total * total)
    with_new = (with_new * others_n + new_product * its) / total
    means = (others * others_n + products * its) / total
    means = tl.where((col == slot) & stays, with_new, means)
    means = tl.where(col == made, itself, means)
    rest = (other_rest * others_n + its_rest * its) / total
    tl.store(gram + made * W + col, means, mask=folds & within)
    tl.store(gram + col * W + made, means, mask=folds & within)
    tl.store(gram + made * W + NEW + i, rest, mask=folds)
    tl.store(gram + (NEW + i) * W + made, rest, mask=folds)
    tl.store(to_come + made, (left * others_n + right * its) / total, mask=open_)
    tl.store(counts + made, total, mask=folds)
    tl.store(drawn + NEW + B + step, room, mask=folds)
    tl.store(stands + B + step, made, mask=folds)

    # Those of the newest go where it goes.
    new_row = tl.where((col == made) & folds, with_new, new_row)
    new_row = tl.where(col == slot, new_square, new_row)
    tl.store(gram + slot * W + col, new_row, mask=stays & within)
    tl.store(gram + col * W + slot, new_row, mask=stays & within)
    tl.store(gram + slot * W + NEW + i, new_rest, mask=stays)
    tl.store(gram + (NEW + i) * W + slot, new_rest, mask=stays)
    tl.store(counts + slot, 1.0, mask=stays)
    tl.store(own + slot, token_place, mask=leaves == 0)

    here, there = (col == slot) & stays, (col == made) & folds
    place = tl.where(there, room, tl.where(here, token_place, place))
    norm = tl.where(there, tl.sqrt(itself), tl.where(here, new_norm, norm))
    logn = tl.where(there, tl.log(total), tl.where(here, 0.0, logn))
    next_made = (next_left * others_n + next_right * its) / total
    line = tl.where(there[None, :], next_made[:, None], line)
    return place, norm, logn, line, tl.where(folds, made, -1), stays


@triton.jit
def mean(at, one, two, n_one, n_two, into, there):  # type: ignore[no-untyped-def]
    """The vectors at `into` ← the means over the tokens of two pairs."""
    made = (one.to(tl.float32) * n_one + two.to(tl.float32) * n_two) / (n_one + n_two)
    tl.store(at + into, made.to(at.dtype.element_ty), mask=there)
