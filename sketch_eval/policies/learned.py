"""A ranking that was fitted to a model: the attention to come that a pair's past leads one to expect."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sketch_eval.foresight import Fitted
from sketch_eval.policies.base import Attention, Pairs, Place, Policy

if TYPE_CHECKING:
    from sketch_eval.config import CacheConfig

DECAYS = (1.0, 0.99, 0.9)
"""How fast each of a pair's sums of mass forgets."""
LEAST = 1e-4
"""Added to a mass before its logarithm is taken."""
FEATURES = ("constant", "mass", "mass of 100", "mass of 10", "age", "key norm", "value norm", "came again")
"""What is known of a pair, in the order of the coefficients: logarithms, but for the first and the last."""


def features(
    masses: torch.Tensor, age: torch.Tensor, key_norm: torch.Tensor, value_norm: torch.Tensor, again: torch.Tensor
) -> torch.Tensor:
    """The features of pairs, float32 `[*, len(FEATURES)]`.

    Args:
        masses: `[*, len(DECAYS)]`, of the queries so far, decayed.
        age: `[*]`, queries that have met the pair.
        key_norm, value_norm: `[*]`.
        again: `[*]`, 1 where the pair's token has come again since, else 0.
    """
    sizes = torch.stack((age, key_norm.clamp(min=1e-6), value_norm.clamp(min=1e-6)), -1).log()
    return torch.cat((torch.ones_like(again)[..., None], (masses + LEAST).log(), sizes, again[..., None]), -1)


class Learned(Policy):
    """The exponential of a weighted sum of a pair's features: a Poisson regression of the mass to come.

    The weights are of each layer's key/value head by itself, and were fitted to one model on texts that no task uses
    (`python -m sketch_eval.calibrate`). The features are there as the text goes on, so that a cell can generate. The
    memory is float32 `[rows, len(DECAYS) + 1, slots]`: the masses, and whether the pair's token has come again.
    """

    name = "learned"
    summary = "pairs that a regression fitted to the model expects to draw the most attention yet"
    observes = frozenset({"tokens", "keys", "values", "mass"})
    fitted = True
    scopes = ("head",)
    renewed = True
    item_shape = ()

    def __init__(self, cell: CacheConfig, place: Place) -> None:
        super().__init__(cell, place)
        self.memory = torch.zeros(place.rows, len(DECAYS) + 1, place.slots, dtype=torch.float32, device=place.device)
        self.decays = torch.tensor(DECAYS, device=place.device)[:, None]
        self.weight = torch.zeros(place.rows, len(FEATURES), dtype=torch.float32, device=place.device)
        if place.foresight is not None:  # The ledger asks for shapes alone.
            assert isinstance(place.foresight, Fitted)
            fitted = place.foresight.coefficients.to(place.device)
            self.weight = fitted.repeat(place.rows // len(fitted), 1)

    def items(self, arriving: Pairs) -> torch.Tensor:
        assert arriving.tokens is not None
        return arriving.tokens

    def tags(self, items: torch.Tensor, pairs: Pairs) -> torch.Tensor:
        """Token, position, and norms of key and value, float64 `[rows, n, 4]`: ids are exact in it."""
        assert pairs.keys is not None
        assert pairs.values is not None
        norms = [vectors.float().square().sum((1, 3)).sqrt() for vectors in (pairs.keys, pairs.values)]
        return torch.stack((items.double(), pairs.positions.double(), *(norm.double() for norm in norms)), -1)

    def estimate(self, tags: torch.Tensor) -> torch.Tensor:
        _, position, key_norm, value_norm = tags.unbind(-1)
        age = position.amax(1, keepdim=True) - position + 1
        masses, again = self.memory[:, :-1].transpose(1, 2), self.memory[:, -1]
        known = features(masses, age.float(), key_norm.float(), value_norm.float(), again)
        return (known * self.weight[:, None]).sum(-1).exp()

    def arrive(self, slot: torch.Tensor) -> None:
        self.memory.scatter_(2, slot[:, None, None].expand(-1, len(DECAYS) + 1, 1), 0.0)

    def account(self, tags: torch.Tensor, seen: Attention) -> None:
        assert seen.mass is not None
        token, position = tags[..., 0], tags[..., 1]
        newest = position.argmax(1, keepdim=True)
        again = (token == token.gather(1, newest)) & (position >= 0) & (position < position.gather(1, newest))
        masses = self.memory[:, :-1] * self.decays + seen.mass[:, None]
        moved = torch.cat((masses, self.memory[:, -1:].maximum(again.float()[:, None])), 1)
        self.memory.copy_(torch.where(seen.live[:, None, None], moved, self.memory))

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"memory": self.memory, "weight": self.weight}

    def select(self, rows: torch.Tensor) -> None:
        self.memory, self.weight = self.memory[rows], self.weight[rows]
