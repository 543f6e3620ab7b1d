"""Attention mass times the size of the value that it was spent on."""

from __future__ import annotations

import torch

from sketch_eval.policies.base import Pairs, flat
from sketch_eval.policies.counters import Weighed


class ValueAware(Weighed):
    """Exact accumulated mass times the L1 norm of a row's concatenated value as it is stored now.

    VATP (Guo et al., 2024) multiplies the scores of H2O so, once for a prompt. Here the mass is accumulated with the
    cell's decay, and a pair leaves at every token.
    """

    name = "vatp"
    summary = "pairs with the most attention times the L1 norm of their value"
    observes = frozenset({"mass", "values"})

    def tags(self, items: torch.Tensor, pairs: Pairs) -> torch.Tensor:
        assert pairs.values is not None
        return flat(pairs.values).abs().sum(-1)
