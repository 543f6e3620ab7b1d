"""A pass of a model through a cell's cache, with what every layer was asked and what its policy thought on the way."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from sketch_eval.attention import foresee
from sketch_eval.cache import SketchCache
from sketch_eval.call import Trace
from sketch_eval.centres import Centres
from sketch_eval.config import CacheConfig

STRIDE = 64
"""Tokens between two looks at what the policies think."""


@dataclass(frozen=True)
class Look:
    """The store of one layer after some tokens.

    Attributes:
        length: tokens so far.
        positions: int64 `[units, slots]`, -1 for a free slot.
        importance: float32 `[units, slots]`.
    """

    length: int
    positions: torch.Tensor
    importance: torch.Tensor


@dataclass(frozen=True)
class Layer:
    """One layer's part in a pass over one text.

    Attributes:
        q: `[query heads, tokens, head_dim]`, scaled; k, v: `[kv_heads, tokens, head_dim]`; all float32.
        output: float32 `[query heads, tokens, head_dim]`.
        trace: what was decided; with `units` rows.
        looks: the store after every `STRIDE` tokens, and at the end.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    output: torch.Tensor
    trace: Trace
    looks: list[Look]

    @property
    def units(self) -> int:
        """1, or the number of key/value heads where each has its own store."""
        return len(self.trace.victims)


class Watched(SketchCache):
    """A cache that remembers what every layer is asked, and what it answers."""

    calls: list[list[tuple[torch.Tensor, ...]]]

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float) -> torch.Tensor:
        output = super().attend(layer, q, k, v, scaling)
        self.calls[layer].append((q * scaling, k, v, output.transpose(1, 2)))
        return output


@torch.no_grad()
def watch(
    model: PreTrainedModel, cell: CacheConfig, tokens: torch.Tensor, centres: Centres | None = None
) -> list[Layer]:
    """A bounded pass over one text, by layer.

    Args:
        model: a model on which `enable` was called.
        cell: a cell with a bound.
        tokens: ids, int64 `[tokens]`.
        centres: see `SketchCache`.
    """
    seen = foresee(model, tokens[None], cell.foresees) if cell.foresees else None
    cache = Watched(model.config, cell, traced=True, foresight=seen, centres=centres)
    cache.calls = [[] for _ in cache.layers]
    looks: list[list[Look]] = [[] for _ in cache.layers]
    length = 0
    for part in tokens[None].split(STRIDE, dim=1):
        model.base_model(part, past_key_values=cache)
        length += part.shape[1]
        for layer, found in zip(cache.layers, looks, strict=True):
            state = layer.state
            positions = state.positions.long()
            importance = state.importance(length - 1 - positions, state.tags())
            found.append(Look(length, positions, importance))
    layers = []
    for number, (calls, found) in enumerate(zip(cache.calls, looks, strict=True)):
        q, k, v, output = (torch.cat(kind, 2)[0].float() for kind in zip(*calls, strict=True))
        layers.append(Layer(q, k, v, output, cache.trace(number), found))
    return layers
