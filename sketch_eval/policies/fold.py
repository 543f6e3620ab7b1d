"""A victim is folded into the pair whose key is nearest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sketch_eval.policies.base import flat
from sketch_eval.policies.fate import Fate, least

if TYPE_CHECKING:
    from sketch_eval.state import LayerState


class Fold(Fate):
    """The unprotected pair with the nearest key by cosine, over a row's concatenated heads, takes the victim in.

    Keys and values become the means over the tokens of both, and the counts add. Folding moves no mass. A victim
    without a partner whose cosine is a number is dropped.
    """

    name = "aggregate"
    summary = "folds the victim into the unprotected pair with the nearest key"
    counts = True
    hides = False

    @staticmethod
    def meet(state: LayerState, victim: torch.Tensor, partners: torch.Tensor, full: torch.Tensor) -> torch.Tensor:
        keys, at = flat(state.keys), victim[:, None]
        norms = keys.norm(dim=-1)
        of_victim = keys.gather(1, at[:, :, None].expand(-1, 1, keys.shape[-1]))
        cosine = (keys * of_victim).sum(-1) / (norms * norms.gather(1, at)).clamp(min=1e-12)
        partners = partners & ~cosine.isnan()
        survivor = least(-cosine, state.positions.long(), partners)
        folds = full & partners.any(1)
        _merge(state, victim, survivor, folds)
        return torch.where(folds, survivor, -1)


def _merge(state: LayerState, victim: torch.Tensor, survivor: torch.Tensor, folds: torch.Tensor) -> None:
    """Make the survivor's key and value the means over all the tokens of both pairs."""
    assert state.counts is not None
    rows = torch.arange(len(victim), device=victim.device)[folds]
    into, gone = survivor[folds], victim[folds]
    mine, its = state.counts[rows, into], state.counts[rows, gone]
    total = mine + its
    for pairs in (state.keys, state.values):
        own, added = pairs[rows, :, into].float(), pairs[rows, :, gone].float()
        mean = (own * mine[:, None, None] + added * its[:, None, None]) / total[:, None, None]
        pairs[rows, :, into] = mean.to(pairs.dtype)
    state.counts[rows, into] = total
