"""A victim is folded into the pair whose position is nearest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sketch_eval.policies.fold import Fold

if TYPE_CHECKING:
    from sketch_eval.state import LayerState


class FoldNear(Fold):
    """As `Fold`, into the unprotected pair with the nearest position, whatever its key; of two, into the older."""

    name = "aggregate_near"
    summary = "folds the victim into the unprotected pair with the nearest position"

    @classmethod
    def nearness(cls, state: LayerState, compared: torch.Tensor, victim: torch.Tensor) -> torch.Tensor:
        positions = state.positions.long()
        return -(positions - positions.gather(1, victim[:, None])).abs().float()
