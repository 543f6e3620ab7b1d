"""The oracle of scope=budget and scope=entropy: a store for each head, and one count of the pairs of them all."""

from __future__ import annotations

import math

import torch

from sketch_eval.call import Call, Trace
from sketch_eval.execution.oracle import Oracle, Pair, Step, full_attention
from sketch_eval.foresight import Attended, Losses
from sketch_eval.hashing import head_stream, uniform
from sketch_eval.sketches import CountMinSketch, Sketch
from sketch_eval.state import LayerState


class HeadOracle(Oracle):
    """One head's pairs, which evicts none by itself.

    Args:
        head: which key/value head it is.
        heads: how many share the budget.
        others: as in `Oracle`.
    """

    def __init__(self, head: int, heads: int, *others: object) -> None:
        self.head, self.heads = head, heads
        super().__init__(*others)  # type: ignore[arg-type]
        self.room = 2**62

    def name(self, position: int) -> int:
        """What a pair is called among those of all heads."""
        return position * self.heads + self.head

    def _estimate(self, pair: Pair) -> float:
        if self.cell.importance == "random":  # Drawn in the layer's stream, for each head by itself.
            return uniform(torch.tensor(self.name(pair.position)), self.cell.seed, self.layer).item()
        return super()._estimate(pair)

    def _item(self, token: int, key: torch.Tensor) -> torch.Tensor:
        return torch.tensor(self.t) if self.cell.importance == "adaptive" else super()._item(token, key)

    def _make_sketch(self) -> Sketch | None:
        """With importance=adaptive as wide as if all heads attended to as many pairs."""
        if self.cell.importance != "adaptive":
            return super()._make_sketch()
        return self.sketch_of(_sizes([1 / self.heads] * self.heads, self.cell.width)[0])

    def sketch_of(self, width: int) -> CountMinSketch:
        """An empty sketch."""
        return CountMinSketch(width, self.cell.depth, seed=self.cell.seed, stream=head_stream(self.layer, self.head))

    def resize(self, width: int) -> None:
        """Let the sketch have so many cells a row: repeated where it becomes wider, else the largest that meet."""
        assert isinstance(self.sketch, CountMinSketch)
        old, new = self.sketch.table[0], self.sketch_of(width)
        for cell in range(max(width, self.sketch.width)):
            found = old[:, cell % self.sketch.width]
            new.table[0, :, cell % width] = torch.maximum(new.table[0, :, cell % width], found)
        self.sketch = new


def share_out(stores: list[HeadOracle], decided: Step) -> None:
    """Move the sizes of the heads' sketches to what their entropies ask for, and say how near they were to others."""
    parts = list(_parts(stores).values())
    for store, width in zip(stores, _sizes(parts, stores[0].cell.width, decided), strict=True):
        store.resize(width)


def _sizes(parts: list[float], width: int, decided: Step | None = None) -> list[int]:
    """The widths of heads' sketches that may have these parts of `len(parts) × width` cells a row."""
    left, heads = len(parts) * width, range(len(parts))
    wanted = [max(part * len(parts) * (width - 1), 1.0) for part in parts]
    sizes = [2 ** math.floor(math.log2(each)) for each in wanted]
    left -= sum(sizes)
    short = [each / size for each, size in zip(wanted, sizes, strict=True)]
    doubled = []
    for head in sorted(heads, key=lambda head: (-short[head], head)):
        if sizes[head] <= left:
            left -= sizes[head]
            sizes[head] *= 2
            doubled.append(head)
    if decided is not None:
        powers = [math.log2(each) for each in wanted if each > 1]
        decided.margin = min([decided.margin, *(abs(power - round(power)) for power in powers)])
        if 0 < len(doubled) < len(parts):
            for head in heads:
                decided.look_at(short[head], short)
    return sizes


