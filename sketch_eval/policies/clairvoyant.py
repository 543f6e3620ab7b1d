"""The mass that a pair has still to receive, where the text has been read before (docs/design.md §9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sketch_eval.foresight import NONE, Attended
from sketch_eval.policies.base import EVERY_SCOPE, Attention, Place, Policy

if TYPE_CHECKING:
    from sketch_eval.config import CacheConfig

BLOCK = 256
"""Queries whose masses are in memory at once: as many rows of the text's attention."""


class Clairvoyant(Policy):
    """The mass that a pair has still to receive from the queries to come, in the full-cache pass over the same text.

    It is the full cache's own attention to come, taken greedily: what foresight could keep, and not a proven optimum.
    No row of a text may be padding.
    """

    name = "clairvoyant"
    summary = "pairs that the full cache will still attend to: a control, which has read the text before"
    foresees = "attention"
    scopes = EVERY_SCOPE

    def __init__(self, cell: CacheConfig, place: Place) -> None:
        super().__init__(cell, place)
        seen = place.foresight
        self.next = 0
        if seen is None:  # The ledger asks for shapes alone.
            return
        assert isinstance(seen, Attended)
        self.seen, self.units = seen, place.rows * place.owning // len(seen.keys)
        blocks = [(at, min(at + BLOCK, seen.length)) for at in range(0, seen.length, BLOCK)]
        self.to_come = torch.zeros(place.rows * place.owning, seen.length, dtype=torch.float64, device=place.device)
        """float64 `[rows, tokens]`, or `[rows · owning, tokens]`: from the queries that were not asked yet."""
        for first, last in blocks:
            self.to_come += seen.masses(first, last, self.units).sum(1)

    def estimate(self, tags: torch.Tensor) -> torch.Tensor:
        by_name = self.to_come.unflatten(0, (-1, self.place.owning)).transpose(1, 2).flatten(1)
        held = by_name.gather(1, tags.clamp(min=0))
        return held.masked_fill(held < NONE, 0.0).float()

    def account(self, tags: torch.Tensor, seen: Attention) -> None:
        self.ahead(1)

    def ahead(self, queries: int) -> torch.Tensor:
        """Go on by so many queries; what every pair has to come after each, float32 `[rows, queries, tokens]`."""
        first, self.next = self.next, self.next + queries
        left = self.to_come[:, None] - self.seen.masses(first, self.next, self.units).cumsum(1)
        self.to_come = left[:, -1]
        return left.masked_fill(left < NONE, 0.0).float()
