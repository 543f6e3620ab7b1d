"""RACE: repeated arrays of locality-sensitive counts (Coleman and Shrivastava, 2020), batched."""

from __future__ import annotations

from typing import Any

import torch

from sketch_eval.hashing import sign_hash
from sketch_eval.sketches.base import Sketch


class RaceSketch(Sketch):
    """Weight near a vector, by angle: each row counts in the cells of a sign random projection; rows are averaged.

    A row hashes with ⌊log₂ width⌋ hyperplanes, so it uses the first power of two of its cells. Items are the codes
    of vectors (`encode`), so that whoever stores an item stores `depth` integers and not a vector.
    """

    name = "race"

    def __init__(self, width: int, depth: int, **shared: Any) -> None:
        super().__init__(width, depth, **shared)

    def encode(self, vectors: torch.Tensor) -> torch.Tensor:
        """Items int64 `[batch, n, depth]` of vectors `[batch, n, features]`."""
        bits = self.width.bit_length() - 1
        return sign_hash(vectors.shape[-1], bits, self.depth, self.seed, self.stream)(vectors)

    def locate(self, items: torch.Tensor) -> torch.Tensor:
        return items.long()

    def _combine(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.mean(-1)
