"""Arithmetic of the compiled loop: plain loops over float32 arrays, of which LLVM makes vector ones."""

from __future__ import annotations

import numpy as np

from sketch_eval.execution.compiled.jit import F, compiled


@compiled
def exp(x, exponent, power):  # type: ignore[no-untyped-def]
    """x ← e^x for float32 x ≤ 0, to 2 ulp: the loop is a vector one, which calls of the C library's are not.

    `exponent` is int32 scratch of the same length and `power` a float32 view of it.
    """
    for i in range(x.shape[0]):
        a = max(x[i], F(-87.0))
        n = np.floor(a * F(1.44269504) + F(0.5))
        r = a - n * F(0.693359375) - n * F(-2.12194440e-4)
        p = F(1.9875691500e-4)
        p = p * r + F(1.3981999507e-3)
        p = p * r + F(8.3334519073e-3)
        p = p * r + F(4.1665795894e-2)
        p = p * r + F(1.6666665459e-1)
        p = p * r + F(5.0000001201e-1)
        x[i] = p * r * r + r + F(1.0)
        exponent[i] = (np.int32(n) + np.int32(127)) << np.int32(23)
    for i in range(x.shape[0]):
        x[i] *= power[i]


@compiled
def products(vector, columns, out, m):  # type: ignore[no-untyped-def]
    """out[s] ← Σ_d vector[d]·columns[d, s] for the first m columns."""
    for s in range(m):
        out[s] = F(0.0)
    for d in range(0, vector.shape[0] - 3, 4):
        a, b, c, e = vector[d], vector[d + 1], vector[d + 2], vector[d + 3]
        for s in range(m):
            out[s] += a * columns[d, s] + b * columns[d + 1, s] + c * columns[d + 2, s] + e * columns[d + 3, s]
    for d in range(vector.shape[0] - vector.shape[0] % 4, vector.shape[0]):
        a = vector[d]
        for s in range(m):
            out[s] += a * columns[d, s]


@compiled
def mixture(weights, rows, out, m):  # type: ignore[no-untyped-def]
    """out[d] ← Σ_s weights[s]·rows[s, d] over the first m rows."""
    for d in range(out.shape[0]):
        out[d] = F(0.0)
    for s in range(0, m - 3, 4):
        a, b, c, e = weights[s], weights[s + 1], weights[s + 2], weights[s + 3]
        for d in range(out.shape[0]):
            out[d] += a * rows[s, d] + b * rows[s + 1, d] + c * rows[s + 2, d] + e * rows[s + 3, d]
    for s in range(m - m % 4, m):
        a = weights[s]
        for d in range(out.shape[0]):
            out[d] += a * rows[s, d]


@compiled
def norm(keys, s):  # type: ignore[no-untyped-def]
    """The norm of the concatenated key in slot s."""
    total = F(0.0)
    for h in range(keys.shape[0]):
        for d in range(keys.shape[1]):
            total += keys[h, d, s] * keys[h, d, s]
    return np.sqrt(total)


@compiled
def to_12_digits(x):  # type: ignore[no-untyped-def]
    """As in `policies.knorm`; a fused product and difference round otherwise than that near ties alone."""
    shifted = x * F(4097.0)
    return shifted - (shifted - x)
