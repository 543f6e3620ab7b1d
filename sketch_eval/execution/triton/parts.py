"""The parts of the kernel that are matrix products, and what its steps share."""

from __future__ import annotations

import triton
import triton.language as tl

STAGES = tl.constexpr(3)
"""Turns of a loop that are under way at once: places of vectors, vectors, products."""

NONE = tl.constexpr(2**31 - 1)


@triton.jit
def to_order(value):  # type: ignore[no-untyped-def]
    """int32 numbers in the order of float32 ones, -0 before 0 and NaN at the ends: a warp takes their least in one go.

    It is its own inverse, of the bits.
    """
    bits = value.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def from_order(bits):  # type: ignore[no-untyped-def]
    """The float32 numbers again."""
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def order_key(value, position, column):  # type: ignore[no-untyped-def]
    """int64 numbers in the order of (value, position), the column in the low 10 bits; -0 is 0, and NaN not allowed."""
    return (to_order(value + 0.0).to(tl.int64) << 31) | (position.to(tl.int64) << 10) | column


@triton.jit
def oldest_least(value, among, position, column):  # type: ignore[no-untyped-def]
    """The least value among some, and position · 1024 + column of it, ties to the oldest; inf, NONE where none is."""
    low = from_order(tl.min(to_order(tl.where(among, value, float("inf"))), axis=0))
    return low, tl.min(tl.where(among & (value == low), (position << 10) | column, NONE), axis=0)


@triton.jit
def with_nan(least, total):  # type: ignore[no-untyped-def]
    """The least of numbers that are not negative, of which the total is known: NaN where one of them is."""
    return tl.where(total == total, least, total)


@triton.jit
def product(a, b, half: tl.constexpr):  # type: ignore[no-untyped-def]
    """a · b in float32: vectors in half precision have exact products."""
    if half:
        return tl.dot(a, b)
    return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")


@triton.jit
def vectors_at(pool, head, src, P, D: tl.constexpr, DP: tl.constexpr):  # type: ignore[no-untyped-def]
    """The vectors `[n, DP]` of pairs in a head's pool; zeros where `src` is negative."""
    d = tl.arange(0, DP)
    at = pool + head * (P * D) + src[:, None] * D + d[None, :]
    return tl.load(at, mask=(src >= 0)[:, None] & (d < D)[None, :], other=0.0)


# The loops over heads and blocks of columns are one each, so that Triton loads ahead across heads too (`num_stages`).


