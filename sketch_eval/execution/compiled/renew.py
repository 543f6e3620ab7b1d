"""The policies of the compiled loop whose scores are made anew at each token, and what they remember for that."""

from __future__ import annotations

import numpy as np

from sketch_eval.execution.compiled.jit import F, compiled
from sketch_eval.execution.compiled.maths import exp, products
from sketch_eval.execution.compiled.sources import EXPECTED, FOLD_COST, KEYDIFF, LEARNED, SNAPKV, VATP


@compiled
def measure(source, values, sizes, s):  # type: ignore[no-untyped-def]
    """sizes[:, s] ← the norms of the values in slot s: with VATP and LEARNED that of all heads together, with VATP by
    absolute numbers."""
    if source == VATP:
        total = F(0.0)
        for h in range(values.shape[0]):
            for d in range(values.shape[2]):
                total += abs(values[h, s, d])
        sizes[0, s] = total
    if source == LEARNED:
        total = F(0.0)
        for h in range(values.shape[0]):
            for d in range(values.shape[2]):
                total += values[h, s, d] * values[h, s, d]
        sizes[0, s] = np.sqrt(total)
    if source == EXPECTED:
        for h in range(values.shape[0]):
            total = F(0.0)
            for d in range(values.shape[2]):
                total += values[h, s, d] * values[h, s, d]
            sizes[h, s] = np.sqrt(total)


@compiled
def recall(moments, keys, first, second, s):  # type: ignore[no-untyped-def]
    """first, second[:, s] ← the sums, over the queries so far, of each one's product with the key in slot s, and of its
    square."""
    queries, head_dim = first.shape[0], keys.shape[1]
    group = queries // keys.shape[0]
    for q in range(queries):
        once, twice = F(0.0), F(0.0)
        for d in range(head_dim):
            row = F(0.0)
            for e in range(head_dim):
                row += moments[q, d, e] * keys[q // group, e, s]
            twice += row * keys[q // group, d, s]
            once += moments[q, head_dim, d] * keys[q // group, d, s]
        first[q, s], second[q, s] = once, twice


@compiled
def remember(source, memory, moments, weight, first, second, query, keys, mass, part, decay, decays, m):  # type: ignore[no-untyped-def]
    """Take in a query: the mass that it gave each of m pairs, and, with EXPECTED, itself, scaled.

    decays are those of `policies.learned`.
    """
    if source in (VATP, FOLD_COST):
        for s in range(m):
            memory[0, s] = memory[0, s] * decay + mass[s]
    if source == LEARNED:
        for j in range(len(decays)):
            for s in range(m):
                memory[j, s] = memory[j, s] * decays[j] + mass[s]
    if source == SNAPKV:
        last = memory.shape[0] - 1
        for j in range(last):
            for s in range(m):
                memory[j, s] = memory[j + 1, s]
        for s in range(m):
            memory[last, s] = mass[s]
    if source == EXPECTED:
        head_dim, group = keys.shape[1], query.shape[0] // keys.shape[0]
        weight[0] = weight[0] * decay + F(1.0)
        for q in range(query.shape[0]):
            for d in range(head_dim):
                for e in range(head_dim):
                    moments[q, d, e] = moments[q, d, e] * decay + query[q, d] * query[q, e]
                moments[q, head_dim, d] = moments[q, head_dim, d] * decay + query[q, d]
            products(query[q], keys[q // group], part, m)
            for s in range(m):
                first[q, s] = first[q, s] * decay + part[s]
                second[q, s] = second[q, s] * decay + part[s] * part[s]


@compiled
def renew(source, held, scratch, t, reach, steps, least, m):  # type: ignore[no-untyped-def]
    """scores ← the estimates of m pairs when token t has come; held and scratch as `scan` has them.

    reach is that of `policies.snapkv`, cosines are told apart by so many steps to a 1, and least is that of
    `policies.learned`. With FOLD_COST first[0] is what `near` keeps.
    """
    scores, memory, weight, first, second, sizes, keys, norms, positions, where = held
    anchor, part, exponent, power = scratch
    if source == VATP:
        for s in range(m):
            scores[s] = memory[0, s] * sizes[0, s]
    if source == FOLD_COST:
        for s in range(m):
            scores[s] = memory[0, s] * (F(1.0) - first[0, s] / F(steps))
    if source == LEARNED:
        last = memory.shape[0] - 1
        for s in range(m):
            total = weight[0] + weight[last + 4] * memory[last, s]
            for j in range(last):
                total += weight[j + 1] * np.log(memory[j, s] + least)
            total += weight[last + 1] * np.log(F(t - positions[s] + 1))
            total += weight[last + 2] * np.log(max(norms[s], F(1e-6)))
            total += weight[last + 3] * np.log(max(sizes[0, s], F(1e-6)))
            scores[s] = np.exp(total)
    if source == SNAPKV:
        for s in range(m):
            part[s] = F(0.0)
        for j in range(memory.shape[0]):
            for s in range(m):
                part[s] += memory[j, s]
        for s in range(m):
            total = F(0.0)
            for there in range(max(positions[s] - reach, 0), min(positions[s] + reach, t) + 1):
                if where[there] >= 0:
                    total += part[where[there]]
            scores[s] = total / F(2 * reach + 1)
    if source == EXPECTED:
        queries, group = first.shape[0], first.shape[0] // sizes.shape[0]
        over = F(1.0) / max(weight[0], F(1e-30))
        for s in range(m):
            scores[s] = F(0.0)
        for q in range(queries):
            top = F(-3.0e38)
            for s in range(m):
                mean = first[q, s] * over
                part[s] = mean + (second[q, s] * over - mean * mean) / F(2.0)
                top = max(top, part[s])
            for s in range(m):
                part[s] -= top
            exp(part[:m], exponent[:m], power[:m])
            total = F(0.0)
            for s in range(m):
                total += part[s]
            for s in range(m):
                scores[s] += part[s] / total * sizes[q // group, s]
        for s in range(m):
            scores[s] /= F(queries)
    if source == KEYDIFF:
        heads, head_dim = keys.shape[0], keys.shape[1]
        for s in range(m):
            part[s] = F(1.0) / max(norms[s], F(1e-12))
            scores[s] = F(0.0)
        size = F(0.0)
        for h in range(heads):
            for d in range(head_dim):
                a = b = c = e = F(0.0)
                for s in range(0, m - 3, 4):
                    a += keys[h, d, s] * part[s]
                    b += keys[h, d, s + 1] * part[s + 1]
                    c += keys[h, d, s + 2] * part[s + 2]
                    e += keys[h, d, s + 3] * part[s + 3]
                for s in range(m - m % 4, m):
                    a += keys[h, d, s] * part[s]
                anchor[d] = a + b + c + e
                size += anchor[d] * anchor[d]
            for d in range(head_dim):
                for s in range(m):
                    scores[s] += anchor[d] * keys[h, d, s]
        size = max(np.sqrt(size), F(1e-12))
        for s in range(m):
            cosine = scores[s] * part[s] / size
            scores[s] = F(1.0) - np.floor(cosine * F(steps) + F(0.5)) / F(steps)
