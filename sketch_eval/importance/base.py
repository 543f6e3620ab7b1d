"""What every importance source is: the number by which an execution ranks the pairs of a store (DESIGN §4)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from sketch_eval.config import CacheConfig


class Importance(ABC):
    """The importance of the pairs in `slots` slots, for a batch of independent sequences of one layer.

    A pair has an *item*, fixed when it arrives, and *tags*, which is what the source makes of an item and of the key
    as it is stored now. Tags are recomputed for each call and never kept.

    Args:
        cell: the cell.
        batch: sequences.
        slots: pairs that the store has room for.
        layer: index of the layer, which seeds the hashes.
        device: where the tensors live.
    """

    name: ClassVar[str]
    reads: ClassVar[frozenset[str]] = frozenset({"width", "depth", "item", "decay", "conservative", "seed"})
    """Of these fields of the cell, those that the source's decisions depend on: what tells computations apart."""
    compiled: ClassVar[int | None] = None
    """The compiled execution's number for the source; None where it knows none, and the torch execution serves."""

    def __init__(self, cell: CacheConfig, batch: int, slots: int, layer: int, device: torch.device) -> None:
        self.cell, self.layer = cell, layer

    def items(self, positions: torch.Tensor, tokens: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Items int64 of arriving pairs: `[batch, n]`, or `[batch, n, depth]` with an item for each row.

        Args:
            positions: int64 `[batch, n]`.
            tokens: int64 `[batch, n]`.
            keys: float32 `[batch, n, heads · head_dim]`.
        """
        return positions

    @property
    def item_shape(self) -> tuple[int, ...] | None:
        """Shape of what must be kept of a pair's item; None where the item is its position, which is kept anyway."""
        return None

    def locate(self, items: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Tags of pairs with the given items `[batch, n, ...]` and stored keys `[batch, n, heads · head_dim]`."""
        return items

    @abstractmethod
    def read(self, tags: torch.Tensor) -> torch.Tensor:
        """Estimates float32 `[batch, slots]`."""

    def arrive(self, slot: torch.Tensor) -> None:
        """A new pair is in `slot` `[batch]` of each sequence."""

    def account(self, tags: torch.Tensor, mass: torch.Tensor, live: torch.Tensor) -> None:
        """Account a query's mass float32 `[batch, slots]`, for the sequences that are `live`, bool `[batch]`."""

    def select(self, rows: torch.Tensor) -> None:
        """Make the batch the given rows of it."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """The state, by name, with the batch as the leading dimension."""
        return {}

    def _decay(self, live: torch.Tensor) -> torch.Tensor:
        """The factor of each sequence, float32 `[batch]`."""
        return torch.ones_like(live, dtype=torch.float32).masked_fill(live, self.cell.decay)
