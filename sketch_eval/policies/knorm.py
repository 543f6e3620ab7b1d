"""Keys of small norm stay."""

from __future__ import annotations

import torch

from sketch_eval.policies.base import EVERY_SCOPE, Pairs, Policy, flat


class KeyNorm(Policy):
    """Minus the norm of a row's concatenated key as it is stored now (Devoto et al., 2024), to 12 binary digits.

    Rotary positions turn a key and leave its norm, but for rounding. To 12 digits the keys of a token that comes again
    are as long as its first, and the tie goes to the oldest in every execution.
    """

    name = "knorm"
    summary = "pairs whose keys have a small norm"
    observes = frozenset({"keys"})
    scopes = EVERY_SCOPE

    def tags(self, items: torch.Tensor, pairs: Pairs) -> torch.Tensor:
        assert pairs.keys is not None
        return -to_12_digits(flat(pairs.keys).norm(dim=-1))

    def estimate(self, tags: torch.Tensor) -> torch.Tensor:
        return tags


def to_12_digits(x: torch.Tensor) -> torch.Tensor:
    """Float32 numbers rounded to 12 binary digits (the splitting of Dekker, 1971)."""
    shifted = x * 4097.0
    return shifted - (shifted - x)
