"""Tokens that the model did not expect stay."""

from __future__ import annotations

import torch

from sketch_eval.foresight import Losses
from sketch_eval.policies.base import EVERY_SCOPE, Pairs, Policy


class Surprisal(Policy):
    """The full cache's own loss on a pair's token, in nats: minus the log-likelihood that it gave it.

    It is no foresight, for the loss on a token depends on nothing after it; but a pass over all layers at once has no
    loss of the bounded cache itself to rank by, so the text is read with the full cache before, and a cell cannot
    generate. A pair keeps its number as its item, a float32 in 32 bits. The first token has a loss of 0. In every row
    of a sequence the numbers are the same.
    """

    name = "surprisal"
    summary = "pairs whose token the model, with the full cache, gave little likelihood"
    foresees = "losses"
    scopes = EVERY_SCOPE
    item_shape = ()

    def items(self, arriving: Pairs) -> torch.Tensor:
        if self.place.foresight is None:  # The ledger asks for shapes alone.
            return arriving.positions
        assert isinstance(self.place.foresight, Losses)
        losses = self.place.foresight.losses
        by_row = losses.repeat_interleave(self.place.rows // len(losses), 0)
        return by_row.gather(1, arriving.positions.clamp(min=0) // self.place.owning).view(torch.int32).long()

    def tags(self, items: torch.Tensor, pairs: Pairs) -> torch.Tensor:
        return items.int().view(torch.float32)

    def estimate(self, tags: torch.Tensor) -> torch.Tensor:
        return tags
