"""A victim is dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sketch_eval.policies.fate import Fate

if TYPE_CHECKING:
    from sketch_eval.state import LayerState


class Drop(Fate):
    """The victim leaves, and nothing of it stays."""

    name = "topk"
    summary = "drops the victim"
    counts = False
    hides = True

    @classmethod
    def meet(cls, state: LayerState, victim: torch.Tensor, partners: torch.Tensor, full: torch.Tensor) -> torch.Tensor:
        return torch.full_like(victim, -1)
