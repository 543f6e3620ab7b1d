"""Mass over the last queries, shared with neighbours: an observation window that moves with the text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sketch_eval.policies.base import Attention, Pairs, Place, Policy

if TYPE_CHECKING:
    from sketch_eval.config import CacheConfig

WINDOW = 16
"""Queries that are observed."""
REACH = 2
"""Positions to either side whose pairs are pooled with a pair: a kernel of 5."""


class ObservationWindow(Policy):
    """The mass of the last 16 queries, averaged over five positions around a pair's own.

    SnapKV (Li et al., 2024) keeps what the last queries of a prompt attended to, pooled over neighbours, and compresses
    once. Here the window moves with every token. A pair that is no longer held counts as 0 in the average, as the edge
    of the text does in the paper's pooling.
    """

    name = "snapkv"
    summary = f"pairs that the last {WINDOW} queries attended to, averaged over {2 * REACH + 1} neighbouring positions"
    observes = frozenset({"mass"})
    renewed = True

    def __init__(self, cell: CacheConfig, place: Place) -> None:
        super().__init__(cell, place)
        self.memory = torch.zeros(place.rows, WINDOW, place.slots, dtype=torch.float32, device=place.device)

    def tags(self, items: torch.Tensor, pairs: Pairs) -> torch.Tensor:
        return pairs.positions

    def estimate(self, tags: torch.Tensor) -> torch.Tensor:
        mass, pooled = self.memory.sum(1), torch.zeros_like(self.memory[:, 0])
        held = tags >= 0
        for offset in range(-REACH, REACH + 1):
            there = (tags[:, :, None] + offset == tags[:, None]) & held[:, None]
            pooled += torch.where(there, mass[:, None], 0.0).sum(2)
        return pooled / (2 * REACH + 1)

    def arrive(self, slot: torch.Tensor) -> None:
        self.memory.scatter_(2, slot[:, None, None].expand(-1, WINDOW, 1), 0.0)

    def account(self, tags: torch.Tensor, seen: Attention) -> None:
        assert seen.mass is not None
        moved = torch.cat((self.memory[:, 1:], seen.mass[:, None]), 1)
        self.memory.copy_(torch.where(seen.live[:, None, None], moved, self.memory))

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"memory": self.memory}

    def select(self, rows: torch.Tensor) -> None:
        self.memory = self.memory[rows]
