"""A float32 counter a stored pair: exact attention mass, what a sketch is to be compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from sketch_eval.policies.base import EVERY_SCOPE, Attention, Place, Policy

if TYPE_CHECKING:
    from sketch_eval.config import CacheConfig


class Counters(Policy):
    """Base of the policies with a counter a slot."""

    observes = frozenset({"mass"})
    scopes: ClassVar[tuple[str, ...]] = EVERY_SCOPE

    def __init__(self, cell: CacheConfig, place: Place) -> None:
        super().__init__(cell, place)
        self.scores = torch.zeros(place.rows, place.slots, dtype=torch.float32, device=place.device)

    def estimate(self, tags: torch.Tensor) -> torch.Tensor:
        return self.scores

    def arrive(self, slot: torch.Tensor) -> None:
        self.scores.scatter_(1, slot[:, None], 0.0)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"scores": self.scores}

    def select(self, rows: torch.Tensor) -> None:
        self.scores = self.scores[rows]


class Exact(Counters):
    """Exact accumulated mass, with the cell's decay; H2O (Zhang et al., 2023) with decay 1 and scope=head."""

    name = "exact"
    summary = "pairs that have drawn the most attention, counted exactly"
    reads = frozenset({"decay"})

    def account(self, tags: torch.Tensor, seen: Attention) -> None:
        assert seen.mass is not None
        self.scores.mul_(self._decay(seen.live)[:, None]).add_(seen.mass)


class Weighed(Exact):
    """Base of the policies whose estimate is exact mass times a number of the pair as it is stored now: its tag."""

    renewed = True

    def estimate(self, tags: torch.Tensor) -> torch.Tensor:
        return self.scores * tags

    def tensors(self) -> dict[str, torch.Tensor]:
        """The scores as `memory`: they are not yet estimates."""
        return {"memory": self.scores[:, None]}


class Last(Counters):
    """The newest query's mass, 0 for a hidden pair: TOVA (Oren et al., 2024)."""

    name = "last"
    summary = "pairs that the newest query attended to"

    def account(self, tags: torch.Tensor, seen: Attention) -> None:
        assert seen.mass is not None
        self.scores.copy_(torch.where(seen.live[:, None], seen.mass, self.scores))
