"""What one layer of a bounded cache holds, and what a step of it leaves behind (DESIGN §2, §6)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sketch_eval.config import CacheConfig
from sketch_eval.importance import SOURCES


class LayerState:
    """The store and the importance source of one layer, for a batch of sequences that share nothing.

    Slots hold pairs in no order; a free slot has position -1. Between steps at most C of the C+1 are taken.

    Args:
        cell: the cell; its `max_cache_size` is C.
        layer: index of the layer.
        keys: any keys of the layer, `[batch, heads, *, head_dim]`, for shape, dtype and device.

    Attributes:
        keys, values: `[batch, heads, C+1, head_dim]` in the model's dtype. The keys lie transposed in memory, so
            that a query's products with one coordinate of every key are one vector operation.
        positions: int32 `[batch, C+1]`.
        counts: float32 `[batch, C+1]`, tokens folded into a pair; None unless the cell's strategy folds.
        items: int32 `[batch, C+1, ...]`; None where the source reads them off the positions.
        seen: int32 `[batch]`, tokens appended so far: the next token's position.
        importance: the source, with its own tensors.
    """

    def __init__(self, cell: CacheConfig, layer: int, keys: torch.Tensor) -> None:
        assert cell.max_cache_size is not None
        batch, heads, _, head_dim = keys.shape
        slots = cell.max_cache_size + 1
        self.cell, self.layer = cell, layer
        self.keys = keys.new_zeros(batch, heads, head_dim, slots).transpose(2, 3)
        self.values = keys.new_zeros(batch, heads, slots, head_dim)
        self.positions = torch.full((batch, slots), -1, dtype=torch.int32, device=keys.device)
        self.counts = torch.ones(batch, slots, dtype=torch.float32, device=keys.device) if cell.counted else None
        self.seen = torch.zeros(batch, dtype=torch.int32, device=keys.device)
        self.importance = SOURCES[cell.importance](cell, batch, slots, layer, keys.device)
        shape = self.importance.item_shape
        self.items = None
        if shape is not None:
            self.items = torch.zeros(batch, slots, *shape, dtype=torch.int32, device=keys.device)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor that the layer owns, by its name in the ledger, the batch leading."""
        named = {"keys": self.keys, "values": self.values, "positions": self.positions, "seen": self.seen}
        optional = {"counts": self.counts, "items": self.items}
        return named | {k: t for k, t in optional.items() if t is not None} | self.importance.tensors()

    def tags(self) -> torch.Tensor:
        """The source's tags of what every slot holds now; anything for a free slot."""
        items = self.positions.clamp(min=0) if self.items is None else self.items
        return self.importance.locate(items.long(), flat_keys(self.keys))

    def select(self, rows: torch.Tensor) -> None:
        """Make the batch the given rows of it, in place or by new tensors: beam search reorders and repeats rows."""
        for name in ("keys", "values", "positions", "counts", "items", "seen"):
            tensor = getattr(self, name)
            if tensor is not None:
                taken = tensor.transpose(2, 3)[rows].transpose(2, 3) if name == "keys" else tensor[rows]
                setattr(self, name, taken)
        self.importance.select(rows)


def flat_keys(keys: torch.Tensor) -> torch.Tensor:
    """Keys `[batch, heads, n, head_dim]` with the heads concatenated, float32 `[batch, n, heads · head_dim]`."""
    return keys.transpose(1, 2).flatten(2).float()


@dataclass
class Trace:
    """What was decided at each token of a call, int32 `[batch, tokens]`, on the columns of its input.

    Attributes:
        victims: position of the pair that left, or -1.
        survivors: position of the pair that it was folded into, or -1.
        hidden: number of stored pairs that the token's query did not see.
        margins: float32, how clearly the oracle decided (`oracle.Step`); None from the other executions.
    """

    victims: torch.Tensor
    survivors: torch.Tensor
    hidden: torch.Tensor
    margins: torch.Tensor | None = None

    @classmethod
    def join(cls, traces: list[Trace]) -> Trace:
        """The trace of several calls, one after the other."""
        margins = [trace.margins for trace in traces if trace.margins is not None]
        return cls(
            victims=torch.cat([trace.victims for trace in traces], 1),
            survivors=torch.cat([trace.survivors for trace in traces], 1),
            hidden=torch.cat([trace.hidden for trace in traces], 1),
            margins=torch.cat(margins, 1) if margins else None,
        )

    def select(self, rows: torch.Tensor) -> Trace:
        """The trace of the given rows of the batch."""
        margins = None if self.margins is None else self.margins[rows]
        return Trace(self.victims[rows], self.survivors[rows], self.hidden[rows], margins)

    @classmethod
    def empty(cls, batch: int, tokens: int, device: torch.device | str | None = None) -> Trace:
        """The trace of tokens that decide nothing."""
        none = torch.full((batch, tokens), -1, dtype=torch.int32, device=device)
        return cls(none, none.clone(), torch.zeros_like(none))
