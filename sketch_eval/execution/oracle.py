"""The oracle: one step of the cache, token by token, to be read beside docs/design.md §2. Slow, and the standard."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from sketch_eval.call import Call, Trace
from sketch_eval.config import CacheConfig
from sketch_eval.foresight import Attended, Fitted, Losses
from sketch_eval.hashing import sign_hash, uniform
from sketch_eval.policies.items import KEY_BITS
from sketch_eval.sketches import CountMinSketch, CountSketch, RaceSketch, Sketch
from sketch_eval.state import LayerState

SPELT = (
    *("count_min", "count_sketch", "race", "race_queries", "exact", "last", "recency", "random", "knorm", "vatp"),
    *("snapkv", "expected", "keydiff", "fold_cost", "learned", "surprisal", "clairvoyant", "adaptive"),
)
"""The policies that it knows: each has its own words here."""

FATES_SPELT = (
    *("topk", "aggregate", "aggregate_values", "aggregate_turned", "aggregate_near", "aggregate_unweighted"),
)
"""The fates, likewise."""

KEY, VALUE = 0, 1


@dataclass(eq=False)
class Pair:
    """A stored pair: key and value `[kv_heads, head_dim]`, position, item, folded count and a score of its own.

    recent is the mass that each query gave it since it came.
    """

    key: torch.Tensor
    value: torch.Tensor
    position: int
    item: torch.Tensor
    n: float = 1.0
    score: float = 0.0
    recent: tuple[float, ...] = ()


@dataclass
class Step:
    """What one token decided.

    Attributes:
        victim: position that left, or -1.
        survivor: position that it was folded into, or -1.
        hidden: stored pairs that the query did not see.
        margin: how clearly it was decided: the smallest gap, relative to their size, between what was chosen and
            the next best. Within float32's rounding another execution may rightly choose otherwise. Infinite where
            there was no choice, or an exact tie, which goes to the oldest everywhere.
    """

    victim: int = -1
    survivor: int = -1
    hidden: int = 0
    margin: float = float("inf")

    def look_at(self, chosen: float, others: Iterable[float]) -> None:
        """Narrow the margin to the gap between the number that was chosen and the others."""
        gaps = [abs(other - chosen) / max(abs(other), abs(chosen)) for other in others if other != chosen]
        self.margin = min([self.margin, *gaps])


class Oracle:
    """One layer's cache for one sequence, or that of one key/value head of it.

    Args:
        cell: the cell.
        layer: index of the layer, which seeds the hashes.
        head: with scope=head, which key/value head, which seeds them too; None where the layer's share one store.
        speeds: radians a position of the rotary keys, float32 `[pairs]`; None where there are none.
        attention: of the full cache's queries over the same text, the mass of each pair up to the query's own, one
            after the other; None unless importance=clairvoyant.
        losses: what the full cache lost on each token; none unless importance=surprisal.
        fitted: the coefficients of importance=learned, for this head.
    """

    def __init__(
        self,
        cell: CacheConfig,
        layer: int,
        head: int | None = None,
        speeds: torch.Tensor | None = None,
        attention: list[torch.Tensor] | None = None,
        losses: Sequence[float] = (),
        fitted: Sequence[float] = (),
    ) -> None:
        assert cell.max_cache_size is not None
        self.cell, self.layer, self.cap, self.speeds = cell, layer, cell.max_cache_size, speeds
        self.attention, self.losses, self.answered = attention, losses, 0
        self.fitted, self.tokens = fitted, list[int]()
        self.stream = layer if head is None else 2**32 * (head + 1) + layer
        self.room = self.cap
        self.pairs: list[Pair] = []
        self.t = -1
        self.sketch = self._make_sketch()
        self.queries: list[torch.Tensor] = []
        self.entropies: list[float] = []

    def step(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, token: int, scaling: float
    ) -> tuple[torch.Tensor, Step]:
        """Output `[query heads, head_dim]` of one token with as large a query, key and value `[kv_heads, head_dim]`.

        Query heads share the key/value heads in equal groups that lie side by side.
        """
        cell, decided = self.cell, Step()

        # 1. Append.
        self.t += 1
        self.tokens.append(token)
        k, v = self._kept(k, KEY), self._kept(v, VALUE)
        self.pairs.append(Pair(k, v, self.t, self._item(token, k)))

        # 2. Rank and attend.
        visible = self._visible(decided)
        decided.hidden = len(self.pairs) - len(visible)
        group = len(q) // len(k)
        keys = torch.stack([pair.key for pair in visible], dim=1).repeat_interleave(group, dim=0)
        values = torch.stack([pair.value for pair in visible], dim=1).repeat_interleave(group, dim=0)
        tokens = [1.0 if cell.strategy == "aggregate_unweighted" else pair.n for pair in visible]
        logn = torch.tensor(tokens, dtype=torch.float32).log()
        weights = torch.softmax(torch.einsum("hd,hsd->hs", q.float(), keys) * scaling + logn, dim=-1)
        output = torch.einsum("hs,hsd->hd", weights, values)
        self.entropies.append(float(-torch.special.xlogy(weights.double(), weights.double()).sum(-1).mean()))

        # 3. Account.
        mass = weights.mean(dim=0)
        self.queries.append(q.float() * scaling)
        if cell.importance == "race_queries":
            assert isinstance(self.sketch, RaceSketch)
            asked = self.sketch.encode(q.float().unflatten(0, (len(k), group)).mean(1).flatten())
            self.sketch.scale(cell.decay)
            self.sketch.update(asked[None, None], torch.ones(1, 1))
        elif self.sketch is not None:
            self.sketch.scale(cell.decay)
            self.sketch.update(torch.stack([pair.item for pair in visible])[None], mass[None])
        for pair in self.pairs:
            if cell.importance in ("exact", "vatp", "fold_cost"):
                pair.score *= cell.decay
            elif cell.importance == "last":
                pair.score = 0.0
        for pair, weight in zip(visible, mass.tolist(), strict=True):
            pair.score += weight
        given = {pair.position: weight for pair, weight in zip(visible, mass.tolist(), strict=True)}
        for pair in self.pairs:
            pair.recent += (given.get(pair.position, 0.0),)
        self.answered += 1

        # 4. Bound.
        if len(self.pairs) > self.room:
            candidates = self.unprotected()
            importance = {pair.position: self.importance(pair) for pair in candidates}
            victim = min(candidates, key=lambda pair: (importance[pair.position], pair.position))
            decided.look_at(importance[victim.position], importance.values())
            self.look_at_rounding(victim, candidates, decided)
            self.pairs.remove(victim)
            candidates.remove(victim)
            decided.victim = victim.position
            if cell.strategy != "topk" and candidates:
                decided.survivor = self.fold(victim, candidates, decided)
        return output, decided

    def _visible(self, decided: Step) -> list[Pair]:
        k = self.cell.visible
        if k is None or k >= len(self.pairs):
            return self.pairs
        sinks, recent = self.cell.protected(k)
        newest_first = self.pairs[::-1]
        first = [p for p in newest_first if p.position == self.t]
        first += [p for p in newest_first if p not in first and (p.position < sinks or p.position > self.t - recent)]
        importance = {pair.position: self.importance(pair) for pair in self.pairs if pair not in first}
        others = [pair for pair in self.pairs if pair not in first]
        others.sort(key=lambda pair: (-importance[pair.position], pair.position))
        last_in, hidden = others[: max(k - len(first), 0)][-1:], others[max(k - len(first), 0) :]
        if last_in:
            decided.look_at(importance[last_in[0].position], [importance[pair.position] for pair in hidden])
            self.look_at_rounding(last_in[0], hidden, decided)
        return (first + others)[:k]

    def unprotected(self) -> list[Pair]:
        sinks, recent = self.cell.protected(self.cap)
        return [pair for pair in self.pairs if sinks <= pair.position <= self.t - recent]

    def importance(self, pair: Pair) -> float:
        estimate = self._estimate(pair)
        importance = estimate / (self.t - pair.position + 1) if self.cell.normalize == "age" else estimate
        return -math.inf if math.isnan(importance) else importance

    def _estimate(self, pair: Pair) -> float:
        match self.cell.importance:
            case "exact" | "last":
                return pair.score
            case "recency":
                return float(pair.position)
            case "random":
                return uniform(torch.tensor(pair.position), self.cell.seed, self.stream).item()
            case "knorm":
                return -_rounded(pair.key.norm().item())
            case "vatp":
                return pair.score * pair.value.abs().sum().item()
            case "snapkv":
                near = [other for other in self.pairs if abs(other.position - pair.position) <= 2]
                return sum(sum(other.recent[-16:]) for other in near) / 5
            case "surprisal":
                return self.losses[pair.position]
            case "keydiff":
                return 1 - math.floor(self._to_mean(pair) * 4096 + 0.5) / 4096
            case "expected":
                return self._expected()[pair.position]
            case "fold_cost":
                return pair.score * (1 - math.floor(self._to_nearest(pair) * 4096 + 0.5) / 4096)
            case "learned":
                return self._expected_yet(pair)
            case "clairvoyant":
                assert self.attention is not None
                later = [float(row[pair.position]) for row in self.attention[max(self.answered, pair.position) :]]
                return sum(later) if sum(later) >= 1e-9 else 0.0
        assert self.sketch is not None
        return self.sketch.estimate(pair.item[None, None]).item()

    def _expected(self) -> dict[int, float]:
        """By position, the attention of a Gaussian of the queries so far, times the norm of the value."""
        asked, group = torch.stack(self.queries, 1).double(), len(self.queries[0]) // len(self.pairs[0].key)
        ages = torch.arange(asked.shape[1] - 1, -1, -1, dtype=torch.float64)
        weights = self.cell.decay**ages / (self.cell.decay**ages).sum()
        each = []
        for head, queries in enumerate(asked):
            mean = (weights[:, None] * queries).sum(0)
            spread = torch.einsum("t,td,te->de", weights, queries - mean, queries - mean)
            keys = torch.stack([pair.key[head // group] for pair in self.pairs]).double()
            sizes = torch.stack([pair.value[head // group].norm() for pair in self.pairs]).double()
            each.append(torch.softmax(keys @ mean + torch.einsum("nd,de,ne->n", keys, spread, keys) / 2, 0) * sizes)
        found = torch.stack(each).mean(0)
        return {pair.position: float(value) for pair, value in zip(self.pairs, found, strict=True)}

    def _expected_yet(self, pair: Pair) -> float:
        """What the regression makes of a pair's past."""
        came, by_age = self.tokens[pair.position + 1 : self.answered], pair.recent[::-1]
        masses = [sum(weight * decay**age for age, weight in enumerate(by_age)) for decay in (1, 0.99, 0.9)]
        sizes = [self.t - pair.position + 1, pair.key.norm().item(), pair.value.norm().item()]
        known = [1.0, *(math.log(mass + 1e-4) for mass in masses), *(math.log(max(size, 1e-6)) for size in sizes)]
        known.append(float(self.tokens[pair.position] in came))
        return math.exp(sum(weight * feature for weight, feature in zip(self.fitted, known, strict=True)))

    def fold(self, victim: Pair, candidates: list[Pair], decided: Step) -> int:
        cosine = {}
        for pair in candidates:
            key = self._brought(victim, pair)
            norms = (pair.key.norm() * key.norm()).clamp(min=1e-12)
            cosine[pair.position] = ((pair.key * key).sum() / norms).item()
            if self.cell.strategy == "aggregate_near":
                cosine[pair.position] = float(-abs(pair.position - victim.position))
        candidates = [pair for pair in candidates if not math.isnan(cosine[pair.position])]
        if not candidates:
            return -1
        if self.cell.strategy == "aggregate_turned":
            cosine = self._in_steps(cosine, decided)
        survivor = min(candidates, key=lambda pair: (-cosine[pair.position], pair.position))
        decided.look_at(cosine[survivor.position], cosine.values())
        n = survivor.n + victim.n
        if self.cell.strategy != "aggregate_values":
            key = (survivor.key * survivor.n + self._brought(victim, survivor) * victim.n) / n
            survivor.key = self._kept(key, KEY, decided)
        value = (survivor.value * survivor.n + victim.value * victim.n) / n
        survivor.value = self._kept(value, VALUE, decided)
        survivor.n = n
        return survivor.position

    def _kept(self, vectors: torch.Tensor, which: int, decided: Step | None = None) -> torch.Tensor:
        """Vectors `[kv_heads, head_dim]` as they come back from the store; for sums, how near they were to other codes.

        How near is said thirtyfold: the mean of two pairs is surer than estimates are.
        """
        if self.cell.store == "float16":
            return vectors.half().float()
        if self.cell.store == "float":
            return vectors.float()
        bits = {"int8": (8, 8), "int4": (4, 4), "int3": (3, 3), "k8v4": (8, 4)}[self.cell.store][which]
        largest, back = 2**bits - 1, []
        for head in vectors.float():
            for group in head.split(self.cell.store_group):
                zero = group.min().half().float()
                scale = ((group.max() - zero) / largest).half().float()
                exact = (group - zero) / scale if scale > 0 else torch.zeros_like(group)
                back.append(exact.round().clamp(0, largest) * scale + zero)
                if decided is not None:
                    edge = (exact % 1 - 0.5).abs().min().item() / largest
                    decided.margin = min(decided.margin, 30 * edge)
        return torch.cat(back).view(vectors.shape)

    def _brought(self, victim: Pair, pair: Pair) -> torch.Tensor:
        """The victim's key, in aggregate_turned as it would be at the other pair's position."""
        if self.cell.strategy != "aggregate_turned":
            return victim.key
        assert self.speeds is not None
        n, key = len(self.speeds), victim.key.clone()
        angle = (pair.position - victim.position) * self.speeds.double()
        there = torch.complex(key[:, :n].double(), key[:, n : 2 * n].double()) * torch.exp(1j * angle)
        key[:, :n], key[:, n : 2 * n] = there.real.float(), there.imag.float()
        return key

    def _in_steps(self, cosine: dict[int, float], decided: Step) -> dict[int, float]:
        """Cosines rounded to 4096ths; where several are best or nearly so, how near they are to another step counts."""
        steps = {position: math.floor(value * 4096 + 0.5) for position, value in cosine.items() if value == value}
        best = [position for position, step in steps.items() if step >= max(steps.values()) - 1]
        if len(best) > 1:
            edges = [abs(cosine[position] * 4096 % 1 - 0.5) / 4096 for position in best]
            decided.margin = min([decided.margin, *edges])
        return {position: float(step) for position, step in steps.items()}

    def look_at_rounding(self, chosen: Pair, others: list[Pair], decided: Step) -> None:
        """Where estimates are alike once they are rounded, or nearly so, how near they are to being rounded otherwise.

        Tenfold or thirtyfold: a norm and a cosine are surer than estimates are that were summed over a text.
        """
        if self.cell.importance == "knorm":
            best = chosen.key.norm().item()
            close = {norm for norm in (pair.key.norm().item() for pair in others) if abs(norm - best) <= best * 2**-10}
            edges = [_edge(norm) for norm in {best, *close}]
        elif self.cell.importance == "keydiff":
            best = self._to_mean(chosen)
            close = {cosine for cosine in map(self._to_mean, others) if abs(cosine - best) <= 2 / 4096}
            edges = [10 * abs(cosine * 4096 % 1 - 0.5) / 4096 for cosine in {best, *close}]
        elif self.cell.importance == "fold_cost":
            best, step = self._estimate(chosen), chosen.score / 4096
            alike = [pair for pair in others if abs(self._estimate(pair) - best) <= step + pair.score / 4096]
            edges = [30 * abs(self._to_nearest(pair) * 4096 % 1 - 0.5) / 4096 for pair in {chosen, *alike}]
        else:
            return
        if len(edges) > 1:
            decided.margin = min([decided.margin, *edges])

    def _to_nearest(self, pair: Pair) -> float:
        """The cosine of a pair's key with the nearest of the others'; -1 where there is none."""
        key, others = pair.key.flatten(), [other.key.flatten() for other in self.pairs if other is not pair]
        cosines = [float(torch.cosine_similarity(key, other, dim=0)) for other in others]
        return max((cosine for cosine in cosines if cosine == cosine), default=-1.0)

    def _to_mean(self, pair: Pair) -> float:
        """The cosine of a pair's key with the mean of the held keys' directions."""
        mean = torch.stack([other.key.flatten() / other.key.norm() for other in self.pairs]).sum(0)
        return float(torch.cosine_similarity(pair.key.flatten(), mean, dim=0))

    def _item(self, token: int, key: torch.Tensor) -> torch.Tensor:
        if isinstance(self.sketch, RaceSketch):
            return self.sketch.encode(key.float().flatten())
        if self.cell.item == "key":
            return sign_hash(key.numel(), KEY_BITS, 1, self.cell.seed, self.stream)(key.float().flatten())[0]
        return torch.tensor(token if self.cell.item == "token" else self.t)

    def _make_sketch(self) -> Sketch | None:
        width, depth, seed = self.cell.width, self.cell.depth, self.cell.seed
        match self.cell.importance:
            case "count_min":
                conservative = self.cell.conservative
                return CountMinSketch(width, depth, conservative=conservative, seed=seed, stream=self.stream)
            case "count_sketch":
                return CountSketch(width, depth, seed=seed, stream=self.stream)
            case "race" | "race_queries":
                return RaceSketch(width, depth, seed=seed, stream=self.stream)
        return None


