"""What a sketch hashes for a pair (docs/design.md §1): `item` in the cell."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sketch_eval.hashing import sign_hash
from sketch_eval.policies.base import Pairs, Place, flat

KEY_BITS = 16
"""Hyperplanes that make the item `key`."""

Rule = Callable[[Pairs, int, Place], torch.Tensor]
"""Items int64 `[rows, n]` of arriving pairs, for a seed and a place."""


def _position(arriving: Pairs, seed: int, place: Place) -> torch.Tensor:
    return arriving.positions


def _token(arriving: Pairs, seed: int, place: Place) -> torch.Tensor:
    assert arriving.tokens is not None
    return arriving.tokens


def _key(arriving: Pairs, seed: int, place: Place) -> torch.Tensor:
    assert arriving.keys is not None
    keys = flat(arriving.keys)
    return sign_hash(keys.shape[-1], KEY_BITS, 1, seed, place.stream)(keys).squeeze(-1)


ITEMS: dict[str, Rule] = {"position": _position, "token": _token, "key": _key}
