"""Folding in the compiled loop: which pair takes the victim in, and how."""

from __future__ import annotations

import numpy as np

from sketch_eval.execution.compiled.jit import F, compiled, exactly
from sketch_eval.execution.compiled.maths import norm, products


@compiled
def nearest(victim, keys, norms, positions, sinks, newest_free, vector, dots, part, m, steps):  # type: ignore[no-untyped-def]
    """The unprotected pair whose concatenated key has the largest cosine with the victim's, or -1 where none is.

    Where there are `steps`, cosines are told apart by so many to a 1.
    """
    heads, head_dim = keys.shape[0], keys.shape[1]
    for s in range(m):
        dots[s] = F(0.0)
    for h in range(heads):
        for d in range(head_dim):
            vector[d] = keys[h, d, victim]
        products(vector, keys[h], part, m)
        for s in range(m):
            dots[s] += part[s]
    best, found = F(-3.0e38), -1
    for s in range(m):
        if s == victim or positions[s] < sinks or positions[s] > newest_free:
            continue
        cosine = dots[s] / max(norms[s] * norms[victim], F(1e-12))
        if steps > 0:
            cosine = np.floor(cosine * F(steps) + F(0.5))
        if cosine > best or (cosine == best and positions[s] < positions[found]):
            best, found = cosine, s
    return found


@compiled
def nearest_in_place(victim, positions, sinks, newest_free, m):  # type: ignore[no-untyped-def]
    """The unprotected pair with the position nearest to the victim's, the older of two, or -1 where none is."""
    found = -1
    for s in range(m):
        if s == victim or positions[s] < sinks or positions[s] > newest_free:
            continue
        off, best = abs(positions[s] - positions[victim]), abs(positions[found] - positions[victim])
        if found < 0 or off < best or (off == best and positions[s] < positions[found]):
            found = s
    return found


@exactly
def merge(into, victim, keys, values, counts, logn, norms, both, weighs):  # type: ignore[no-untyped-def]
    """Make the survivor's value, and where it is both its key, the mean over all the tokens of both pairs."""
    total = counts[into] + counts[victim]
    mine, its = counts[into], counts[victim]
    for h in range(keys.shape[0]):
        for d in range(keys.shape[1]):
            if both:
                keys[h, d, into] = (keys[h, d, into] * mine + keys[h, d, victim] * its) / total
            values[h, into, d] = (values[h, into, d] * mine + values[h, victim, d] * its) / total
    counts[into] = total
    if weighs:
        logn[into] = np.log(total)
    norms[into] = norm(keys, into)


@compiled
def turn(keys, turned, slot, by, speeds):  # type: ignore[no-untyped-def]
    """Write a slot's keys to `turned` as they would be so many positions later (`rotary.turn`)."""
    pairs = len(speeds)
    for d in range(pairs):
        angle = np.float32(by) * speeds[d]
        cos, sin = np.cos(angle), np.sin(angle)
        for h in range(keys.shape[0]):
            real, imaginary = keys[h, d, slot], keys[h, pairs + d, slot]
            turned[h, d, slot] = real * cos - imaginary * sin
            turned[h, pairs + d, slot] = imaginary * cos + real * sin
    for h in range(keys.shape[0]):
        for d in range(2 * pairs, keys.shape[1]):
            turned[h, d, slot] = keys[h, d, slot]
