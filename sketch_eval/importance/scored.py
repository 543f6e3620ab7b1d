"""Sources that keep one float32 a stored pair: what a sketch is to be compared with."""

from __future__ import annotations

import torch

from sketch_eval.config import CacheConfig
from sketch_eval.importance.base import Importance


class Scored(Importance):
    """Base of the sources with a score a slot."""

    def __init__(self, cell: CacheConfig, batch: int, slots: int, layer: int, device: torch.device) -> None:
        super().__init__(cell, batch, slots, layer, device)
        self.scores = torch.zeros(batch, slots, dtype=torch.float32, device=device)

    def read(self, tags: torch.Tensor) -> torch.Tensor:
        return self.scores

    def arrive(self, slot: torch.Tensor) -> None:
        self.scores.scatter_(1, slot[:, None], 0.0)

    def select(self, rows: torch.Tensor) -> None:
        self.scores = self.scores[rows]

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"scores": self.scores}


class Exact(Scored):
    """Exact accumulated mass, with the cell's decay; H2O (Zhang et al., 2023) with decay 1."""

    name = "exact"
    reads = frozenset({"decay"})
    compiled = 3

    def account(self, tags: torch.Tensor, mass: torch.Tensor, live: torch.Tensor) -> None:
        self.scores.mul_(self._decay(live)[:, None]).add_(mass)


class Last(Scored):
    """The newest query's mass, 0 for a hidden pair: TOVA (Oren et al., 2024)."""

    name = "last"
    reads = frozenset()
    compiled = 4

    def account(self, tags: torch.Tensor, mass: torch.Tensor, live: torch.Tensor) -> None:
        self.scores.copy_(torch.where(live[:, None], mass, self.scores))
