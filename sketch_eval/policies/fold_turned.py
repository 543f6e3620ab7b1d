"""A victim's key is turned to the position of the pair that it is folded into."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sketch_eval.policies.base import in_steps
from sketch_eval.policies.fold import Fold, mean_pair
from sketch_eval.rotary import turn

if TYPE_CHECKING:
    from sketch_eval.state import LayerState


class FoldTurned(Fold):
    """As `Fold`, with rotary keys of two positions compared and averaged as they would be at one.

    Turned by the same angle, two keys keep their product, so all are compared as they would be at position 0. There a
    token that comes again has the key that it had, but for rounding: cosines within the same 4096th are ties, which go
    to the oldest in every execution.
    """

    name = "aggregate_turned"
    summary = (
        "folds the victim as if its rotary key stood at the position of the pair that takes it in, the nearest one "
        "when compared so"
    )
    turns = True

    @classmethod
    def compared(cls, state: LayerState) -> torch.Tensor:
        assert state.speeds is not None
        return turn(state.keys.float(), -state.positions[:, None], state.speeds)

    @staticmethod
    def in_steps(cosine: torch.Tensor) -> torch.Tensor:
        return in_steps(cosine)

    @classmethod
    def merge(
        cls, state: LayerState, compared: torch.Tensor, rows: torch.Tensor, into: torch.Tensor, gone: torch.Tensor
    ) -> None:
        assert state.counts is not None
        assert state.speeds is not None
        key = mean_pair(compared, state.counts, rows, into, gone)
        turned = turn(key, state.positions[rows, into][:, None], state.speeds)
        state.held_keys.write(rows, into, state.held_keys.format.encode(turned))
        cls.merge_values(state, rows, into, gone)
