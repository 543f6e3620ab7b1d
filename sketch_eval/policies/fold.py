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

    @classmethod
    def meet(cls, state: LayerState, victim: torch.Tensor, partners: torch.Tensor, full: torch.Tensor) -> torch.Tensor:
        compared = cls.compared(state)
        nearness = cls.nearness(state, compared, victim)
        partners = partners & ~nearness.isnan()
        survivor = least(-nearness, state.positions.long(), partners)
        folds = full & partners.any(1)
        # Which rows fold is not asked on the processor: in the others a slot that holds no pair from now on is written.
        spare = torch.where(full, victim, (state.positions < 0).int().argmax(1))
        rows = torch.arange(len(victim), device=victim.device)
        cls.merge(state, compared, rows, torch.where(folds, survivor, spare), victim)
        return torch.where(folds, survivor, -1)

    @classmethod
    def compared(cls, state: LayerState) -> torch.Tensor:
        """Keys `[rows, heads, slots, head_dim]` as they are compared, and averaged."""
        return state.keys

    @classmethod
    def nearness(cls, state: LayerState, compared: torch.Tensor, victim: torch.Tensor) -> torch.Tensor:
        """How near every slot's pair is to the victim of its row, float32 `[rows, slots]`: more is nearer.

        Args:
            state: the layer's state.
            compared: as `compared` gives them.
            victim: slot of each row's victim, int64 `[rows]`.
        """
        keys, at = flat(compared), victim[:, None]
        norms = keys.norm(dim=-1)
        of_victim = keys.gather(1, at[:, :, None].expand(-1, 1, keys.shape[-1]))
        return cls.in_steps((keys * of_victim).sum(-1) / (norms * norms.gather(1, at)).clamp(min=1e-12))

    @staticmethod
    def in_steps(cosine: torch.Tensor) -> torch.Tensor:
        """Cosines as they are told apart: these all."""
        return cosine

    @classmethod
    def merge(
        cls, state: LayerState, compared: torch.Tensor, rows: torch.Tensor, into: torch.Tensor, gone: torch.Tensor
    ) -> None:
        """Make the survivor's key and value the means over all the tokens of both pairs.

        Args:
            state: the layer's state, changed in place.
            compared: as `compared` gives them.
            rows: int64 `[n]`.
            into: int64 `[n]`, the survivor's slot in each of them, or one that holds no pair.
            gone: int64 `[n]`, the victim's.
        """
        assert state.counts is not None
        key = mean_pair(compared, state.counts, rows, into, gone)
        state.held_keys.write(rows, into, state.held_keys.format.encode(key))
        cls.merge_values(state, rows, into, gone)

    @staticmethod
    def merge_values(state: LayerState, rows: torch.Tensor, into: torch.Tensor, gone: torch.Tensor) -> None:
        """Make the survivor's value the mean, and count the victim's tokens as the survivor's."""
        assert state.counts is not None
        value = mean_pair(state.values, state.counts, rows, into, gone)
        state.held_values.write(rows, into, state.held_values.format.encode(value))
        state.counts[rows, into] += state.counts[rows, gone]


def mean_pair(
    pairs: torch.Tensor, counts: torch.Tensor, rows: torch.Tensor, into: torch.Tensor, gone: torch.Tensor
) -> torch.Tensor:
    """The mean over the tokens of two pairs of each row, float32 `[n, heads, head_dim]`."""
    mine, its = (counts[rows, slot][:, None, None] for slot in (into, gone))
    return (pairs[rows, :, into].float() * mine + pairs[rows, :, gone].float() * its) / (mine + its)
