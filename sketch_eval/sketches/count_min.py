"""The Count-Min Sketch (Cormode and Muthukrishnan, 2005), batched."""

from __future__ import annotations

import math
from typing import Any, Self

import torch

from sketch_eval.errors import UsageError
from sketch_eval.hashing import pairwise_hash
from sketch_eval.sketches.base import Sketch


class CountMinSketch(Sketch):
    """Weights of items, never under the truth and seldom far over it.

    With non-negative weights summing to N, an estimate exceeds the truth by more than (e/width)·N with probability
    at most e^-depth over the seeds. Items are integers in [0, 2³¹ - 1).

    Args:
        conservative: raise a cell no further than the largest new estimate that it must bear (Estan and Varghese,
            2002). Tighter, still never under; no longer linear, so it cannot be merged.
        width, depth, batch, seed, stream, device: see `Sketch`.

    >>> sketch = CountMinSketch(width=256, depth=4)
    >>> sketch.update(torch.tensor([[7, 7, 9]]), torch.tensor([[1.0, 2.0, 0.5]]))
    >>> sketch.estimate(torch.tensor([[7, 9, 1]]))
    tensor([[3.0000, 0.5000, 0.0000]])
    """

    name = "count_min"

    def __init__(self, width: int, depth: int, *, conservative: bool = False, **shared: Any) -> None:
        super().__init__(width, depth, **shared)
        self.conservative = conservative
        self.hashes = pairwise_hash(width, depth, self.seed, self.stream)

    @classmethod
    def for_error(cls, epsilon: float, delta: float, **shared: Any) -> Self:
        """The smallest sketch whose estimates exceed the truth by more than epsilon·N with probability ≤ delta.

        Raises:
            UsageError: epsilon or delta outside (0, 1).
        """
        for argument, value in (("epsilon", epsilon), ("delta", delta)):
            if not 0 < value < 1:
                raise UsageError(f"{argument}={value}: should be between 0 and 1")
        return cls(math.ceil(math.e / epsilon), math.ceil(math.log(1 / delta)), **shared)

    def locate(self, items: torch.Tensor) -> torch.Tensor:
        return self.hashes(items)

    def update(self, items: torch.Tensor, weights: torch.Tensor) -> None:
        """As in `Sketch`.

        Raises:
            UsageError: as in `Sketch`, or a weight is below 0 or no number, and no estimate would bound the truth.
        """
        if not (weights >= 0).all():
            worst = weights[~(weights >= 0)][0].item()
            raise UsageError(f"weights={worst}: a Count-Min Sketch takes none below 0; use a CountSketch")
        super().update(items, weights)

    def _combine(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.amin(-1)

    def add(self, cells: torch.Tensor, weights: torch.Tensor) -> None:
        if not self.conservative:
            super().add(cells, weights)
            return
        self._check(cells, weights)
        # Weights of one item add up first; then each cell rises to the largest new estimate among its items. Items
        # that share all their cells cannot be told apart, and may be taken as one.
        same = (cells.unsqueeze(1) == cells.unsqueeze(2)).all(-1)
        together = (same * weights.unsqueeze(1)).sum(-1)
        target = (self.read(cells) + together).unsqueeze(-1).expand_as(cells)
        self.table.scatter_reduce_(2, cells.transpose(1, 2), target.transpose(1, 2), "amax")

    def merge(self, other: Self) -> None:
        if self.conservative:
            raise UsageError("conservative=True: conservative sketches are not linear; merge plain ones")
        super().merge(other)

    def _identity(self) -> dict[str, object]:
        return super()._identity() | {"conservative": self.conservative}

    def total(self) -> torch.Tensor:
        """Total weight N of each stream, float32 `[batch]`; a plain sketch's rows each add up to it.

        Raises:
            UsageError: the sketch is conservative, whose rows do not.
        """
        if self.conservative:
            raise UsageError("conservative=True: only a plain sketch knows its total weight")
        return self.table[:, 0].sum(-1)

    def error_bound(self) -> torch.Tensor:
        """(e/width)·N of each stream, float32 `[batch]`: exceeded with probability at most e^-depth."""
        return math.e / self.width * self.total()
