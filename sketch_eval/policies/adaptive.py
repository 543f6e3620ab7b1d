"""A sketch for each head out of one budget of bytes: the wider a head attends, the wider its sketch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sketch_eval.hashing import MERSENNE_31, head_stream, pairwise_hash
from sketch_eval.policies.base import Pairs, Place
from sketch_eval.policies.sketched import Sketched
from sketch_eval.sketches import CountMinSketch

if TYPE_CHECKING:
    from sketch_eval.config import CacheConfig


def widths_of(parts: torch.Tensor, cells: int) -> torch.Tensor:
    """Cells in a row of each head's sketch, int64 `[rows, heads]`: powers of two whose sum is at most `cells`.

    Each head has the largest power of two in its part of all cells but one a head, and at least one. Then, those first
    that have least of their part, each has twice as many if these are left.

    Args:
        parts: float `[rows, heads]`, each head's part of its layer's cells; they sum to 1.
        cells: what a layer has, at least one a head.
    """
    heads = parts.shape[1]
    whole = parts.double() / parts.double().sum(1, keepdim=True)
    wanted = (whole * (cells - heads)).clamp(min=1)
    widths = torch.ones_like(wanted, dtype=torch.int64) << (wanted.frexp().exponent - 1).long()
    left = cells - widths.sum(1, keepdim=True)
    for head in (wanted / widths).argsort(dim=1, descending=True, stable=True).split(1, dim=1):
        more = widths.gather(1, head)
        more = torch.where(more <= left, more, 0)
        widths.scatter_add_(1, head, more)
        left = left - more
    return widths


class AdaptiveCountMin(Sketched):
    """Mass by a Count-Min Sketch for each head, whose sizes move with the entropy of the heads' attention.

    A layer's sketches have `heads × width` cells a row together, and each of them a power of two. One that becomes
    wider repeats its cells, and one that becomes narrower keeps the largest of those that fall together. So it never
    says less than the truth, and to become wider and narrow again changes nothing. (Sums would count what was repeated
    once more each time.)

    The memory is float32 `[rows, depth, heads · width]`, the heads' cells one after the other, and int64
    `[rows, heads]`, how many each has.
    """

    name = "adaptive"
    summary = "the same as count_min, where heads that attend to more pairs have more of the sketch"
    observes = frozenset({"mass"})
    reads = frozenset({"width", "depth", "decay", "seed"})
    scopes = ("entropy",)
    asks = True
    kind = CountMinSketch
    item_shape = None

    def __init__(self, cell: CacheConfig, place: Place) -> None:
        super().__init__(cell, place)
        equal = torch.full((place.rows, place.owning), 1 / place.owning, device=place.device)
        self.widths = widths_of(equal, self.cells)
        assert isinstance(place.stream, int)
        own = tuple(head_stream(place.stream, head) for head in range(place.owning))
        self.hashes = pairwise_hash(MERSENNE_31, cell.depth, cell.seed, own)

    @property
    def cells(self) -> int:
        """Of all heads together."""
        return self.cell.width * self.place.owning

    def items(self, arriving: Pairs) -> torch.Tensor:
        return arriving.positions

    def tags(self, items: torch.Tensor, pairs: Pairs) -> torch.Tensor:
        """Cells int64 `[rows, n, depth]`: among those of its owner, by the position."""
        heads = self.place.owning
        owner = items % heads
        width, first = self.widths.gather(1, owner), self._first().gather(1, owner)
        a, b = (each[owner] for each in self.hashes.on(owner.device))
        return first[..., None] + ((items // heads)[..., None] * a + b) % MERSENNE_31 % width[..., None]

    def share_out(self, parts: torch.Tensor) -> None:
        widths = widths_of(parts, self.cells)
        first, old = self._first(), self.widths
        for row in (widths != old).any(1).nonzero()[:, 0].tolist():
            table, at = torch.zeros_like(self.sketch.table[row]), 0
            for head, (before, now) in enumerate(zip(old[row].tolist(), widths[row].tolist(), strict=True)):
                begin = int(first[row, head])
                own = self.sketch.table[row, :, begin : begin + before]
                if now < before:
                    own = own.unflatten(1, (before // now, now)).amax(1)
                table[:, at : at + now] = own.repeat(1, max(now // before, 1))
                at += now
            self.sketch.table[row] = table
        self.widths = widths

    def tensors(self) -> dict[str, torch.Tensor]:
        return super().tensors() | {"widths": self.widths}

    def select(self, rows: torch.Tensor) -> None:
        super().select(rows)
        self.widths = self.widths[rows]

    def _first(self) -> torch.Tensor:
        """The first cell of each head, int64 `[rows, heads]`."""
        return self.widths.cumsum(1) - self.widths
