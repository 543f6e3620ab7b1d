"""The step of docs/design.md §2 in batched PyTorch operations, one token of every row at a time, on any device."""

from __future__ import annotations

import torch

from sketch_eval.call import Arriving, Call, Trace
from sketch_eval.execution import budgeted
from sketch_eval.policies import Attention
from sketch_eval.policies.fate import least
from sketch_eval.state import LayerState


def serves(state: LayerState, call: Call) -> bool:
    """Every call."""
    return True


def advance(state: LayerState, call: Call) -> tuple[torch.Tensor, Trace]:
    """Append tokens to a layer's store, one after the other, and attend from each.

    Args:
        state: the layer's state, changed in place.
        call: the tokens.

    Returns:
        Output `[batch, tokens, query heads, head_dim]` in the dtype of v, and what was decided.
    """
    if state.owners is not None:
        return budgeted.advance(state, call)
    q, arriving = state.split(call.q), state.arrive(call)
    tokens, valid = state.by_row(call.tokens), state.by_row(call.valid)
    trace = Trace.empty(len(tokens), call.length, q.device)
    output = torch.empty_like(q, dtype=call.v.dtype)
    for i in range(call.length):
        output[:, :, i] = _step(state, q[:, :, i], arriving, tokens[:, i], valid[:, i], call.scaling, trace, i)
        state.seen += call.valid[:, i].int()
    return output.unflatten(0, (-1, state.units)).flatten(1, 2).transpose(1, 2), trace


def _step(
    state: LayerState,
    q: torch.Tensor,
    pairs: Arriving,
    token: torch.Tensor,
    live: torch.Tensor,
    scaling: float,
    trace: Trace,
    i: int,
) -> torch.Tensor:
    """Token i of every row: q `[rows, query heads of a row, head_dim]`; token, live `[rows]`."""
    cell, policy, t = state.cell, state.policy, state.by_row(state.seen.long())

    # 1. Append. There always is a free slot; a token of padding may leave its pair there, but no position.
    slot = (state.positions < 0).int().argmax(1)
    rows = torch.arange(len(slot), device=slot.device)
    state.held_keys.write(rows, slot, tuple(part[:, :, i] for part in pairs.key_parts))
    state.held_values.write(rows, slot, tuple(part[:, :, i] for part in pairs.value_parts))
    state.positions[rows, slot] = torch.where(live, t, -1).int()
    if state.counts is not None:
        state.counts.scatter_(1, slot[:, None], 1.0)
    if state.items is not None:
        shown = state.show(t[:, None], token[:, None], pairs.keys[:, :, i : i + 1], pairs.values[:, :, i : i + 1])
        state.items[rows, slot] = policy.items(shown)[:, 0].int()
    policy.arrive(slot)

    # 2. Rank and attend.
    position = state.positions.long()
    stored = (position >= 0) & live[:, None]
    age = t[:, None] - position
    tags = state.tags()
    seen = stored
    if cell.visible is not None:
        seen = _visible(state, stored, position, age, tags, cell.visible)
        trace.hidden[:, i] = (stored & ~seen).sum(1)
    keys = state.keys.float()
    grouped = q.float().unflatten(1, (keys.shape[1], -1))
    scores = torch.einsum("rhgd,rhsd->rhgs", grouped, keys) * scaling
    if state.counts is not None and state.fate.weighs:
        scores = scores + state.counts.log()[:, None, None]
    open_ = seen[:, None, None]
    weights = scores.masked_fill(~open_, torch.finfo(torch.float32).min).softmax(-1) * open_
    output = torch.einsum("rhgs,rhsd->rhgd", weights, state.values.float()).flatten(1, 2)

    # 3. Account.
    policy.account(tags, _show(state, live, grouped, weights, scaling))

    # 4. Bound.
    _bound(state, stored, position, age, tags, trace, i)
    return output


def _show(
    state: LayerState, live: torch.Tensor, queries: torch.Tensor, weights: torch.Tensor, scaling: float
) -> Attention:
    """A query and its weights as the policy may see them."""
    shown = state.policy.observes
    return Attention(
        live,
        queries if "queries" in shown else None,
        weights if "weights" in shown else None,
        weights.flatten(1, 2).mean(1) if "mass" in shown else None,
        scaling,
    )


def _visible(
    state: LayerState, stored: torch.Tensor, position: torch.Tensor, age: torch.Tensor, tags: torch.Tensor, k: int
) -> torch.Tensor:
    """The pairs that a query sees, bool `[rows, slots]`."""
    sinks, recent = state.cell.protected(k)
    protected = (position < sinks) | (age < recent) | (age == 0)
    # Three keys, least first: a stable sort by each in turn sorts by the last, then the one before it.
    importance = torch.where(protected, -age.float(), state.importance(age, tags))
    order = position.argsort(dim=1, stable=True)
    for key in (-importance, (~protected).float(), (~stored).float()):
        order = order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))
    best = torch.zeros_like(stored).scatter_(1, order[:, :k], True)
    return best & stored


def _bound(
    state: LayerState,
    stored: torch.Tensor,
    position: torch.Tensor,
    age: torch.Tensor,
    tags: torch.Tensor,
    trace: Trace,
    i: int,
) -> None:
    """Make room in the stores that are full."""
    assert state.cell.max_cache_size is not None
    sinks, recent = state.cell.protected(state.cell.max_cache_size)
    full = stored.all(1)
    unprotected = stored & (position >= sinks) & (age >= recent)
    victim = least(state.importance(age, tags), position, unprotected)
    at = victim[:, None]
    leaves = position.gather(1, at)[:, 0]
    trace.victims[:, i] = torch.where(full, leaves, -1)
    survivor = state.fate.meet(state, victim, unprotected.scatter(1, at, False), full)
    into = position.gather(1, survivor.clamp(min=0)[:, None])[:, 0]
    trace.survivors[:, i] = torch.where(survivor >= 0, into, -1)
    state.positions.scatter_(1, at, torch.where(full, -1, leaves).int()[:, None])
