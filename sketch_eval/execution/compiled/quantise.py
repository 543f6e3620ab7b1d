"""Quantising a vector in the compiled loop, as `formats.Quantised` does it."""

from __future__ import annotations

import numpy as np

from sketch_eval.execution.compiled.jit import F, exactly


@exactly
def half(x, bits, number):  # type: ignore[no-untyped-def]
    """A float32 rounded to float16's numbers, ties to even; `bits` is int32 scratch and `number` a float32 view of it.

    Numba has no float16 on a CPU.
    """
    if abs(x) < F(2.0**-14):  # Subnormal: multiples of 2^-24, as are the float32 numbers from 1/2 to 1.
        return (x + F(0.75)) - F(0.75)
    number[0] = x
    bits[0] = (bits[0] + np.int32(0xFFF) + ((bits[0] >> np.int32(13)) & np.int32(1))) & np.int32(~0x1FFF)
    return number[0]


HALF = -1
"""In place of the largest code: numbers are float16."""


@exactly
def quantise(vector, levels, group, grid, bits, number):  # type: ignore[no-untyped-def]
    """vector ← its nearest on a grid of its own; grid `[groups, 2]` ← scales and zeros; the scratch is as in `half`."""
    if levels == HALF:
        for d in range(vector.shape[0]):
            vector[d] = half(vector[d], bits, number)
        return
    largest = F(65504.0)
    for g in range(grid.shape[0]):
        first, end = g * group, min((g + 1) * group, vector.shape[0])
        low = high = vector[first]
        for d in range(first, end):
            if np.isnan(vector[d]):
                low = high = F(np.nan)
                break
            low, high = min(low, vector[d]), max(high, vector[d])
        zero = half(min(max(low, -largest), largest), bits, number)
        scale = half(min(max((high - zero) / F(levels), F(0.0)), largest), bits, number)
        if np.isnan(low):
            zero = scale = F(np.nan)
        grid[g, 0], grid[g, 1] = scale, zero
        for d in range(first, end):
            code = F(0.0)
            if scale > F(0.0):
                code = min(max(np.rint((vector[d] - zero) / scale), F(0.0)), F(levels))
            vector[d] = code * scale + zero
