"""Attention mass times the size of the value that it was spent on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sketch_eval.policies.base import Attention, Pairs, Place, Policy, flat

if TYPE_CHECKING:
    from sketch_eval.config import CacheConfig


class ValueAware(Policy):
    """Exact accumulated mass times the L1 norm of a row's concatenated value as it is stored now.

    VATP (Guo et al., 2024) multiplies the scores of H2O so, once for a prompt. Here the mass is accumulated with the
    cell's decay, and a pair leaves at every token.
    """

    name = "vatp"
    summary = "pairs with the most attention times the L1 norm of their value"
    observes = frozenset({"mass", "values"})
    reads = frozenset({"decay"})
    renewed = True
    budgeted = True

    def __init__(self, cell: CacheConfig, place: Place) -> None:
        super().__init__(cell, place)
        self.memory = torch.zeros(place.rows, 1, place.slots, dtype=torch.float32, device=place.device)

    def tags(self, items: torch.Tensor, pairs: Pairs) -> torch.Tensor:
        assert pairs.values is not None
        return flat(pairs.values).abs().sum(-1)

    def estimate(self, tags: torch.Tensor) -> torch.Tensor:
        return self.memory[:, 0] * tags

    def arrive(self, slot: torch.Tensor) -> None:
        self.memory[:, 0].scatter_(1, slot[:, None], 0.0)

    def account(self, tags: torch.Tensor, seen: Attention) -> None:
        assert seen.mass is not None
        self.memory[:, 0].mul_(self._decay(seen.live)[:, None]).add_(seen.mass)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"memory": self.memory}

    def select(self, rows: torch.Tensor) -> None:
        self.memory = self.memory[rows]
