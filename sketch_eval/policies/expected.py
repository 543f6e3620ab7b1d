"""The attention that a Gaussian of the queries so far would give a pair."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sketch_eval.policies.base import Attention, Pairs, Place, Policy

if TYPE_CHECKING:
    from sketch_eval.config import CacheConfig


class ExpectedAttention(Policy):
    """Attention to a pair, expected of a query drawn from a Gaussian with the moments of the queries so far.

    Expected attention (Devoto et al., 2025, as in kvpress): the exponential of the product of a Gaussian query with a
    key k has the mean exp(k·μ + kᵀΣk / 2). These, made a softmax over the held pairs and times the norm of the value,
    are averaged over a row's query heads. kvpress takes the moments of a prompt once, before positions turn its
    queries, and turns the mean to positions to come. Here the moments follow the text, with the cell's decay, of
    queries as they were asked: with rotary positions, at their own.

    The memory is float32 `[rows, query heads, head_dim + 1, head_dim]`: the sums of q qᵀ, and below them that of q,
    queries scaled as in attention; and how many queries they are of, `[rows, 1]`.
    """

    name = "expected"
    summary = "pairs to which a Gaussian of the queries so far would attend, times the norm of their value"
    observes = frozenset({"keys", "values", "queries"})
    reads = frozenset({"decay"})
    renewed = True

    def __init__(self, cell: CacheConfig, place: Place) -> None:
        super().__init__(cell, place)
        shape = (place.rows, place.queries, place.head_dim + 1, place.head_dim)
        self.moments = torch.zeros(shape, dtype=torch.float32, device=place.device)
        self.weight = torch.zeros(place.rows, 1, dtype=torch.float32, device=place.device)

    def tags(self, items: torch.Tensor, pairs: Pairs) -> torch.Tensor:
        """Keys and values beside each other, and whether there is a pair: `[rows, n, heads, 2 · head_dim + 1]`."""
        assert pairs.keys is not None
        assert pairs.values is not None
        held = (pairs.positions >= 0)[:, None, :, None].expand(*pairs.keys.shape[:3], 1)
        return torch.cat((pairs.keys.float(), pairs.values.float(), held.float()), -1).transpose(1, 2)

    def estimate(self, tags: torch.Tensor) -> torch.Tensor:
        size = self.place.head_dim
        keys, values, held = tags.transpose(1, 2).split((size, size, 1), -1)
        mean = (self.moments / self.weight.clamp(min=1e-30)[:, :, None, None]).unflatten(1, (keys.shape[1], -1))
        first = torch.einsum("rhgd,rhnd->rhgn", mean[..., size, :], keys)
        second = torch.einsum("rhnd,rhgde,rhne->rhgn", keys, mean[..., :size, :], keys)
        logits = first + (second - first.square()) / 2
        logits = logits.masked_fill(held.transpose(2, 3) == 0, float("-inf"))
        return (logits.softmax(-1) * values.norm(dim=-1)[:, :, None]).flatten(1, 2).mean(1)

    def account(self, tags: torch.Tensor, seen: Attention) -> None:
        assert seen.queries is not None
        asked = seen.queries.flatten(1, 2) * seen.scaling
        decay, live = self._decay(seen.live), seen.live.float()
        self.moments.mul_(decay[:, None, None, None])
        outer = torch.einsum("rhd,rhe->rhde", asked, asked)
        self.moments.add_(torch.cat((outer, asked[:, :, None]), 2) * live[:, None, None, None])
        self.weight.mul_(decay[:, None]).add_(live[:, None])

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"moments": self.moments, "weight": self.weight}

    def select(self, rows: torch.Tensor) -> None:
        self.moments, self.weight = self.moments[rows], self.weight[rows]