@triton.jit
def score_chunk(  # type: ignore[no-untyped-def]
    q, pool, src_at, columns_at, logits, chunk, steps, scaling, q_head, q_token, P,
    QUERIES: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, B: tl.constexpr, W: tl.constexpr,
    BW: tl.constexpr, USED: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """logits[h, i, w] ← the product of the chunk's query i of head h with the key in column w."""
    i, d, w = tl.arange(0, B), tl.arange(0, DP), tl.arange(0, BW)
    BLOCKS: tl.constexpr = (USED + BW - 1) // BW
    token = tl.load(columns_at + chunk + i, mask=i < steps, other=0)
    at = q + token[:, None] * q_token + d[None, :]
    asked = (i < steps)[:, None] & (d < D)[None, :]
    query = tl.load(at, mask=asked, other=0.0)
    for turn in tl.range(0, QUERIES * BLOCKS, num_stages=STAGES):
        h, column = turn // BLOCKS, turn % BLOCKS * BW + w
        if QUERIES > 1:
            query = tl.load(at + h * q_head, mask=asked, other=0.0)
        key = vectors_at(pool, h // GROUP, tl.load(src_at + column, mask=column < USED, other=-1), P, D, DP)
        found = product(query, tl.trans(key), HALF) * scaling
        tl.store(logits + (h * B + i[:, None]) * W + column[None, :], found, mask=(column < USED)[None, :])


@triton.jit
def gram_rows(  # type: ignore[no-untyped-def]
    pool, src_at, gram, start, P,
    HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, B: tl.constexpr, W: tl.constexpr, BW: tl.constexpr,
    USED: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """gram[a, b] and gram[b, a] ← products of the concatenated keys, for the B columns a from `start` on and all b."""
    i, w = tl.arange(0, B), tl.arange(0, BW)
    BLOCKS: tl.constexpr = (USED + BW - 1) // BW
    mine = tl.load(src_at + start + i, mask=start + i < USED, other=-1)
    total = tl.zeros((B, BW), tl.float32)
    for turn in tl.range(0, BLOCKS * HEADS, num_stages=STAGES):
        h, column = turn % HEADS, turn // HEADS * BW + w
        its = tl.load(src_at + column, mask=column < USED, other=-1)
        found = product(vectors_at(pool, h, mine, P, D, DP), tl.trans(vectors_at(pool, h, its, P, D, DP)), HALF)
        total = tl.where(h == 0, found, total + found)
        there = (start + i < USED)[:, None] & (column < USED)[None, :] & (h == HEADS - 1)
        tl.store(gram + (start + i[:, None]) * W + column[None, :], total, mask=there)
        tl.store(gram + column[None, :] * W + start + i[:, None], total, mask=there)


@triton.jit
def read_ahead(  # type: ignore[no-untyped-def]
    line_at, step, asks, taken, B: tl.constexpr, S: tl.constexpr, NEW: tl.constexpr, W: tl.constexpr
):
    """What a step hands on: the products of the next token's queries with the slots' keys, with its own and with that
    of the step's own token; and those of the later queries with the last of these. After the last token it is what
    happens to lie there."""
    col, i = tl.arange(0, S), tl.arange(0, B)
    below, mine = line_at + (step + 1) * W, NEW + step
    line = tl.load(below[:, None] + col[None, :], mask=taken, other=0.0)
    newest = tl.load(below + mine + 1, mask=asks, other=0.0)
    own = tl.load(below + mine, mask=asks, other=0.0)
    return line, newest, own, tl.load(line_at[:, None] + i[None, :] * W + mine, mask=asks[:, None], other=0.0)


@triton.jit
def write_weights(at, weight, there, plane, HALF: tl.constexpr):  # type: ignore[no-untyped-def]
    """Weights as the matrix products take them.

    Values in half precision meet them in two halves, `plane` numbers apart, which together have more digits than the
    output.
    """
    large = weight.to(at.dtype.element_ty)
    tl.store(at, large, mask=there)
    if HALF:
        tl.store(at + plane, (weight - large.to(tl.float32)).to(at.dtype.element_ty), mask=there)


@triton.jit
def spread(  # type: ignore[no-untyped-def]
    weights, stands, src, drawn,
    QUERIES: tl.constexpr, B: tl.constexpr, NEW: tl.constexpr, W: tl.constexpr, FOLD: tl.constexpr,
    WARPS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Weights in slots → the columns of the pairs that came to stand there within the chunk, one after the other.

    A pair that takes a slot at step k has the slot's weights of the steps after k, up to that at which the next one
    takes it. The pair that stood there before the chunk has none of these. `src` says where the last one's vectors lie.
    """
    E: tl.constexpr = (2 if FOLD else 1) * B
    R: tl.constexpr = min(8 * WARPS, 32) if FOLD else 16 * WARPS
    e, r = tl.arange(0, E), tl.arange(0, R)
    at = e % B
    slot = tl.load(stands + e)
    again = (slot[:, None] == slot[None, :]) & (at[:, None] > at[None, :])
    last = tl.min(tl.where(again, at[:, None], B), axis=0)
    tl.store(src + slot, tl.load(drawn + NEW + e), mask=(slot >= 0) & (last == B))
    for first in range(0, QUERIES * B, R):
        row = first + r
        i = (row % B)[:, None]
        line = weights + row[:, None] * W
        within = (row < QUERIES * B)[:, None]
        later = within & (slot >= 0)[None, :] & (i > at[None, :])
        its, to = line + slot[None, :], line + (NEW + e)[None, :]
        stood = later & (i <= last[None, :])
        given = within & ((e >= B)[None, :] | (i != at[None, :]))
        found = tl.load(its, mask=stood, other=0.0)
        small = found
        if HALF:
            small = tl.load(its + QUERIES * B * W, mask=stood, other=0.0)
        tl.debug_barrier()
        tl.store(to, found, mask=given)
        tl.store(its, 0.0, mask=later)
        if HALF:
            tl.store(to + QUERIES * B * W, small, mask=given)
            tl.store(its + QUERIES * B * W, 0.0, mask=later)


@triton.jit
def output_chunk(  # type: ignore[no-untyped-def]
    out, pool, src_at, columns_at, weights, chunk, steps, out_head, out_token, P,
    QUERIES: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, B: tl.constexpr, W: tl.constexpr,
    BW: tl.constexpr, USED: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """out[token of i, h] ← Σ_w weights[h, i, w]·value[w]."""
    i, d, w = tl.arange(0, B), tl.arange(0, DP), tl.arange(0, BW)
    BLOCKS: tl.constexpr = (USED + BW - 1) // BW
    token = tl.load(columns_at + chunk + i, mask=i < steps, other=0)
    at = out + token[:, None] * out_token + d[None, :]
    given = (i < steps)[:, None] & (d < D)[None, :]
    total = tl.zeros((B, DP), tl.float32)
    for turn in tl.range(0, QUERIES * BLOCKS, num_stages=STAGES):
        h, block = turn // BLOCKS, turn % BLOCKS
        column = block * BW + w
        line = weights + (h * B + i[:, None]) * W + column[None, :]
        there = (column < USED)[None, :]
        weight = tl.load(line, mask=there, other=0.0)
        value = vectors_at(pool, h // GROUP, tl.load(src_at + column, mask=column < USED, other=-1), P, D, DP)
        if HALF:
            small = tl.load(line + QUERIES * B * W, mask=there, other=0.0)
            total = tl.dot(small, value, tl.where(block == 0, 0.0, total))
            total = tl.dot(weight, value, total)
        else:
            found = product(weight, value, HALF)
            total = tl.where(block == 0, found, total + found)
        if QUERIES > 1:
            there = given & (block == BLOCKS - 1)
            tl.store(at + h * out_head, total.to(out.dtype.element_ty), mask=there)
    if QUERIES == 1:
        tl.store(at, total.to(out.dtype.element_ty), mask=given)


@triton.jit
def read_table(at, zero, WARPS: tl.constexpr):  # type: ignore[no-untyped-def]
    """A Count-Min table's estimates `[columns]` at the places `at [rows, columns]` of its cells.

    Atomic additions go to the second cache, which volatile loads read. ptxas would wait for one column's cells and take
    their minimum before it asks for the next column's. So every minimum here depends on all cells of its thread, by a
    number that is 0 at run time, and all are asked for before the first is waited for.
    """
    found = tl.load(at, volatile=True)
    SPAN: tl.constexpr = 32 * WARPS  # A thread's columns are that far from each other.
    if at.shape[1] > SPAN:
        bits = tl.reshape(found.to(tl.int32, bitcast=True), (at.shape[0], at.shape[1] // SPAN, SPAN))
        bits = bits | (tl.xor_sum(tl.xor_sum(bits, 0), 0) & zero)[None, None, :]
        found = tl.reshape(bits, at.shape).to(tl.float32, bitcast=True)
    return with_nan(tl.min(found, axis=0), tl.sum(found, axis=0))


@triton.jit
def divide_table(table, by, cells):  # type: ignore[no-untyped-def]
    """table ← table / by."""
    for first in range(0, cells, 256):
        at = table + first + tl.arange(0, 256)
        there = first + tl.arange(0, 256) < cells
        tl.store(at, tl.load(at, mask=there, cache_modifier=".cg") / by, mask=there)
    tl.debug_barrier()
