"""The parts of the kernel that are matrix products, and what its steps share."""

from __future__ import annotations

import triton
import triton.language as tl

STAGES = tl.constexpr(3)
"""Turns of a loop that are under way at once: places of vectors, vectors, products."""

NONE = tl.constexpr(2**31 - 1)


@triton.jit
def order_key(value, position, column):  # type: ignore[no-untyped-def]
    """int64 numbers in the order of (value, position), the column in the low 10 bits; -0 is 0, and NaN not allowed."""
    bits = (value + 0.0).to(tl.int32, bitcast=True)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (bits.to(tl.int64) << 31) | (position.to(tl.int64) << 10) | column


@triton.jit
def oldest_least(value, among, position, column):  # type: ignore[no-untyped-def]
    """Position · 1024 + column of the least value among some, ties to the oldest; NONE where there are none."""
    value = tl.where(among, value, float("inf"))
    ties = among & (value == tl.min(value, axis=0))
    return tl.min(tl.where(ties, (position << 10) | column, NONE), axis=0)


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
    for turn in tl.range(0, QUERIES * BLOCKS, num_stages=STAGES):
        h, column = turn // BLOCKS, turn % BLOCKS * BW + w
        at = q + h * q_head + token[:, None] * q_token + d[None, :]
        query = tl.load(at, mask=(i < steps)[:, None] & (d < D)[None, :], other=0.0)
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
def output_chunk(  # type: ignore[no-untyped-def]
    out, pool, src_at, columns_at, weights, chunk, steps, out_head, out_token, P,
    QUERIES: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, B: tl.constexpr, W: tl.constexpr,
    BW: tl.constexpr, USED: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """out[token of i, h] ← Σ_w weights[h, i, w]·value[w].

    Values in half precision meet the weights in two halves, which together have more digits than the output.
    """
    i, d, w = tl.arange(0, B), tl.arange(0, DP), tl.arange(0, BW)
    BLOCKS: tl.constexpr = (USED + BW - 1) // BW
    token = tl.load(columns_at + chunk + i, mask=i < steps, other=0)
    total = tl.zeros((B, DP), tl.float32)
    for turn in tl.range(0, QUERIES * BLOCKS, num_stages=STAGES):
        h, block = turn // BLOCKS, turn % BLOCKS
        column = block * BW + w
        there = (i < steps)[:, None] & (column < USED)[None, :]
        weight = tl.load(weights + (h * B + i[:, None]) * W + column[None, :], mask=there, other=0.0)
        value = vectors_at(pool, h // GROUP, tl.load(src_at + column, mask=column < USED, other=-1), P, D, DP)
        if HALF:
            high = weight.to(value.dtype)
            found = tl.dot((weight - high.to(tl.float32)).to(value.dtype), value)
            found = tl.dot(high, value, found)
        else:
            found = product(weight, value, HALF)
        total = tl.where(block == 0, found, total + found)
        at = out + h * out_head + token[:, None] * out_token + d[None, :]
        there = (i < steps)[:, None] & (d < D)[None, :] & (block == BLOCKS - 1)
        tl.store(at, total.to(out.dtype.element_ty), mask=there)


@triton.jit
def shared_cells(owners, column, there):  # type: ignore[no-untyped-def]
    """Which cells, of those that are there, several columns have; `owners [rows, columns]` are their places in scratch.

    Every column writes its number to its cells. Who does not find it there tells whoever wrote over it.
    """
    mine = tl.broadcast_to(column[None, :], there.shape)
    tl.store(owners, mine, mask=there)
    tl.debug_barrier()
    beaten = there & (tl.load(owners, mask=there, other=0, volatile=True) != mine)
    tl.debug_barrier()
    tl.store(owners, -1, mask=beaten)
    tl.debug_barrier()
    return there & (tl.load(owners, mask=there, other=0, volatile=True) == -1)


@triton.jit
def read_table(at, there, zero, WARPS: tl.constexpr):  # type: ignore[no-untyped-def]
    """A Count-Min table's numbers at the places `at [rows, columns]` of its cells, of those that are there.

    Atomic additions go to the second cache, which volatile loads read. ptxas would wait for one column's cells and take
    their minimum before it asks for the next column's. So every number here depends on all cells of its thread, by a
    number that is 0 at run time, and all are asked for before the first is waited for.
    """
    found = tl.load(at, mask=there, other=0.0, volatile=True)
    SPAN: tl.constexpr = 32 * WARPS  # A thread's columns are that far from each other.
    if at.shape[1] > SPAN:
        bits = tl.reshape(found.to(tl.int32, bitcast=True), (at.shape[0], at.shape[1] // SPAN, SPAN))
        bits = bits | (tl.xor_sum(tl.xor_sum(bits, 0), 0) & zero)[None, None, :]
        found = tl.reshape(bits, at.shape).to(tl.float32, bitcast=True)
    return found


@triton.jit
def divide_table(table, by, cells):  # type: ignore[no-untyped-def]
    """table ← table / by."""
    for first in range(0, cells, 256):
        at = table + first + tl.arange(0, 256)
        there = first + tl.arange(0, 256) < cells
        tl.store(at, tl.load(at, mask=there, cache_modifier=".cg") / by, mask=there)
    tl.debug_barrier()


@triton.jit
def mix(  # type: ignore[no-untyped-def]
    keys, values, one, two, n_one, n_two, into, P, there,
    HEADS: tl.constexpr, HP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """The keys and values of all heads at `into` ← the means over the tokens of two pairs."""
    h, d = tl.arange(0, HP), tl.arange(0, DP)
    at, mask = h[:, None] * (P * D) + d[None, :], there & (h < HEADS)[:, None] & (d < D)[None, :]
    first_key = tl.load(keys + at + one * D, mask=mask, other=0.0, volatile=True)
    second_key = tl.load(keys + at + two * D, mask=mask, other=0.0, volatile=True)
    first_value = tl.load(values + at + one * D, mask=mask, other=0.0, volatile=True)
    second_value = tl.load(values + at + two * D, mask=mask, other=0.0, volatile=True)
    key = (first_key.to(tl.float32) * n_one + second_key.to(tl.float32) * n_two) / (n_one + n_two)
    value = (first_value.to(tl.float32) * n_one + second_value.to(tl.float32) * n_two) / (n_one + n_two)
    tl.store(keys + at + into * D, key.to(keys.dtype.element_ty), mask=mask)
    tl.store(values + at + into * D, value.to(values.dtype.element_ty), mask=mask)
