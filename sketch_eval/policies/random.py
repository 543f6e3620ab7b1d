"""A draw decides: what any other policy has to beat."""

from __future__ import annotations

import torch

from sketch_eval.hashing import uniform
from sketch_eval.policies.base import EVERY_SCOPE, Pairs, Policy


class Random(Policy):
    """A seeded uniform draw for each position."""

    name = "random"
    scopes = EVERY_SCOPE
    summary = "a seeded draw of the pairs"
    reads = frozenset({"seed"})

    def tags(self, items: torch.Tensor, pairs: Pairs) -> torch.Tensor:
        return uniform(items, self.cell.seed, self.place.stream)

    def estimate(self, tags: torch.Tensor) -> torch.Tensor:
        return tags
