"""A victim's value alone is folded: the survivor's key stays as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sketch_eval.policies.fold import Fold

if TYPE_CHECKING:
    from sketch_eval.state import LayerState


class FoldValues(Fold):
    """As `Fold`, but that no key is a mean of keys, which with rotary positions would be of several phases."""

    name = "aggregate_values"
    summary = "folds the victim's value alone into the pair with the nearest key, which stays as it is"

    @classmethod
    def merge(
        cls, state: LayerState, compared: torch.Tensor, rows: torch.Tensor, into: torch.Tensor, gone: torch.Tensor
    ) -> None:
        cls.merge_values(state, rows, into, gone)
