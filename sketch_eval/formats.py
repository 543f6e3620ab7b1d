"""How the numbers of a pair are kept: `store` in the cell (docs/design.md §8).

A format makes of vectors `[..., head_dim]` the tensors that a store holds, its *parts*, and of these the vectors that
queries see. Parts have the vectors' leading axes, so that a store can write the parts of one pair into a slot.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext

import torch

Parts = tuple[torch.Tensor, ...]

LARGEST_HALF = 65504.0


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Numbers as they are: autocast would round scores and hashes, and on a CPU it takes no float16.

    docs/design.md §2 has all decisions in float32.
    """
    enabled = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if enabled else nullcontext()


class Format(ABC):
    """A way to keep vectors.

    Attributes:
        names: what the ledger calls each part, behind `keys` or `values`.
    """

    names: tuple[str, ...]

    @abstractmethod
    def encode(self, vectors: torch.Tensor) -> Parts:
        """Parts `[..., *]` of vectors `[..., head_dim]`."""

    @abstractmethod
    def decode(self, parts: Parts) -> torch.Tensor:
        """The vectors `[..., head_dim]` that parts stand for."""

    @property
    def exact(self) -> bool:
        """Whether vectors come back as they were."""
        return False

    def rounded(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors as they come back."""
        return self.decode(self.encode(vectors))


class Float(Format):
    """Floating point: one part.

    Args:
        dtype: of the part; None for the vectors' own.
    """

    names = ("",)

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self.dtype = dtype

    @property
    def exact(self) -> bool:
        return self.dtype is None

    def encode(self, vectors: torch.Tensor) -> Parts:
        return (vectors if self.dtype is None else vectors.to(self.dtype),)

    def decode(self, parts: Parts) -> torch.Tensor:
        return parts[0]


class Quantised(Format):
    """Whole numbers of a few bits, in groups that share a float16 scale and zero: asymmetric, per vector.

    A group's zero is its least number and its scale the rest of its range over the largest code, both in float16, as
    KIVI keeps values (Liu et al., 2024); a number is the nearest of the codes, times the scale, above the zero. The
    parts are the codes, packed, uint8 `[..., bytes]`, and the grids, float16 `[..., groups, 2]`.

    Args:
        bits: of a code, 1 to 8.
        group: numbers that share a scale and a zero; the last group of a vector may be shorter.
        head_dim: numbers of a vector.
    """

    names = ("", "_grid")

    def __init__(self, bits: int, group: int, head_dim: int) -> None:
        self.bits, self.group, self.head_dim = bits, min(group, head_dim), head_dim
        self.levels = 2**bits - 1

    def encode(self, vectors: torch.Tensor) -> Parts:
        groups = self._grouped(vectors.float())
        zero = groups.amin(-1).clamp(-LARGEST_HALF, LARGEST_HALF).half()
        scale = ((groups.amax(-1) - zero.float()) / self.levels).clamp(0.0, LARGEST_HALF).half()
        grid = torch.stack((scale, zero), -1)
        return self.pack(self.codes(vectors, grid)), grid

    def decode(self, parts: Parts) -> torch.Tensor:
        packed, grid = parts
        if self.head_dim % self.group == 0:
            grouped = self.unpack(packed).float().unflatten(-1, (-1, self.group))
            scale, zero = grid.float().unsqueeze(-1).unbind(-2)
            return (grouped * scale + zero).flatten(-2)
        scale, zero = (each.float().repeat_interleave(self.group, -1)[..., : self.head_dim] for each in grid.unbind(-1))
        return self.unpack(packed).float() * scale + zero

    def codes(self, vectors: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """The nearest codes uint8 `[..., head_dim]` on given grids; 0 for what is not a number, whose grid is none."""
        scale, zero = (each.float()[..., None] for each in grid.unbind(-1))
        steps = (self._grouped(vectors.float()) - zero) / torch.where(scale > 0, scale, torch.inf)
        codes = steps.round().clamp(0, self.levels).nan_to_num(0.0)
        return codes.flatten(-2)[..., : self.head_dim].to(torch.uint8)

    def pack(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes uint8 `[..., head_dim]` in as few bytes as hold them: of eight codes, `bits` bytes."""
        if self.bits == 8:
            return codes
        if self.bits == 4:  # As below, without words of 64 bits.
            pairs = torch.nn.functional.pad(codes, (0, self.head_dim % 2)).unflatten(-1, (-1, 2))
            return pairs[..., 0] | pairs[..., 1] << 4
        eights = torch.nn.functional.pad(codes, (0, -self.head_dim % 8)).unflatten(-1, (-1, 8)).long()
        words = (eights << self._places(8, self.bits, codes)).sum(-1, keepdim=True)
        packed = (words >> self._places(self.bits, 8, codes)) & 255
        return packed.flatten(-2)[..., : -(-self.head_dim * self.bits // 8)].to(torch.uint8)

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """The codes uint8 `[..., head_dim]` of packed bytes."""
        if self.bits == 8:
            return packed
        if self.bits == 4:
            return torch.stack((packed & 15, packed >> 4), -1).flatten(-2)[..., : self.head_dim]
        bytes_ = torch.nn.functional.pad(packed, (0, -packed.shape[-1] % self.bits)).unflatten(-1, (-1, self.bits))
        words = (bytes_.long() << self._places(self.bits, 8, packed)).sum(-1, keepdim=True)
        codes = (words >> self._places(8, self.bits, packed)) & self.levels
        return codes.flatten(-2)[..., : self.head_dim].to(torch.uint8)

    def _grouped(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors as `[..., groups, group]`; a last group that is shorter is filled up with its last number."""
        missing = -self.head_dim % self.group
        filled = torch.cat((vectors, vectors[..., -1:].expand(*vectors.shape[:-1], missing)), -1)
        return filled.unflatten(-1, (-1, self.group))

    @staticmethod
    def _places(count: int, step: int, like: torch.Tensor) -> torch.Tensor:
        return torch.arange(0, count * step, step, device=like.device)


BITS = {"int8": (8, 8), "int4": (4, 4), "int3": (3, 3), "k8v4": (8, 4)}
"""The quantised formats by name: bits of a key's numbers, and of a value's.

Keys want more: an error in a key changes the weight of its pair, and some channels of keys lie far from others (KIVI;
Liu et al., 2024). Eight bits and four are as many as with llama.cpp's `-ctk q8_0 -ctv q4_0`.
"""

FORMATS = ("float", "float16", *BITS)
"""All of them; `float` is the model's own."""


def formats_of(store: str, group: int, head_dim: int) -> tuple[Format, Format]:
    """The formats of keys and of values, by the name of both; `group` and `head_dim` are as in `Quantised`.

    Either both are quantised or none is.
    """
    if store in BITS:  # What reads a store asks the keys' format alone whether both are.
        keys, values = BITS[store]
        return Quantised(keys, group, head_dim), Quantised(values, group, head_dim)
    both = Float(torch.float16 if store == "float16" else None)
    return both, both
