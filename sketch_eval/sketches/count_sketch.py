"""The Count Sketch (Charikar, Chen and Farach-Colton, 2002), batched."""

from __future__ import annotations

from typing import Any

import torch

from sketch_eval.hashing import pairwise_hash
from sketch_eval.sketches.base import Sketch


class CountSketch(Sketch):
    """Weights of items by signed counts and a median over rows: unbiased, with errors to both sides.

    The median of an even number of rows is the mean of the middle two. Items are integers in [0, 2³¹ - 1).
    """

    name = "count_sketch"

    def __init__(self, width: int, depth: int, **shared: Any) -> None:
        super().__init__(width, depth, **shared)
        # One hash for cell and sign: the sign is the low bit of a bucket out of 2·width.
        self.hashes = pairwise_hash(2 * width, depth, self.seed, self.stream)

    def locate(self, items: torch.Tensor) -> torch.Tensor:
        bucket = self.hashes(items)
        return torch.where(bucket % 2 == 0, bucket // 2, ~(bucket // 2))

    def _combine(self, rows: torch.Tensor) -> torch.Tensor:
        ordered, middle = rows.sort(-1).values, self.depth // 2
        return (ordered[..., (self.depth - 1) // 2] + ordered[..., middle]) / 2
