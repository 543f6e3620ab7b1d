"""How near every pair's nearest is, kept up to date in the compiled loop as pairs come, change and go."""

from __future__ import annotations

import numpy as np

from sketch_eval.execution.compiled.jit import F, compiled
from sketch_eval.execution.compiled.maths import products


@compiled
def _look_from(s, keys, norms, positions, vector, dots, part, steps):  # type: ignore[no-untyped-def]
    """dots[j] ← the cosine of the keys in slots s and j, in whole steps; -steps for s itself and for free slots."""
    slots = keys.shape[2]
    for j in range(slots):
        dots[j] = F(0.0)
    for h in range(keys.shape[0]):
        for d in range(keys.shape[1]):
            vector[d] = keys[h, d, s]
        products(vector, keys[h], part, slots)
        for j in range(slots):
            dots[j] += part[j]
    for j in range(slots):
        if j == s or positions[j] < 0:
            dots[j] = F(-steps)
        else:
            cosine = dots[j] / (max(norms[s], F(1e-12)) * max(norms[j], F(1e-12)))
            dots[j] = np.floor(cosine * F(steps) + F(0.5))


@compiled
def find_nearest(s, near, which, keys, norms, positions, vector, dots, part, steps):  # type: ignore[no-untyped-def]
    """near[s] ← the largest cosine of the key in slot s with another's, in whole steps; which[s] ← that slot."""
    _look_from(s, keys, norms, positions, vector, dots, part, steps)
    near[s], which[s] = F(-steps), -1
    for j in range(keys.shape[2]):
        if dots[j] > near[s]:
            near[s], which[s] = dots[j], j


@compiled
def has_come(s, near, which, keys, norms, positions, vector, dots, part, steps):  # type: ignore[no-untyped-def]
    """Bring near and which up to date when slot s holds a new pair, or its key has changed."""
    find_nearest(s, near, which, keys, norms, positions, vector, dots, part, steps)
    for j in range(keys.shape[2]):  # The cosines are still in dots, which only s has looked through.
        if j != s and positions[j] >= 0 and which[j] != s and dots[j] > near[j]:
            near[j], which[j] = dots[j], s
    has_gone(s, near, which, keys, norms, positions, vector, dots, part, steps)


@compiled
def has_gone(s, near, which, keys, norms, positions, vector, dots, part, steps):  # type: ignore[no-untyped-def]
    """The same when what was in slot s is no longer there, for those whose nearest it was."""
    for j in range(keys.shape[2]):
        if which[j] == s and positions[j] >= 0:
            find_nearest(j, near, which, keys, norms, positions, vector, dots, part, steps)