def _rounded(x: float) -> float:
    """A number rounded to 12 binary digits."""
    part, power = math.frexp(x)
    return math.ldexp(round(part * 2**12), power - 12)


def _edge(x: float) -> float:
    """How far a norm is from being rounded otherwise, relatively and tenfold."""
    part, _ = math.frexp(x)
    return 10 * abs(part * 2**12 % 1 - 0.5) / (part * 2**12)


def full_attention(seen: Attended, sequence: int, mine: slice, asking: slice) -> list[torch.Tensor]:
    """The masses that the queries of a row give in the full cache, one query after the other."""
    queries, keys = seen.queries[sequence, asking].double(), seen.keys[sequence, mine].double()
    rows = []
    for t in range(keys.shape[1]):
        each = [
            torch.softmax(keys[head // (len(queries) // len(keys)), : t + 1] @ queries[head, t] * seen.scaling, dim=0)
            for head in range(len(queries))
        ]
        rows.append(torch.stack(each).mean(0))
    return rows


def serves(state: LayerState, call: Call) -> bool:
    """Whole sequences only, for it keeps no state from one call to the next, of the policies that are spelt here."""
    known = state.cell.importance in SPELT and state.cell.strategy in FATES_SPELT
    return known and not bool(state.seen.any())


def advance(state: LayerState, call: Call) -> tuple[torch.Tensor, Trace]:
    """The oracle's counterpart of `stepwise.advance`."""
    if state.owners is not None:
        from sketch_eval.execution import oracle_budget  # It is made of this.

        return oracle_budget.advance(state, call)
    batch, query_heads, length, head_dim = call.q.shape
    output = call.v.new_zeros(batch, length, query_heads, head_dim)
    trace = Trace.empty(batch * state.units, length)
    trace.margins = torch.full((batch * state.units, length), float("inf"), dtype=torch.float32)
    heads, queries = call.k.shape[1] // state.units, query_heads // state.units
    for b in range(batch):
        for unit in range(state.units):
            mine, asking = slice(unit * heads, (unit + 1) * heads), slice(unit * queries, (unit + 1) * queries)
            attention = None
            losses: list[float] = []
            fitted: list[float] = []
            if isinstance(state.foresight, Fitted):
                fitted = state.foresight.coefficients[unit].tolist()
            if isinstance(state.foresight, Losses):
                losses = state.foresight.losses[b].tolist()
            if isinstance(state.foresight, Attended):
                attention = full_attention(state.foresight, b, mine, asking)
            head = unit if state.cell.scope == "head" else None
            store = Oracle(state.cell, state.layer, head, state.speeds, attention, losses, fitted)
            row = b * state.units + unit
            for i in call.valid[b].nonzero().flatten().tolist():
                q, k, v = call.q[b, asking, i], call.k[b, mine, i], call.v[b, mine, i]
                out, step = store.step(q, k, v, int(call.tokens[b, i]), call.scaling)
                output[b, i, asking] = out.to(output.dtype)
                trace.victims[row, i], trace.survivors[row, i] = step.victim, step.survivor
                trace.hidden[row, i], trace.margins[row, i] = step.hidden, step.margin
    state.seen += call.valid.sum(1).int()
    return output, trace
