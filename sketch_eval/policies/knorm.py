"""Keys of small norm stay."""

from __future__ import annotations

import torch

from sketch_eval.policies.base import Pairs, Policy, flat


class KeyNorm(Policy):
    """Minus the norm of a row's concatenated key as it is stored now (Devoto et al., 2024)."""

    name = "knorm"
    summary = "pairs whose keys have a small norm"
    observes = frozenset({"keys"})

    def tags(self, items: torch.Tensor, pairs: Pairs) -> torch.Tensor:
        assert pairs.keys is not None
        return -flat(pairs.keys).norm(dim=-1)

    def estimate(self, tags: torch.Tensor) -> torch.Tensor:
        return tags
