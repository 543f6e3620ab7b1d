"""What is asked of one layer of a bounded cache, and what was decided at each token of it (docs/design.md §2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sketch_eval.formats import Parts


@dataclass(frozen=True)
class Call:
    """Tokens that are appended to a layer's store, one after the other.

    Attributes:
        q: queries `[batch, query heads, tokens, head_dim]`; those of one key/value head lie side by side.
        k, v: `[batch, kv_heads, tokens, head_dim]`.
        tokens: ids, int64 `[batch, tokens]`.
        valid: bool `[batch, tokens]`; a token that is not valid is padding: it changes nothing, and its output is 0.
        scaling: factor of the query-key products.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    tokens: torch.Tensor
    valid: torch.Tensor
    scaling: float

    @property
    def length(self) -> int:
        """Tokens, padding included."""
        return self.tokens.shape[1]

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Call:
        """The call of the changed tensors."""
        q, k, v, tokens, valid = map(change, (self.q, self.k, self.v, self.tokens, self.valid))
        return Call(q, k, v, tokens, valid, self.scaling)

    def to(self, device: torch.device | str) -> Call:
        """The call on a device."""
        return self.each(lambda tensor: tensor.to(device))

    def split(self, size: int) -> list[Call]:
        """The call as calls of at most so many tokens, one after the other."""
        vectors = (each.split(size, dim=2) for each in (self.q, self.k, self.v))
        said = (each.split(size, dim=1) for each in (self.tokens, self.valid))
        parts = zip(*vectors, *said, strict=True)
        return [Call(q, k, v, tokens, valid, self.scaling) for q, k, v, tokens, valid in parts]


@dataclass(frozen=True)
class Arriving:
    """The pairs of a call by row, as their format keeps them and as queries see them.

    Attributes:
        key_parts, value_parts: parts `[rows, heads, tokens, *]`.
        keys, values: `[rows, heads, tokens, head_dim]`.
    """

    key_parts: Parts
    value_parts: Parts
    keys: torch.Tensor
    values: torch.Tensor


@dataclass
class Trace:
    """What was decided at each token of a call, int32 `[rows, tokens]`, on the columns of its input.

    Attributes:
        victims: position of the pair that left, or -1.
        survivors: position of the pair that it was folded into, or -1.
        hidden: number of stored pairs that the token's query did not see.
        margins: float32, how clearly the oracle decided (`oracle.Step`); None from the other executions.
    """

    victims: torch.Tensor
    survivors: torch.Tensor
    hidden: torch.Tensor
    margins: torch.Tensor | None = None

    @classmethod
    def join(cls, traces: list[Trace]) -> Trace:
        """The trace of several calls, one after the other."""
        margins = [trace.margins for trace in traces if trace.margins is not None]
        return cls(
            victims=torch.cat([trace.victims for trace in traces], 1),
            survivors=torch.cat([trace.survivors for trace in traces], 1),
            hidden=torch.cat([trace.hidden for trace in traces], 1),
            margins=torch.cat(margins, 1) if margins else None,
        )

    def select(self, rows: torch.Tensor) -> Trace:
        """The trace of the given rows."""
        margins = None if self.margins is None else self.margins[rows]
        return Trace(self.victims[rows], self.survivors[rows], self.hidden[rows], margins)

    @classmethod
    def empty(cls, rows: int, tokens: int, device: torch.device | str | None = None) -> Trace:
        """The trace of tokens that decide nothing."""
        none = torch.full((rows, tokens), -1, dtype=torch.int32, device=device)
        return cls(none, none.clone(), torch.zeros_like(none))
