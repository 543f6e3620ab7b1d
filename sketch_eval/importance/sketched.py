"""Accumulated mass as a sketch estimates it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sketch_eval.config import CacheConfig
from sketch_eval.hashing import sign_hash
from sketch_eval.importance.base import Importance
from sketch_eval.sketches import CountMinSketch, CountSketch, RaceSketch, Sketch

KEY_BITS = 16
"""Hyperplanes that make the item `key`."""


class Sketched(Importance):
    """Base of the sketched sources: the table, and the items that it hashes (DESIGN §3)."""

    sketch: Sketch

    @property
    def item_shape(self) -> tuple[int, ...] | None:
        return None if self.cell.item == "position" else ()

    def items(self, positions: torch.Tensor, tokens: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        return ITEMS[self.cell.item](self, positions, tokens, keys)

    def locate(self, items: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        return self.sketch.locate(items)

    def read(self, tags: torch.Tensor) -> torch.Tensor:
        return self.sketch.read(tags)

    def account(self, tags: torch.Tensor, mass: torch.Tensor, live: torch.Tensor) -> None:
        if self.cell.decay < 1:
            self.sketch.scale(self._decay(live))
        self.sketch.add(tags, mass)

    def select(self, rows: torch.Tensor) -> None:
        self.sketch.table = self.sketch.table[rows]

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"sketch": self.sketch.table}

    def _shape(self, batch: int, device: torch.device) -> dict[str, object]:
        return {"batch": batch, "seed": self.cell.seed, "stream": self.layer, "device": device}


class CountMin(Sketched):
    """Estimates of a Count-Min Sketch."""

    name = "count_min"
    compiled = 0

    def __init__(self, cell: CacheConfig, batch: int, slots: int, layer: int, device: torch.device) -> None:
        super().__init__(cell, batch, slots, layer, device)
        shape = self._shape(batch, device)
        self.sketch = CountMinSketch(cell.width, cell.depth, conservative=cell.conservative, **shape)


class CountSketched(Sketched):
    """Estimates of a Count Sketch."""

    name = "count_sketch"
    compiled = 1

    def __init__(self, cell: CacheConfig, batch: int, slots: int, layer: int, device: torch.device) -> None:
        super().__init__(cell, batch, slots, layer, device)
        self.sketch = CountSketch(cell.width, cell.depth, **self._shape(batch, device))


class Race(Sketched):
    """Estimates of a RACE sketch, whose items are hashes of the key vector, one for each row."""

    name = "race"
    reads = frozenset({"width", "depth", "decay", "seed"})
    compiled = 2

    sketch: RaceSketch

    def __init__(self, cell: CacheConfig, batch: int, slots: int, layer: int, device: torch.device) -> None:
        super().__init__(cell, batch, slots, layer, device)
        self.sketch = RaceSketch(cell.width, cell.depth, **self._shape(batch, device))

    @property
    def item_shape(self) -> tuple[int, ...]:
        return (self.cell.depth,)

    def items(self, positions: torch.Tensor, tokens: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        return self.sketch.encode(keys)


def _positions(source: Sketched, positions: torch.Tensor, tokens: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    return positions


def _tokens(source: Sketched, positions: torch.Tensor, tokens: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    return tokens


def _keys(source: Sketched, positions: torch.Tensor, tokens: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    return sign_hash(keys.shape[-1], KEY_BITS, 1, source.cell.seed, source.layer)(keys).squeeze(-1)


ItemRule = Callable[[Sketched, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

ITEMS: dict[str, ItemRule] = {"position": _positions, "token": _tokens, "key": _keys}
