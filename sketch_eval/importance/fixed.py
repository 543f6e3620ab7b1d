"""Sources that need no memory of the queries: the pair itself says how it ranks."""

from __future__ import annotations

import torch

from sketch_eval.hashing import uniform
from sketch_eval.importance.base import Importance


class Fixed(Importance):
    """Base of the sources whose tags are the estimates."""

    reads = frozenset()
    compiled = 5

    def read(self, tags: torch.Tensor) -> torch.Tensor:
        return tags


class Recency(Fixed):
    """The position: a sliding window with sinks=0, StreamingLLM's cache (Xiao et al., 2024) with sinks=4."""

    name = "recency"

    def locate(self, items: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        return items.float()


class Random(Fixed):
    """A seeded uniform draw for each position."""

    name = "random"
    reads = frozenset({"seed"})

    def locate(self, items: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        return uniform(items, self.cell.seed, self.layer)


class KeyNorm(Fixed):
    """Minus the norm of the concatenated heads' key as it is stored now (Devoto et al., 2024)."""

    name = "knorm"
    compiled = 6

    def locate(self, items: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        return -keys.float().norm(dim=-1)
