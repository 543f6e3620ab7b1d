"""Keys unlike the others stay."""

from __future__ import annotations

import torch

from sketch_eval.policies.base import STEPS, Pairs, Policy, flat, in_steps


class KeyDifference(Policy):
    """One minus the cosine of a row's concatenated key with the mean of the held keys' directions.

    KeyDiff (Park et al., 2025): what is unlike the mean is distinctive, and is kept. Cosines within the same 4096th are
    ties, which go to the oldest in every execution: two keys alone are as near to their mean as each other.
    """

    name = "keydiff"
    summary = "pairs whose keys point elsewhere than the mean of the held keys' directions"
    observes = frozenset({"keys"})
    renewed = True

    def tags(self, items: torch.Tensor, pairs: Pairs) -> torch.Tensor:
        assert pairs.keys is not None
        directions = torch.nn.functional.normalize(flat(pairs.keys), dim=-1)
        anchor = (directions * (pairs.positions >= 0)[:, :, None]).sum(1)
        cosine = torch.einsum("rnd,rd->rn", directions, torch.nn.functional.normalize(anchor, dim=-1))
        return 1 - in_steps(cosine) / STEPS

    def estimate(self, tags: torch.Tensor) -> torch.Tensor:
        return tags
