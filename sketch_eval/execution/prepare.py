"""What a fast execution wants of a state and a call before its loop, and what it leaves to be done after it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sketch_eval.policies.clairvoyant import Clairvoyant
from sketch_eval.state import Call, LayerState


@dataclass(frozen=True)
class Prepared:
    """A layer's state and a call's tokens as plain arrays, by row.

    A policy that ranks by cells in a table has `cells`, and one that ranks by a number a pair has `scores`; the other
    is a placeholder. `table`, `counts` and the scores of counters are the state's own memory, and so are keys and
    values in float32: a loop that writes to them changes the state.

    Attributes:
        keys: float32 `[rows, heads, head_dim, slots]`; values: float32 `[rows, heads, slots, head_dim]`.
        counts: float32 `[rows, slots]`, ones where the fate counts nothing.
        cells: int32 `[rows, slots, depth]`; scores: float32 `[rows, slots]`; table: float32 `[rows, depth, width]`.
        new_cells: int32 `[rows, tokens, depth]`; new_scores: float32 `[rows, tokens]`.
        ahead: float32 `[rows, tokens, text]`, the score of every position of a text that is foreseen, after each token;
            a placeholder for other policies.
    """

    keys: torch.Tensor
    values: torch.Tensor
    counts: torch.Tensor
    cells: torch.Tensor
    scores: torch.Tensor
    table: torch.Tensor
    new_cells: torch.Tensor
    new_scores: torch.Tensor
    ahead: torch.Tensor
    _items: torch.Tensor
    _first: torch.Tensor
    _valid: torch.Tensor

    def finish(self, state: LayerState) -> None:
        """Bring the state up to what the loop wrote."""
        if state.items is not None:
            self._keep_items(state)
        if self.keys.data_ptr() != state.keys.data_ptr():  # They were widened, or lay otherwise in memory.
            state.keys.copy_(self.keys.transpose(2, 3))
            state.values.copy_(self.values)

    def _keep_items(self, state: LayerState) -> None:
        """Put the items of the pairs that arrived in this call, and stayed, in their slots."""
        assert state.items is not None
        columns = self._valid.int().argsort(dim=1, descending=True, stable=True)  # The valid ones, in order, lead.
        arrival = state.positions - self._first[:, None]
        row, slot = (arrival >= 0).nonzero(as_tuple=True)
        state.items[row, slot] = self._items[row, columns[row, arrival[row, slot].long()]].int()


def prepare(state: LayerState, call: Call) -> Prepared:
    """The arrays of a state and a call."""
    policy, rows = state.policy, len(state.positions)
    # Positions first: a token's items and tags may depend on its own.
    first, valid = state.by_row(state.seen.clone()), state.by_row(call.valid)
    position = first[:, None] + valid.cumsum(1) - 1
    arriving = state.show(position, state.by_row(call.tokens), state.split(call.k), state.split(call.v))
    items = policy.items(arriving)
    new_cells, new_scores = _split(policy.tags(items, arriving))
    cells, scores = _split(state.tags())
    held, ahead = policy.tensors(), torch.empty(rows, 1, 1, dtype=torch.float32)
    if isinstance(policy, Clairvoyant):
        scores, new_scores = policy.estimate(state.tags()), policy.estimate(items)
        ahead = policy.ahead(call.length)
    if "scores" in held:
        scores, new_scores = held["scores"], torch.zeros_like(new_scores)
    return Prepared(
        keys=state.keys.transpose(2, 3).float().contiguous(),
        values=state.values.float().contiguous(),
        counts=torch.ones_like(state.positions, dtype=torch.float32) if state.counts is None else state.counts,
        cells=cells,
        scores=scores,
        table=held.get("sketch", cells.new_zeros(rows, 1, 1, dtype=torch.float32)),
        new_cells=new_cells,
        new_scores=new_scores,
        ahead=ahead,
        _items=items,
        _first=first,
        _valid=valid,
    )


def _split(tags: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tags as cells int32 `[rows, n, depth]` and as scores float32 `[rows, n]`, one of which is a placeholder."""
    rows, n = tags.shape[:2]
    if tags.dim() == 3:
        return tags.int().contiguous(), tags.new_zeros(rows, n, dtype=torch.float32)
    return tags.new_zeros(rows, n, 1, dtype=torch.int32), tags.float().contiguous()
