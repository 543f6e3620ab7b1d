"""Seeded integer hashing: the same numbers on every platform, and never a global generator."""

from __future__ import annotations

from functools import lru_cache

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


class PairwiseHash:
    """`depth` pairwise independent hashes x ↦ ((a·x + b) mod (2³¹ - 1)) mod size (Carter and Wegman, 1979).

    Args:
        size: number of buckets.
        depth: number of hashes.
        seed: seed of the family.
        stream: which family of that seed: one for each layer, so that layers do not share collisions.
    """

    def __init__(self, size: int, depth: int, seed: int, stream: int) -> None:
        self.size = size
        words = [splitmix64(seed, stream, row) for row in range(depth)]
        self._a = torch.tensor([1 + word % (MERSENNE_31 - 1) for word in words])
        self._b = torch.tensor([splitmix64(word) % MERSENNE_31 for word in words])

    def __call__(self, items: torch.Tensor) -> torch.Tensor:
        """Buckets `[..., depth]` int64 of items `[...]`, integers in [0, 2³¹ - 1)."""
        a, b = self._a.to(items.device), self._b.to(items.device)
        return (items.long().unsqueeze(-1) * a + b) % MERSENNE_31 % self.size


class SignHash:
    """Sign random projection: a locality-sensitive hash of vectors by angle (Charikar, 2002).

    The hyperplanes' entries are ±1 (Achlioptas, 2003), drawn from `splitmix64`.

    Args:
        features: length of the vectors.
        bits: hyperplanes a hash; a code is in [0, 2^bits).
        depth: number of hashes.
        seed: seed of the family.
        stream: which family of that seed.
    """

    def __init__(self, features: int, bits: int, depth: int, seed: int, stream: int) -> None:
        self.bits, self.depth = bits, depth
        count = features * bits * depth
        words = [splitmix64(seed, stream, block) for block in range(-(-count // 64))]
        signs = [1.0 - 2.0 * (word >> bit & 1) for word in words for bit in range(64)]
        self._planes = torch.tensor(signs[:count], dtype=torch.float32).view(features, depth * bits)

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """Codes `[..., depth]` int64 of vectors `[..., features]`, computed in float32."""
        above = (vectors.float() @ self._planes.to(vectors.device)) > 0
        powers = 2 ** torch.arange(self.bits, device=vectors.device)
        return (above.unflatten(-1, (self.depth, self.bits)) * powers).sum(-1)


pairwise_hash = lru_cache(maxsize=1024)(PairwiseHash)
sign_hash = lru_cache(maxsize=256)(SignHash)
"""The families are made once a process: a cache is built anew for every request."""


def uniform(positions: torch.Tensor, seed: int, stream: int) -> torch.Tensor:
    """A draw in [0, 1) for each position, float32 of the same shape: the same for a position at any time."""
    bits = positions.long() * _signed(0x9E3779B97F4A7C15) + _signed(splitmix64(seed, stream))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ _shift_right(bits, shift)) * _signed(factor)
    return _shift_right(bits ^ _shift_right(bits, 31), 40).float() / 2**24


def _signed(word: int) -> int:
    """The int64 of the same 64 bits: torch has no unsigned products, and int64 ones wrap alike."""
    return word - 2**64 if word >= 2**63 else word


def _shift_right(bits: torch.Tensor, by: int) -> torch.Tensor:
    """Logical shift: int64's own fills with the sign."""
    return (bits >> by) & (2 ** (64 - by) - 1)