def evict(stores: list[HeadOracle], decided: Step) -> tuple[int, int]:
    """Let the least important pair of any head go, or of the head that exceeds its share by most.

    Returns:
        What it is called, and the pair that took it in, or -1.
    """
    candidates = [(store, pair) for store in stores for pair in store.unprotected()]
    if stores[0].cell.scope == "entropy":
        over = _over_share(stores)
        most = max(dict.fromkeys(store for store, _ in candidates), key=lambda store: (over[store], -store.head))
        decided.look_at(over[most], [over[store] for store, _ in candidates])
        candidates = [(store, pair) for store, pair in candidates if store is most]
    importance = {pair: store.importance(pair) for store, pair in candidates}
    store, victim = min(candidates, key=lambda one: (importance[one[1]], one[1].position, one[0].head))
    decided.look_at(importance[victim], importance.values())
    store.look_at_rounding(victim, [pair for _, pair in candidates], decided)
    store.pairs.remove(victim)
    survivor = -1
    fellows = [pair for pair in store.unprotected() if pair is not victim]
    if store.cell.strategy != "topk" and fellows:
        survivor = store.fold(victim, fellows, decided)
    return store.name(victim.position), store.name(survivor) if survivor >= 0 else -1


def _over_share(stores: list[HeadOracle]) -> dict[HeadOracle, float]:
    """By how many pairs each head exceeds its share, which grows with the number of pairs that it attends to."""
    protected = sum(stores[0].cell.protected(stores[0].cap))
    rest = (stores[0].cap - protected) * len(stores)
    return {store: len(store.pairs) - (protected + rest * part) for store, part in _parts(stores).items()}


def _parts(stores: list[HeadOracle]) -> dict[HeadOracle, float]:
    """Each head's part of what a layer has: by how many pairs it attends to, of late."""
    cell, wide = stores[0].cell, {}
    for store in stores:
        weights = [cell.decay**age for age in range(len(store.entropies))][::-1]
        mean = sum(weight * entropy for weight, entropy in zip(weights, store.entropies, strict=True)) / sum(weights)
        wide[store] = math.exp(mean)
    total = sum(wide.values())
    return {store: 1 / len(stores) if math.isnan(total) else each / total for store, each in wide.items()}


def advance(state: LayerState, call: Call) -> tuple[torch.Tensor, Trace]:
    """The oracle's counterpart of `budgeted.advance`."""
    batch, query_heads, length, head_dim = call.q.shape
    heads, cell = state.owning, state.cell
    assert cell.max_cache_size is not None
    group, output = query_heads // heads, call.v.new_zeros(batch, length, query_heads, head_dim)
    trace = Trace.empty(batch * heads, length)
    trace.margins = torch.full((batch * heads, length), float("inf"), dtype=torch.float32)
    for b in range(batch):
        stores = []
        for head in range(heads):
            mine, asking = slice(head, head + 1), slice(head * group, (head + 1) * group)
            seen = state.foresight
            attention = full_attention(seen, b, mine, asking) if isinstance(seen, Attended) else None
            losses = seen.losses[b].tolist() if isinstance(seen, Losses) else []
            stores.append(HeadOracle(head, heads, cell, state.layer, None, state.speeds, attention, losses))
        for i in call.valid[b].nonzero().flatten().tolist():
            for head, store in enumerate(stores):
                asking = slice(head * group, (head + 1) * group)
                q, k, v = call.q[b, asking, i], call.k[b, head : head + 1, i], call.v[b, head : head + 1, i]
                out, _ = store.step(q, k, v, int(call.tokens[b, i]), call.scaling)
                output[b, i, asking] = out.to(output.dtype)
            if cell.importance == "adaptive":
                shared = Step()
                share_out(stores, shared)
                trace.margins[b * heads : (b + 1) * heads, i] = shared.margin
            for event in range(heads):
                if sum(len(store.pairs) for store in stores) <= cell.max_cache_size * heads:
                    break
                decided, line = Step(), b * heads + event
                trace.victims[line, i], trace.survivors[line, i] = evict(stores, decided)
                trace.margins[line, i] = min(decided.margin, float(trace.margins[line, i]))
    state.seen += call.valid.sum(1).int()
    return output, trace
