"""What folding a pair into its nearest would lose."""

from __future__ import annotations

import torch

from sketch_eval.policies.base import STEPS, Pairs, flat, in_steps
from sketch_eval.policies.counters import Weighed


class FoldCost(Weighed):
    """Exact accumulated mass times one minus the cosine of a row's concatenated key with that of its nearest pair.

    Folding a pair moves its attention to a key at that distance, so that pairs that are like another, or that nothing
    attends to, go first; as KVMerger (Wang et al., 2024) and D2O (Wan et al., 2024) merge what is alike, here with the
    cost of each merge. The nearest is that of all pairs held. Cosines within the same 4096th are one, so that keys that
    are the same cost nothing in every execution; a pair without another is as far away as can be.
    """

    name = "fold_cost"
    summary = "pairs with the most attention times the distance of their key to the nearest that is held"
    observes = frozenset({"mass", "keys"})
    scopes = ("layer", "head")

    def tags(self, items: torch.Tensor, pairs: Pairs) -> torch.Tensor:
        assert pairs.keys is not None
        directions = torch.nn.functional.normalize(flat(pairs.keys), dim=-1)
        cosine = in_steps(directions @ directions.transpose(1, 2)) / STEPS
        free = (pairs.positions < 0)[:, None] | torch.eye(cosine.shape[1], dtype=torch.bool, device=cosine.device)
        return 1 - cosine.masked_fill(free | cosine.isnan(), -1.0).amax(-1)
