"""A sketch for each head out of one budget of bytes: the wider a head attends, the wider its sketch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sketch_eval.hashing import MERSENNE_31, pairwise_hash
from sketch_eval.policies.base import Attention, Pairs, Place, Policy
from sketch_eval.sketches import CountMinSketch

if TYPE_CHECKING:
    from sketch_eval.config import CacheConfig


def width_of(part: torch.Tensor, cells: int) -> torch.Tensor:
    """Cells in a row of the sketch of a head that may have a part, float `[..., heads]`, of a layer's: int64.

    The largest power of two in its part of all cells but one a head, which makes the sum at most `cells`.
    """
    heads = part.shape[-1]
    return 2 ** (part * (cells - heads)).clamp(min=1).log2().floor().long()


class AdaptiveCountMin(Policy):
    """Mass by a Count-Min Sketch for each head, whose sizes move with the entropy of the heads' attention.

    A layer's sketches have `heads × width` cells a row together, and each of them a power of two. A sketch that becomes
    narrower adds up what it has, which is what it would have counted at that width; one that becomes wider repeats it,
    so that it never says less than the truth.

    The memory is float32 `[rows, depth, heads · width]`, the heads' cells one after the other, and int64
    `[rows, heads]`, how many each has.
    """

    name = "adaptive"
    summary = "the same as count_min, where heads that attend to more pairs have more of the sketch"
    observes = frozenset({"mass"})
    reads = frozenset({"width", "depth", "decay", "seed"})
    sketched = True
    scopes = ("entropy",)

    def __init__(self, cell: CacheConfig, place: Place) -> None:
        super().__init__(cell, place)
        shared = {"batch": place.rows, "seed": cell.seed, "stream": place.stream, "device": place.device}
        self.cells = cell.width * place.owning
        self.sketch = CountMinSketch(self.cells, cell.depth, **shared)  # type: ignore[arg-type]
        equal = torch.full((place.rows, place.owning), 1 / place.owning, device=place.device)
        self.widths = width_of(equal, self.cells)
        self.hashes = pairwise_hash(MERSENNE_31, cell.depth, cell.seed, place.stream)

    def tags(self, items: torch.Tensor, pairs: Pairs) -> torch.Tensor:
        """Cells int64 `[rows, n, depth]`: among those of its owner, by the position."""
        heads = self.place.owning
        owner = items % heads
        width, first = self.widths.gather(1, owner), self._first().gather(1, owner)
        return first[..., None] + self.hashes(items // heads) % width[..., None]

    def estimate(self, tags: torch.Tensor) -> torch.Tensor:
        return self.sketch.read(tags)

    def account(self, tags: torch.Tensor, seen: Attention) -> None:
        assert seen.mass is not None
        if self.cell.decay < 1:
            self.sketch.scale(self._decay(seen.live))
        self.sketch.add(tags, seen.mass)

    def share_out(self, parts: torch.Tensor) -> None:
        widths = width_of(parts, self.cells)
        first, old = self._first(), self.widths
        for row in (widths != old).any(1).nonzero()[:, 0].tolist():
            table, at = torch.zeros_like(self.sketch.table[row]), 0
            for head, (before, now) in enumerate(zip(old[row].tolist(), widths[row].tolist(), strict=True)):
                begin = int(first[row, head])
                own = self.sketch.table[row, :, begin : begin + before]
                if now < before:
                    own = own.unflatten(1, (before // now, now)).sum(1)
                table[:, at : at + now] = own.repeat(1, max(now // before, 1))
                at += now
            self.sketch.table[row] = table
        self.widths = widths

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"sketch": self.sketch.table, "widths": self.widths}

    def select(self, rows: torch.Tensor) -> None:
        self.sketch.table, self.widths = self.sketch.table[rows], self.widths[rows]

    def _first(self) -> torch.Tensor:
        """The first cell of each head, int64 `[rows, heads]`."""
        return self.widths.cumsum(1) - self.widths
