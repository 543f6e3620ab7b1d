"""Numbers of one layer's pass, by key/value head: what was lost, and whether the ranking knew."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from sketch_eval.config import CacheConfig
from sketch_eval.diagnose.watch import Layer
from sketch_eval.policies import FATES

Measures = dict[str, list[float]]
"""By measure, a number for each key/value head of a layer; not a number where there is none to be had."""

MEASURES = {
    "lost": "attention that the full cache's queries, the same ones, give to pairs no longer held",
    "kl": "Kullback-Leibler divergence of the cell's attention from the full cache's for the same queries, in nats; "
    "not for cells that fold, whose pairs are not the full cache's",
    "cosine": "cosine of the cell's output with the full cache's for the same queries",
    "rank_exact": "rank correlation (Spearman) of the estimates with the exact sums of the mass that they estimate, "
    "over the unprotected pairs; not for cells that fold or hide",
    "rank_to_come": "the same with the mass that the full cache's later queries give",
    "overestimate": "what a Count-Min Sketch's estimates are over the exact sums, as a share of the bound "
    "(e/width)·total mass (docs/design.md §3)",
    "age_median": "median age of the held pairs at the end of a text, in tokens",
    "age_90": "age that a tenth of them exceed",
}
"""What is measured, in a reader's words."""


def measure(layer: Layer, cell: CacheConfig) -> Measures:
    """The measures of one layer: of its attention the means over the queries that came when the cache was full, of its
    ranking those over the looks at it since then.

    Memory grows with the text times `STRIDE`.
    """
    attended = _attention(layer, cell)
    ranked = [_ranking(layer, cell, unit, attended) for unit in range(layer.units)]
    each = len(layer.k) // layer.units
    return attended.means | {name: [of[name] for of in ranked for _ in range(each)] for name in ranked[0]}


@dataclass(frozen=True)
class Compared:
    """A layer's attention, beside that of the full cache for the same queries.

    Attributes:
        means: `lost`, `kl` and `cosine` by key/value head.
        exact: at each look the exact sums, with the cell's decay, of what queries gave each pair, float64
            `[units, tokens]`; empty where the cell folds or hides.
        to_come: at each look the mass that the full cache's later queries give, float64 `[units, tokens]`.
    """

    means: Measures
    exact: list[torch.Tensor]
    to_come: list[torch.Tensor]


def _attention(layer: Layer, cell: CacheConfig) -> Compared:
    assert cell.max_cache_size is not None
    heads, length = layer.k.shape[:2]
    plain = not FATES[cell.strategy].counts and cell.visible is None
    gone = _gone(layer, length).repeat_interleave(heads // layer.units, 0)
    place = torch.arange(length)
    totals = {name: torch.zeros(heads) for name in ("lost", "kl", "cosine")}
    exact, given, asked = [torch.zeros(layer.units, length, dtype=torch.float64)], [], 0
    for first, end in itertools.pairwise([0, *(look.length for look in layer.looks)]):
        rows = place[first:end, None]
        causal = place <= rows
        q, mine = (of[:, first:end].unflatten(0, (heads, -1)) for of in (layer.q, layer.output))
        full = torch.einsum("hgtd,hsd->hgts", q, layer.k).masked_fill(~causal, float("-inf")).softmax(-1)
        kept = full * (gone[:, None] >= rows)[:, None]
        given.append(_by_unit(full, layer.units).sum(1))
        if plain:
            mass = _by_unit(kept / kept.sum(-1, keepdim=True), layer.units)
            faded = cell.decay ** (end - 1 - rows[:, 0]).double()
            exact.append(exact[-1] * cell.decay ** (end - first) + torch.einsum("uqt,q->ut", mass, faded))
        lost = (1 - kept.sum(-1)).clamp(min=0)
        output = torch.einsum("hgts,hsd->hgtd", full, layer.v)
        late = rows[:, 0] >= cell.max_cache_size
        asked += int(late.sum())
        # Of what is left of a softmax, the divergence from the whole is minus the log of how much is left.
        kl, alike = -torch.log1p(-lost), torch.cosine_similarity(mine, output, dim=-1)
        for name, of_query in (("lost", lost), ("kl", kl), ("cosine", alike)):
            totals[name] += of_query.mean(1)[:, late].sum(-1)
    means = {name: (total / asked if asked else total * math.nan).tolist() for name, total in totals.items()}
    if not plain:
        means["kl"] = [math.nan] * heads
    later = torch.stack(given).flip(0).cumsum(0).flip(0)
    return Compared(means, exact[1:], [*later[1:], torch.zeros_like(later[0])])


def _ranking(layer: Layer, cell: CacheConfig, unit: int, attended: Compared) -> dict[str, float]:
    """What a unit's estimates are worth, and how old the pairs are that it holds."""
    assert cell.max_cache_size is not None
    sinks, recent = cell.protected(cell.max_cache_size)
    bounded = cell.importance == "count_min" and cell.item == "position"
    found: dict[str, list[float]] = {"rank_exact": [], "rank_to_come": [], "overestimate": []}
    for number, look in enumerate(layer.looks):
        if look.length <= cell.max_cache_size:
            continue
        free = (look.positions[unit] >= sinks) & (look.positions[unit] < look.length - recent)
        positions, estimates = look.positions[unit][free], look.importance[unit][free].double()
        found["rank_to_come"].append(_correlation(estimates, attended.to_come[number][unit, positions]))
        if attended.exact:
            exact = attended.exact[number][unit, positions]
            found["rank_exact"].append(_correlation(estimates, exact))
            if bounded:
                total = sum(cell.decay**age for age in range(look.length))
                found["overestimate"].append(float((estimates - exact).mean()) / (math.e / cell.width * total))
    known = {name: [value for value in values if not math.isnan(value)] for name, values in found.items()}
    last = layer.looks[-1]
    ages = (last.length - 1 - last.positions[unit][last.positions[unit] >= 0]).double()
    return {name: sum(values) / len(values) if values else math.nan for name, values in known.items()} | {
        "age_median": float(ages.quantile(0.5)),
        "age_90": float(ages.quantile(0.9)),
    }


def _gone(layer: Layer, length: int) -> torch.Tensor:
    """The last query that sees each pair, int64 `[units, tokens]`."""
    gone = torch.full((layer.units, length), length)
    unit, step = (layer.trace.victims >= 0).nonzero(as_tuple=True)
    gone[unit, layer.trace.victims[unit, step].long()] = step
    return gone


def _by_unit(weights: torch.Tensor, units: int) -> torch.Tensor:
    """Weights `[kv_heads, group, queries, tokens]` as masses `[units, queries, tokens]`."""
    return weights.unflatten(0, (units, -1)).flatten(1, 2).mean(1).double()


def _correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    """Spearman's rank correlation; not a number where one of the two says nothing."""
    if len(one) < 3 or not np.ptp(one.numpy()) or not np.ptp(other.numpy()):
        return math.nan
    return float(stats.spearmanr(one.numpy(), other.numpy()).statistic)
