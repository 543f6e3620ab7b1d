"""Seeded integer hashing: the same numbers on every platform, and never a global generator."""

from __future__ import annotations

from functools import cache, lru_cache

import torch

MERSENNE_31 = 2**31 - 1
_MASK = 2**64 - 1


def splitmix64(*words: int) -> int:
    """64 well-mixed bits of the given integers (Steele, Lea and Flood, 2014)."""
    state = 0
    for word in words:
        state = (state + word + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


Stream = int | tuple[int, ...]
"""Which family of a seed's hashes: one for each layer, so that layers do not share collisions. A tuple gives row r of
what is hashed the family number r modulo its length: the heads of a layer, where each has its own."""


def head_stream(layer: int, head: int) -> int:
    """The stream of one key/value head of a layer, which is no other head's and no layer's."""
    return (head + 1 << 32) + layer


def _families(stream: Stream) -> tuple[int, ...]:
    return stream if isinstance(stream, tuple) else (stream,)


def _rowwise(constants: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Constants `[families, ...]` for rows `[rows, n, ...]`: `[...]` of a single family, else `[rows, 1, ...]`."""
    families = constants.shape[0]
    if families == 1:
        return constants[0]
    return constants.repeat(rows.shape[0] // families, *(1 for _ in constants.shape[1:])).unsqueeze(1)


class PairwiseHash:
    """`depth` pairwise independent hashes x ↦ ((a·x + b) mod (2³¹ - 1)) mod size (Carter and Wegman, 1979).

    Args:
        size: number of buckets.
        depth: number of hashes.
        seed: seed of the families.
        stream: which family of that seed.

    Attributes:
        a, b: int64 `[families, depth]`.
    """

    def __init__(self, size: int, depth: int, seed: int, stream: Stream) -> None:
        self.size = size
        words = [[splitmix64(seed, family, row) for row in range(depth)] for family in _families(stream)]
        self.a = torch.tensor([[1 + word % (MERSENNE_31 - 1) for word in family] for family in words])
        self.b = torch.tensor([[splitmix64(word) % MERSENNE_31 for word in family] for family in words])
        self._on: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    def on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """a and b on a device, where they stay: a step does not wait for copies."""
        if device not in self._on:
            self._on[device] = self.a.to(device), self.b.to(device)
        return self._on[device]

    def __call__(self, items: torch.Tensor) -> torch.Tensor:
        """Buckets `[..., depth]` int64 of items `[...]`, integers in [0, 2³¹ - 1).

        With several families the items are `[rows, n]`.
        """
        a, b = (_rowwise(each, items) for each in self.on(items.device))
        return (items.long().unsqueeze(-1) * a + b) % MERSENNE_31 % self.size


class SignHash:
    """Sign random projection: a locality-sensitive hash of vectors by angle (Charikar, 2002).

    The hyperplanes' entries are ±1 (Achlioptas, 2003), drawn from `splitmix64`.

    Args:
        features: length of the vectors.
        bits: hyperplanes a hash; a code is in [0, 2^bits).
        depth: number of hashes.
        seed: seed of the families.
        stream: which family of that seed.
    """

    def __init__(self, features: int, bits: int, depth: int, seed: int, stream: Stream) -> None:
        self.bits, self.depth = bits, depth
        planes = torch.stack([_planes(features, depth * bits, seed, family) for family in _families(stream)])
        self._on = {planes.device: planes}

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """Codes `[..., depth]` int64 of vectors `[..., features]`, computed in float32.

        With several families the vectors are `[rows, n, features]`.
        """
        if vectors.device not in self._on:
            (first, *_) = self._on.values()
            self._on[vectors.device] = first.to(vectors.device)
        planes = self._on[vectors.device]
        families = planes[0] if len(planes) == 1 else planes.repeat(len(vectors) // len(planes), 1, 1)
        above = (vectors.float() @ families) > 0
        powers = 2 ** torch.arange(self.bits, device=vectors.device)
        return (above.unflatten(-1, (self.depth, self.bits)) * powers).sum(-1)


def _planes(features: int, count: int, seed: int, family: int) -> torch.Tensor:
    """The hyperplanes of one family, float32 `[features, count]`."""
    words = [splitmix64(seed, family, block) for block in range(-(-features * count // 64))]
    signs = [1.0 - 2.0 * (word >> bit & 1) for word in words for bit in range(64)]
    return torch.tensor(signs[: features * count], dtype=torch.float32).view(features, count)


pairwise_hash = lru_cache(maxsize=1024)(PairwiseHash)
sign_hash = cache(SignHash)
"""The families are made once a process: a cache is built anew for every request. Those that a cache does not hold on to
are kept for good, for a CUDA graph reads them where they lay when it was captured."""


def uniform(positions: torch.Tensor, seed: int, stream: Stream) -> torch.Tensor:
    """A draw in [0, 1) for each position, float32 of the same shape: the same for a position at any time."""
    starts = _rowwise(_starts(seed, stream, positions.device), positions)
    bits = positions.long() * _signed(0x9E3779B97F4A7C15) + starts
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ _shift_right(bits, shift)) * _signed(factor)
    return _shift_right(bits ^ _shift_right(bits, 31), 40).float() / 2**24


@cache  # As `sign_hash`.
def _starts(seed: int, stream: Stream, device: torch.device) -> torch.Tensor:
    """Where each family's draws start, int64 `[families]`."""
    return torch.tensor([_signed(splitmix64(seed, family)) for family in _families(stream)], device=device)


def _signed(word: int) -> int:
    """The int64 of the same 64 bits: torch has no unsigned products, and int64 ones wrap alike."""
    return word - 2**64 if word >= 2**63 else word


def _shift_right(bits: torch.Tensor, by: int) -> torch.Tensor:
    """Logical shift: int64's own fills with the sign."""
    return (bits >> by) & (2 ** (64 - by) - 1)
