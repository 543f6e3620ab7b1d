"""What a full pass over a text that is known says of it: to policies that read it before (docs/design.md §9)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, PretrainedConfig
from transformers.cache_utils import CacheLayerMixin

from sketch_eval.families import shape_of

NONE = 1e-9
"""Mass to come below this is none: what is left of a sum, when all of it was taken away again, is its rounding."""


@dataclass(frozen=True)
class Losses:
    """What the full cache lost on each token of texts without padding.

    Attributes:
        losses: float32 `[batch, tokens]`, nats; 0 for the first token, which nothing comes before.
    """

    losses: torch.Tensor

    @property
    def length(self) -> int:
        """Tokens of the text."""
        return self.losses.shape[1]


@dataclass(frozen=True)
class Attended:
    """The queries and keys of one layer's full pass over texts without padding.

    Attributes:
        queries: `[batch, query heads, tokens, head_dim]`; those of one key/value head lie side by side.
        keys: `[batch, kv_heads, tokens, head_dim]`.
        scaling: factor of the query-key products.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    scaling: float

    @property
    def length(self) -> int:
        """Tokens of the text."""
        return self.keys.shape[2]

    def masses(self, first: int, last: int, units: int) -> torch.Tensor:
        """Mass that the queries from `first` to before `last` give every pair in the full cache.

        Args:
            first, last: positions.
            units: rows of a sequence: 1, or the number of key/value heads.

        Returns:
            float64 `[rows, last - first, tokens]`, 0 for the pairs that come after a query.
        """
        kv_heads, tokens = self.keys.shape[1:3]
        queries = self.queries[:, :, first:last].double().unflatten(1, (kv_heads, -1))
        scores = torch.einsum("bhgtd,bhsd->bhgts", queries, self.keys.double()) * self.scaling
        place = torch.arange(tokens, device=scores.device)
        scores = scores.masked_fill(place > place[first:last, None], float("-inf"))
        return scores.softmax(-1).unflatten(1, (units, -1)).flatten(2, 3).mean(2).flatten(0, 1)


@dataclass(frozen=True)
class Fitted:
    """What was fitted to the model whose layer it is: nothing of a text, so that it serves any.

    Attributes:
        coefficients: float32 `[kv_heads, features]`.
    """

    coefficients: torch.Tensor


Foresight = Attended | Losses | Fitted
"""What is known before the text begins."""

Foreseen = Mapping[int, Foresight]
"""The same, by layer."""


class Recorder(Cache):
    """The cache of a full pass that remembers what every layer asked: `past_key_values` of one call, with `enable`.

    Args:
        config: the model's config.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(layers=[_Passing() for _ in range(shape_of(config).layers)])
        self.seen: dict[int, Attended] = {}

    def record(self, layer: int, queries: torch.Tensor, keys: torch.Tensor, scaling: float) -> None:
        """Remember a layer's queries and keys; the arguments are as in `Attended`."""
        self.seen[layer] = Attended(queries, keys, scaling)


class _Passing(CacheLayerMixin):
    """A layer that keeps nothing: the pass is one call."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key_states, value_states

    def get_seq_length(self) -> int:
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_max_length(self) -> int:
        return -1
