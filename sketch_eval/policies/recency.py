"""The newest pairs stay: windows and StreamingLLM."""

from __future__ import annotations

import torch

from sketch_eval.policies.base import EVERY_SCOPE, Pairs, Policy


class Recency(Policy):
    """The position: a sliding window with sinks=0, StreamingLLM's cache (Xiao et al., 2024) with sinks=4."""

    name = "recency"
    scopes = EVERY_SCOPE
    summary = "the newest pairs"

    def tags(self, items: torch.Tensor, pairs: Pairs) -> torch.Tensor:
        return items.float()

    def estimate(self, tags: torch.Tensor) -> torch.Tensor:
        return tags
