"""What a ranking is fitted to: pairs of a full pass as they looked at some moment, and the mass that followed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from sketch_eval.config import CacheConfig
from sketch_eval.diagnose.watch import Layer, watch
from sketch_eval.policies.learned import DECAYS, features


@dataclass(frozen=True)
class Moment:
    """All the pairs of a text at one moment, in one layer.

    Attributes:
        layer: which.
        known: float32 `[kv_heads, pairs, features]`.
        follows: float32 `[kv_heads, pairs]`, mass from the queries still to come.
        left: how many these are.
    """

    layer: int
    known: torch.Tensor
    follows: torch.Tensor
    left: int


def observe(model: PreTrainedModel, tokens: torch.Tensor, moments: list[int]) -> Iterator[Moment]:
    """Every layer at every moment of one text, seen with a cache that holds all of it.

    Args:
        model: a model on which `attention.enable` was called.
        tokens: ids, int64 `[tokens]`.
        moments: numbers of tokens after which to look.
    """
    whole = CacheConfig(max_cache_size=len(tokens), importance="recency", sinks=0, recent=1)
    for number, layer in enumerate(watch(model, whole, tokens)):
        masses = _masses(layer)
        for moment in moments:
            known = _features(layer, masses[:, :moment, :moment], tokens[:moment])
            follows = masses[:, moment:, :moment].sum(1)
            yield Moment(number, known, follows, len(tokens) - moment)


def _masses(layer: Layer) -> torch.Tensor:
    """What each query gave each pair, the mean of a head's queries: float32 `[kv_heads, queries, pairs]`."""
    queries = layer.q.unflatten(0, (len(layer.k), -1))
    scores = torch.einsum("hgtd,hsd->hgts", queries, layer.k)
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, float("-inf")).softmax(-1).mean(1)


def _features(layer: Layer, masses: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The features of the pairs of the tokens so far; masses are of the queries so far."""
    heads, length = len(masses), len(tokens)
    age = torch.arange(length, 0, -1)
    weights = torch.tensor(DECAYS)[:, None] ** (age - 1)
    again = ((tokens[:, None] == tokens) & (age > age[:, None]).T).any(1)
    return features(
        torch.einsum("kt,hts->hsk", weights, masses),
        age.float().expand(heads, -1),
        layer.k[:, :length].norm(dim=-1),
        layer.v[:, :length].norm(dim=-1),
        again.float().expand(heads, -1),
    )
