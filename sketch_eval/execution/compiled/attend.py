"""Attention of one query in the compiled loop."""

from __future__ import annotations

from sketch_eval.execution.compiled.jit import F, compiled
from sketch_eval.execution.compiled.maths import exp, mixture, products


@compiled
def attend(q, keys, values, logn, seen, p, exponent, power, mass, out, m):  # type: ignore[no-untyped-def]
    """out[h] ← attention of the scaled query over the seen ones of m pairs; mass ← its weights' mean over heads.

    The heads of q share those of keys and values in equal groups that lie side by side.
    """
    heads = q.shape[0]
    group = heads // keys.shape[0]
    for s in range(m):
        mass[s] = F(0.0)
    for h in range(heads):
        weights = p[h, :m]
        products(q[h], keys[h // group], weights, m)
        top = F(-3.0e38)
        for s in range(m):
            weights[s] = weights[s] + logn[s] if seen[s] else F(-3.0e38)
            top = weights[s] if weights[s] > top else top
        for s in range(m):
            weights[s] -= top
        exp(weights, exponent[:m], power[:m])
        total = F(0.0)
        for s in range(m):
            weights[s] = weights[s] if seen[s] else F(0.0)
            total += weights[s]
        share = F(1.0) / total
        for s in range(m):
            weights[s] *= share
            mass[s] += weights[s]
        mixture(weights, values[h // group], out[h], m)
    for s in range(m):
        mass[s] /= F(heads)
