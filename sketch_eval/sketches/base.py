"""What every sketch is: a table of `depth × width` float32 cells for each sequence, and a rule to read it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Self

import torch

from sketch_eval.errors import UsageError
from sketch_eval.hashing import Stream


class Sketch(ABC):
    """A batch of sketches that share their hashes and nothing else.

    Items are hashed to cells once (`locate`), so that a caller that meets an item at every step can keep its cells.

    Cells are float32: one that holds 2²⁴ times a weight is no longer changed by adding that weight. With decay γ < 1 no
    cell exceeds the largest mass of a step over 1 - γ, and it is never met; a stream of any length that nothing decays
    wants `scale` or a new sketch before that.

    Args:
        width: cells in a row.
        depth: rows, each with its own hash.
        batch: independent streams, the leading dimension of everything.
        seed: seed of the hashes.
        stream: which hashes of that seed; one for each layer. With a tuple, sketch b of the batch has the hashes of
            `stream[b % len(stream)]`: those of a head, where each head of a layer has a sketch of its own.
        device: where the table lives.

    Attributes:
        table: float32 `[batch, depth, width]`, the only state.

    Raises:
        UsageError: width, depth or batch below 1, or a batch that the streams do not divide.
    """

    name: ClassVar[str]

    def __init__(
        self,
        width: int,
        depth: int,
        *,
        batch: int = 1,
        seed: int = 0,
        stream: Stream = 0,
        device: torch.device | str | None = None,
    ) -> None:
        for argument, value in (("width", width), ("depth", depth), ("batch", batch)):
            if value < 1:
                raise UsageError(f"{argument}={value}: a sketch needs at least 1")
        if isinstance(stream, tuple) and (not stream or batch % len(stream)):
            raise UsageError(f"stream={stream}: a batch of {batch} wants as many streams, or a share of them")
        self.width, self.depth, self.seed, self.stream = width, depth, seed, stream
        self.table = torch.zeros(batch, depth, width, dtype=torch.float32, device=device)

    @abstractmethod
    def locate(self, items: torch.Tensor) -> torch.Tensor:
        """Cells int64 `[batch, n, depth]` of items; a negative one, `~cell`, counts with the sign turned."""

    @abstractmethod
    def _combine(self, rows: torch.Tensor) -> torch.Tensor:
        """Estimates `[batch, n]` from what each row says, `[batch, n, depth]`."""

    def add(self, cells: torch.Tensor, weights: torch.Tensor) -> None:
        """Add weights `[batch, n]` at located cells; items that come twice add up."""
        self._check(cells, weights)
        signed = torch.where(cells < 0, -weights.unsqueeze(-1), weights.unsqueeze(-1).expand_as(cells))
        self.table.scatter_add_(2, _columns(cells).transpose(1, 2), signed.transpose(1, 2).to(self.table.dtype))

    def read(self, cells: torch.Tensor) -> torch.Tensor:
        """Estimates float32 `[batch, n]` at located cells."""
        self._check(cells)
        rows = self.table.gather(2, _columns(cells).transpose(1, 2)).transpose(1, 2)
        return self._combine(torch.where(cells < 0, -rows, rows))

    def update(self, items: torch.Tensor, weights: torch.Tensor) -> None:
        """Add weights float32 `[batch, n]` to items `[batch, n]`.

        Raises:
            UsageError: the batch is not the sketch's, or weights and items are not of one shape.
        """
        self.add(self.locate(items), weights)

    def estimate(self, items: torch.Tensor) -> torch.Tensor:
        """Estimated weight float32 `[batch, n]` of items."""
        return self.read(self.locate(items))

    def _check(self, cells: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Refuse cells of another batch: torch would reach its first streams, and say nothing of the others."""
        if len(cells) != len(self.table):
            raise UsageError(
                f"items of {len(cells)} streams: the sketch has {len(self.table)}; give a row of items for each"
            )
        if weights is not None and weights.shape != cells.shape[:2]:
            raise UsageError(
                f"weights of shape {tuple(weights.shape)}: items are of {tuple(cells.shape[:2])}, and each has one"
            )

    def scale(self, factor: float | torch.Tensor) -> None:
        """Multiply everything counted so far: decay by γ is `scale(γ)` before each update.

        A tensor of factors `[batch]` scales each stream by its own.
        """
        self.table.mul_(factor.view(-1, 1, 1) if isinstance(factor, torch.Tensor) else factor)

    def merge(self, other: Self) -> None:
        """Make this the sketch of both streams.

        Raises:
            UsageError: the other is of another kind, shape, seed or stream: its cells mean other items.
        """
        mine, theirs = self._identity(), other._identity()
        if mine != theirs:
            differing = next(key for key in mine if mine[key] != theirs.get(key))
            raise UsageError(
                f"{differing}={theirs.get(differing)!r} cannot be merged into {differing}={mine[differing]!r}; "
                "merge sketches of the same kind, shape, seed and stream"
            )
        self.table.add_(other.table)

    def reset(self) -> None:
        """Forget everything."""
        self.table.zero_()

    @property
    def nbytes(self) -> int:
        """Bytes of the table, all of the sketch's state."""
        return self.table.nbytes

    def _identity(self) -> dict[str, object]:
        """What two sketches must share for a cell to mean the same items in both."""
        shape = {"batch": self.table.shape[0], "width": self.width, "depth": self.depth}
        return {"kind": self.name, **shape, "seed": self.seed, "stream": self.stream}


def _columns(cells: torch.Tensor) -> torch.Tensor:
    return torch.where(cells < 0, ~cells, cells)
