"""What every policy is: a rule by which the pairs of a store rank, with the memory that it needs (docs/design.md §4).

A policy works on *rows*: with scope=layer a row is a sequence, with scope=head a key/value head of one, so that a
sequence has as many rows as the model has key/value heads, one after the other. Rows share nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from sketch_eval.hashing import Stream

if TYPE_CHECKING:  # The config's choices are the registry's, so nothing here may need the config.
    from sketch_eval.config import CacheConfig
    from sketch_eval.foresight import Foresight

Observed = Literal["tokens", "keys", "values", "queries", "weights", "mass"]

EVERY_SCOPE = ("layer", "head", "budget", "entropy")
"""What can share its victims, as a policy that ranks any pair by itself goes with all of it."""

ARGUMENTS = ("width", "depth", "item", "decay", "conservative", "seed")
"""Arguments of a cell that are some policies' own. All others mean something to every policy."""


@dataclass(frozen=True)
class Place:
    """Where a policy is at work.

    Attributes:
        rows: how many rows.
        slots: pairs that the store of a row has room for.
        queries: query heads of a row.
        head_dim: numbers of a head's key, value or query.
        stream: of its hashes: the layer's, or one for each key/value head of it.
        device: where its tensors live.
        foresight: what the full cache saw of the text, for a policy that foresees.
        owning: key/value heads whose pairs are in the slots of a row, each in its own; positions are then those of
            `LayerState.names`.
    """

    rows: int
    slots: int
    queries: int
    head_dim: int
    stream: Stream
    device: torch.device
    foresight: Foresight | None = None
    owning: int = 1


@dataclass(frozen=True)
class Pairs:
    """n pairs of every row. What a policy does not observe is None.

    Attributes:
        positions: int64 `[rows, n]`, -1 for a free slot.
        tokens: ids, int64 `[rows, n]`; None for pairs that are stored already.
        keys, values: `[rows, heads, n, head_dim]`, of the key/value heads of a row, as they are stored.
    """

    positions: torch.Tensor
    tokens: torch.Tensor | None = None
    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None


@dataclass(frozen=True)
class Attention:
    """One query of every row. What a policy does not observe is None.

    Attributes:
        live: bool `[rows]`, False where the query is padding, of which nothing may be remembered.
        queries: float32 `[rows, heads, group, head_dim]`, of the queries that share each of the key/value heads.
        weights: float32 `[rows, heads, group, slots]`, what each of them gave the pair in every slot; 0 if hidden.
        mass: float32 `[rows, slots]`, the mean of a row's weights (docs/design.md §1).
        scaling: factor of the query-key products.
    """

    live: torch.Tensor
    queries: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    mass: torch.Tensor | None = None
    scaling: float = 1.0


class Policy(ABC):
    """A ranking of the pairs in the slots of every row.

    A pair has an *item*, fixed when it arrives and kept with it, and *tags*, which is what the policy makes of the item
    and of the pair as it is stored now. Tags are computed anew for each step and never kept.

    Args:
        cell: the cell.
        place: the rows and slots.
    """

    name: ClassVar[str]
    """What `importance` is called."""
    summary: ClassVar[str]
    """What it keeps, in a line of the documentation's table."""
    observes: ClassVar[frozenset[Observed]] = frozenset()
    """What it is shown beside positions."""
    reads: ClassVar[frozenset[str]] = frozenset()
    """Those of `ARGUMENTS` that its decisions depend on: what tells computations apart."""
    sketched: ClassVar[bool] = False
    """Whether it is a sketch, and not a control to hold one against."""
    foresees: ClassVar[Literal["", "attention", "losses"]] = ""
    """What it has to know of the text before it begins (`attention.foresee`), for scoring alone; empty for nothing."""

    fitted: ClassVar[bool] = False
    """Whether it ranks by numbers that were fitted to the model (`fitting.load`)."""
    scopes: ClassVar[tuple[str, ...]] = ("layer", "head")
    """The scopes that it goes with; with `budget` and `entropy` it ranks pairs of several heads in one row's slots."""
    renewed: ClassVar[bool] = False
    """Whether the estimates of all held pairs change at every token, with what else is held or was asked."""

    asks: ClassVar[bool] = False
    """Whether Python looks at its numbers within a step: others change their tensors in place, and a CUDA graph can
    hold a step of theirs."""

    def __init__(self, cell: CacheConfig, place: Place) -> None:
        self.cell, self.place = cell, place

    def items(self, arriving: Pairs) -> torch.Tensor:
        """Items int64 `[rows, n]` of arriving pairs, or `[rows, n, ...]`."""
        return arriving.positions

    @property
    def item_shape(self) -> tuple[int, ...] | None:
        """Shape of what must be kept of a pair's item; None where the item is its position, which is kept anyway."""
        return None

    def tags(self, items: torch.Tensor, pairs: Pairs) -> torch.Tensor:
        """Tags `[rows, n, ...]` of pairs, arriving or stored, with their items."""
        return items

    @abstractmethod
    def estimate(self, tags: torch.Tensor) -> torch.Tensor:
        """Estimates float32 `[rows, slots]` of the pairs in all slots; anything for a free one."""

    def arrive(self, slot: torch.Tensor) -> None:
        """A new pair is in `slot`, int64 `[rows]`, of each row."""

    def account(self, tags: torch.Tensor, seen: Attention) -> None:
        """Take in what a query saw."""

    def share_out(self, parts: torch.Tensor) -> None:
        """With scope=entropy, after each token: the part of a layer that each head may have, float `[rows, heads]`."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """The memory, by its name in the ledger, with the rows leading: what the policy costs in bytes."""
        return {}

    def select(self, rows: torch.Tensor) -> None:
        """Make the rows the given ones of them."""

    def _decay(self, live: torch.Tensor) -> torch.Tensor:
        """The factor of each row, float32 `[rows]`: the cell's decay, and 1 where the query is padding."""
        return torch.ones_like(live, dtype=torch.float32).masked_fill(live, self.cell.decay)


STEPS = 4096
"""How many cosines are told apart between 0 and 1, where equal ones differ by their rounding."""


def in_steps(cosine: torch.Tensor) -> torch.Tensor:
    """Cosines as whole numbers of steps, the nearest."""
    return (cosine * STEPS + 0.5).floor()


def flat(keys: torch.Tensor) -> torch.Tensor:
    """Keys `[rows, heads, n, head_dim]` with a row's heads concatenated, float32 `[rows, n, heads · head_dim]`."""
    return keys.transpose(1, 2).flatten(2).float()
