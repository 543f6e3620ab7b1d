"""What a fast execution wants of a state and a call before its loop, and what it leaves to be done after it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sketch_eval.call import Call
from sketch_eval.formats import Parts, Quantised
from sketch_eval.policies.clairvoyant import Clairvoyant
from sketch_eval.policies.sketched import RaceOfQueries
from sketch_eval.state import LayerState, Vectors


@dataclass(frozen=True)
class Prepared:
    """A layer's state and a call's tokens as plain arrays, by row.

    A policy that ranks by cells in a table has `cells`, and one that ranks by a number a pair has `scores`; the other
    is a placeholder. `table`, `counts` and the scores of counters are the state's own memory, and so are keys and
    values that are kept in float32: a loop that writes to them changes the state.

    Attributes:
        keys: float32 `[rows, heads, head_dim, slots]`; values: float32 `[rows, heads, slots, head_dim]`.
        counts: float32 `[rows, slots]`, ones where the fate counts nothing.
        cells: int32 `[rows, slots, depth]`; scores: float32 `[rows, slots]`; table: float32 `[rows, depth, width]`.
        new_keys, new_values: `[rows, heads, tokens, head_dim]`, as queries see them.
        memory: float32 `[rows, kinds, slots]`, moments: float32 `[rows, query heads, head_dim + 1, head_dim]`, weight:
            float32 `[rows, 1]`: what policies keep that are not of these two, and placeholders.
        asked: int32 `[rows, tokens, depth]`, the queries' cells in a table of queries; a placeholder for all others.
        new_cells: int32 `[rows, tokens, depth]`; new_scores: float32 `[rows, tokens]`.
        ahead: float32 `[rows, tokens, text]`, the score of every position of a text that is foreseen, after each token;
            a placeholder for other policies.
        key_grids, value_grids: float32 `[rows, heads, slots, groups, 2]`, for the scales and zeros of vectors that the
            loop quantises itself, where the format is such; a scale of -1 in the slots of all others.
    """

    keys: torch.Tensor
    values: torch.Tensor
    counts: torch.Tensor
    cells: torch.Tensor
    scores: torch.Tensor
    table: torch.Tensor
    memory: torch.Tensor
    moments: torch.Tensor
    weight: torch.Tensor
    asked: torch.Tensor
    new_keys: torch.Tensor
    new_values: torch.Tensor
    new_cells: torch.Tensor
    new_scores: torch.Tensor
    ahead: torch.Tensor
    key_grids: torch.Tensor
    value_grids: torch.Tensor
    _parts: tuple[Parts, Parts]
    _items: torch.Tensor
    _first: torch.Tensor
    _valid: torch.Tensor

    def finish(self, state: LayerState) -> None:
        """Bring the state up to what the loop wrote."""
        if state.items is not None or isinstance(state.held_keys.format, Quantised):
            columns = self._valid.int().argsort(dim=1, descending=True, stable=True)  # The valid ones, in order, lead.
            arrival = state.positions - self._first[:, None]
            row, slot = (arrival >= 0).nonzero(as_tuple=True)  # The pairs that arrived in this call, and stayed.
            column = columns[row, arrival[row, slot].long()]
            if state.items is not None:
                state.items[row, slot] = self._items[row, column].int()
            if isinstance(state.held_keys.format, Quantised):
                keys, values = self._parts
                _keep(state.held_keys, keys, row, slot, column, self.keys.transpose(2, 3), self.key_grids)
                _keep(state.held_values, values, row, slot, column, self.values, self.value_grids)
                return
        if self.keys.data_ptr() != state.keys.data_ptr():  # They were widened, or lay otherwise in memory.
            state.keys.copy_(self.keys.transpose(2, 3))
            state.values.copy_(self.values)


def prepare(state: LayerState, call: Call) -> Prepared:
    """The arrays of a state and a call."""
    policy, rows = state.policy, len(state.positions)
    # Positions first: a token's items and tags may depend on its own.
    first, valid = state.by_row(state.seen.clone()), state.by_row(call.valid)
    position = first[:, None] + valid.cumsum(1) - 1
    new = state.arrive(call)
    arriving = state.show(position, state.by_row(call.tokens), new.keys, new.values)
    items = policy.items(arriving)
    if policy.renewed:
        kept = torch.zeros_like(state.positions) if state.items is None else state.items
        new_cells, new_scores = _split((torch.zeros_like(position) if state.items is None else items)[..., None])
        cells, scores = _split(kept[..., None])
    else:
        new_cells, new_scores = _split(policy.tags(items, arriving))
        cells, scores = _split(state.tags())
    asked = cells.new_zeros(rows, 1, 1)
    if isinstance(policy, RaceOfQueries):
        asked = policy.ask(state.split(call.q).unflatten(1, (state.held_keys.parts[0].shape[1], -1))).int().contiguous()
    held, ahead = policy.tensors(), _placeholder(rows, 3)
    if isinstance(policy, Clairvoyant):
        scores, new_scores = policy.estimate(state.tags()), policy.estimate(items)
        ahead = policy.ahead(call.length)
    if "scores" in held:
        scores, new_scores = held["scores"], torch.zeros_like(new_scores)
    groups, stored = groups_of(state), state.held_keys.parts[0].shape[:3]
    key_grids = value_grids = torch.empty(*stored, 0, 2, dtype=torch.float32)
    if groups:
        key_grids, value_grids = (torch.full((*stored, groups, 2), -1.0, dtype=torch.float32) for _ in range(2))
    return Prepared(
        keys=state.keys.transpose(2, 3).float().contiguous(),
        values=state.values.float().contiguous(),
        counts=torch.ones_like(state.positions, dtype=torch.float32) if state.counts is None else state.counts,
        cells=cells,
        scores=scores,
        table=held.get("sketch", _placeholder(rows, 3)),
        memory=held.get("memory", _placeholder(rows, 3)),
        moments=held.get("moments", _placeholder(rows, 4)),
        weight=held.get("weight", _placeholder(rows, 2)),
        asked=asked,
        new_keys=new.keys,
        new_values=new.values,
        new_cells=new_cells,
        new_scores=new_scores,
        ahead=ahead,
        key_grids=key_grids,
        value_grids=value_grids,
        _parts=(new.key_parts, new.value_parts),
        _items=items,
        _first=first,
        _valid=valid,
    )


def _placeholder(rows: int, dimensions: int) -> torch.Tensor:
    return torch.zeros(rows, *[1] * (dimensions - 1), dtype=torch.float32)


def groups_of(state: LayerState) -> int:
    """Groups of a vector that is quantised; 0 where none is, or none but as it arrives."""
    format = state.held_keys.format
    if not isinstance(format, Quantised) or not state.fate.counts:
        return 0
    return -(-format.head_dim // format.group)


def _keep(
    held: Vectors,
    parts: Parts,
    rows: torch.Tensor,
    slots: torch.Tensor,
    columns: torch.Tensor,
    vectors: torch.Tensor,
    grids: torch.Tensor,
) -> None:
    """Put what arrived, at given columns of a call, in slots of rows, and what the loop quantised itself in its own."""
    assert isinstance(held.format, Quantised)
    held.write(rows, slots, tuple(part[rows, :, columns] for part in parts))
    if grids.shape[3]:
        row, slot = (grids[:, 0, :, 0, 0] != -1.0).nonzero(as_tuple=True)
        grid = grids[row, :, slot].half()
        held.write(row, slot, (held.format.pack(held.format.codes(vectors[row, :, slot], grid)), grid))


def _split(tags: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tags as cells int32 `[rows, n, depth]` and as scores float32 `[rows, n]`, one of which is a placeholder."""
    rows, n = tags.shape[:2]
    if tags.dim() == 3:
        return tags.int().contiguous(), tags.new_zeros(rows, n, dtype=torch.float32)
    return tags.new_zeros(rows, n, 1, dtype=torch.int32), tags.float().contiguous()
