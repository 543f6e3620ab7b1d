"""Accumulated mass as a sketch estimates it: a policy for each sketch (docs/design.md §3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from sketch_eval.policies.base import ARGUMENTS, Attention, Pairs, Place, Policy, flat
from sketch_eval.policies.items import ITEMS
from sketch_eval.sketches import CountMinSketch, CountSketch, RaceSketch, Sketch

if TYPE_CHECKING:
    from sketch_eval.config import CacheConfig


class Sketched(Policy):
    """Base of the sketched policies: the table, and the items that it hashes."""

    observes = frozenset({"tokens", "keys", "mass"})
    reads = frozenset(ARGUMENTS) - {"conservative"}
    sketched = True
    kind: ClassVar[type[Sketch]]

    def __init__(self, cell: CacheConfig, place: Place) -> None:
        super().__init__(cell, place)
        shared = {"batch": place.rows, "seed": cell.seed, "stream": place.stream, "device": place.device}
        own = {"conservative": cell.conservative} if "conservative" in self.reads else {}
        self.sketch = self.kind(self.cells, cell.depth, **shared, **own)  # type: ignore[arg-type]

    @property
    def cells(self) -> int:
        """Cells in a row of the table."""
        return self.cell.width

    @property
    def item_shape(self) -> tuple[int, ...] | None:
        return None if self.cell.item == "position" else ()

    def items(self, arriving: Pairs) -> torch.Tensor:
        return ITEMS[self.cell.item](arriving, self.cell.seed, self.place)

    def tags(self, items: torch.Tensor, pairs: Pairs) -> torch.Tensor:
        return self.sketch.locate(items)

    def estimate(self, tags: torch.Tensor) -> torch.Tensor:
        return self.sketch.read(tags)

    def account(self, tags: torch.Tensor, seen: Attention) -> None:
        assert seen.mass is not None
        if self.cell.decay < 1:
            self.sketch.scale(self._decay(seen.live))
        self.sketch.add(tags, seen.mass)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"sketch": self.sketch.table}

    def select(self, rows: torch.Tensor) -> None:
        self.sketch.table = self.sketch.table[rows]


class CountMin(Sketched):
    """Mass by a Count-Min Sketch."""

    name = "count_min"
    summary = "pairs that have drawn the most attention, as a Count-Min Sketch estimates it"
    reads = frozenset(ARGUMENTS)
    kind = CountMinSketch

    sketch: CountMinSketch


class CountSketched(Sketched):
    """Mass by a Count Sketch."""

    name = "count_sketch"
    summary = "the same, as a Count Sketch estimates it"
    kind = CountSketch


class Race(Sketched):
    """Mass near a pair's key by a RACE sketch, whose items are hashes of the key, one for each row of the sketch."""

    name = "race"
    summary = "pairs whose keys are near to those that have drawn the most attention, as a RACE sketch estimates it"
    observes = frozenset({"keys", "mass"})
    reads = frozenset(ARGUMENTS) - {"item", "conservative"}
    kind = RaceSketch

    sketch: RaceSketch

    @property
    def item_shape(self) -> tuple[int, ...]:
        return (self.cell.depth,)

    def items(self, arriving: Pairs) -> torch.Tensor:
        assert arriving.keys is not None
        return self.sketch.encode(flat(arriving.keys))


class RaceOfQueries(Race):
    """How near the queries so far were to a pair's key, by a RACE sketch of the queries themselves.

    A counter of held pairs knows what each of them has drawn. This knows what any key would draw, a new one's too: each
    row of the sketch counts the queries, with the cell's decay, in the cells of a sign hash, and is read at the cell of
    the key. A query is the mean of those that share a key/value head, with a row's heads concatenated as keys are.
    """

    name = "race_queries"
    summary = "pairs whose keys are near to the queries so far, as a RACE sketch of these estimates it"
    observes = frozenset({"keys", "queries"})

    def ask(self, queries: torch.Tensor) -> torch.Tensor:
        """Cells int64 `[rows, n, depth]` of queries `[rows, heads, group, n, head_dim]`."""
        return self.sketch.locate(self.sketch.encode(flat(queries.float().mean(2))))

    def account(self, tags: torch.Tensor, seen: Attention) -> None:
        assert seen.queries is not None
        if self.cell.decay < 1:
            self.sketch.scale(self._decay(seen.live))
        self.sketch.add(self.ask(seen.queries[:, :, :, None]), seen.live[:, None].float())


SKETCHED: tuple[type[Sketched], ...] = (CountMin, CountSketched, Race, RaceOfQueries)
