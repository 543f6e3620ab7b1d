"""The step where a layer's heads share out the slots of one store, in batched PyTorch operations.

A token brings a pair for each key/value head, and as many pairs leave a full store: with scope=budget those that are
least important, whosever they are, and with scope=entropy each time the least important one of the head that most
exceeds its share. There is no compiled loop for it; a batch of sequences is what makes it quick.
"""

from __future__ import annotations

import torch

from sketch_eval.call import Arriving, Call, Trace
from sketch_eval.policies import Attention
from sketch_eval.policies.fate import least
from sketch_eval.state import LayerState


def advance(state: LayerState, call: Call) -> tuple[torch.Tensor, Trace]:
    """As `stepwise.advance`.

    Of each sequence the trace has a line for every key/value head: line e holds the e-th pair that left at a token, and
    pairs are called as `LayerState.names` says.
    """
    arriving, trace = state.arrive(call), Trace.empty(len(call.tokens) * state.owning, call.length, call.q.device)
    output = torch.empty_like(call.q, dtype=call.v.dtype)
    for i in range(call.length):
        output[:, :, i] = _step(state, call, arriving, i, trace)
        state.seen += call.valid[:, i].int()
    return output.transpose(1, 2), trace


def _step(state: LayerState, call: Call, pairs: Arriving, i: int, trace: Trace) -> torch.Tensor:
    """Output `[rows, query heads, head_dim]` of token i of every row."""
    assert state.owners is not None
    heads, live, t = state.owning, call.valid[:, i], state.seen.long()

    # 1. Append: there always are as many free slots as heads.
    slots = (state.positions < 0).int().argsort(dim=1, descending=True, stable=True)[:, :heads]
    rows = torch.arange(len(slots), device=slots.device).repeat_interleave(heads)
    for vectors, parts in ((state.held_keys, pairs.key_parts), (state.held_values, pairs.value_parts)):
        vectors.write(rows, slots.flatten(), tuple(part[:, :, i].flatten(0, 1)[:, None] for part in parts))
    owner = torch.arange(heads, device=slots.device).expand_as(slots)
    state.positions.scatter_(1, slots, torch.where(live, t, -1).int()[:, None].expand_as(slots))
    state.owners.scatter_(1, slots, owner.int())
    if state.counts is not None:
        state.counts.scatter_(1, slots, 1.0)
    if state.items is not None:
        token, new = call.tokens[:, i, None].expand_as(slots), (pairs.keys[:, None, :, i], pairs.values[:, None, :, i])
        items = state.policy.items(state.show(t[:, None] * heads + owner, token, *new))
        state.items.scatter_(1, slots, items.int())
    for slot in slots.unbind(1):
        state.policy.arrive(slot)

    # 2. Attend, each head to its own.
    stored = (state.positions >= 0) & live[:, None]
    own = (state.owners[:, None] == owner[:1, :, None]) & stored[:, None]
    q = call.q[:, :, i].float().unflatten(1, (heads, -1))
    scores = torch.einsum("rhgd,rsd->rhgs", q, state.keys[:, 0].float()) * call.scaling
    if state.counts is not None and state.fate.weighs:
        scores = scores + state.counts.log()[:, None, None]
    weights = scores.masked_fill(~own[:, :, None], torch.finfo(torch.float32).min).softmax(-1) * own[:, :, None]
    output = torch.einsum("rhgs,rsd->rhgd", weights, state.values[:, 0].float()).flatten(1, 2)

    # 3. Account: the mass of a pair is its owner's queries'.
    if state.spread is not None:
        entropy = -torch.special.xlogy(weights, weights).sum(-1).mean(2)
        asked = torch.nn.functional.pad(entropy, (0, 1), value=1.0) * live[:, None]
        state.spread.mul_(torch.where(live, state.cell.decay, 1.0)[:, None]).add_(asked)
    state.policy.account(state.tags(), Attention(live, mass=weights.mean(2).sum(1), scaling=call.scaling))
    if state.spread is not None:
        state.policy.share_out(_parts(state.spread))

    # 4. Bound.
    for event in range(heads):
        _bound(state, live, t, trace, event, i)
    return output


def _bound(state: LayerState, live: torch.Tensor, t: torch.Tensor, trace: Trace, event: int, i: int) -> None:
    """Let one pair go where a layer holds too many."""
    assert state.owners is not None
    assert state.cell.max_cache_size is not None
    sinks, recent = state.cell.protected(state.cell.max_cache_size)
    position, names = state.positions.long(), state.names()
    stored, age = (position >= 0) & live[:, None], t[:, None] - position
    full = stored.sum(1) > state.cell.max_cache_size * state.owning
    unprotected = stored & (position >= sinks) & (age >= recent)
    candidates = unprotected
    if state.spread is not None:
        candidates = unprotected & (state.owners == _over_share(state, stored, unprotected, sinks + recent)[:, None])
    victim = least(state.importance(age, state.tags()), names, candidates)
    at = victim[:, None]
    fellows = unprotected.scatter(1, at, False) & (state.owners == state.owners.gather(1, at))
    lines = slice(event, None, state.owning)
    trace.victims[lines, i] = torch.where(full, names.gather(1, at)[:, 0], -1).int()
    survivor = state.fate.meet(state, victim, fellows, full)
    into = names.gather(1, survivor.clamp(min=0)[:, None])[:, 0]
    trace.survivors[lines, i] = torch.where(survivor >= 0, into, -1).int()
    state.positions.scatter_(1, at, torch.where(full, -1, position.gather(1, at)[:, 0]).int()[:, None])


def _parts(spread: torch.Tensor) -> torch.Tensor:
    """Each head's part of what a layer has, float32 `[rows, heads]`, of `LayerState.spread`; equal where it is NaN."""
    parts = (spread[:, :-1] / spread[:, -1:].clamp(min=1e-30)).softmax(-1)
    return parts.masked_fill(parts.isnan(), 1 / parts.shape[1])


def _over_share(state: LayerState, stored: torch.Tensor, unprotected: torch.Tensor, protected: int) -> torch.Tensor:
    """The head, int64 `[rows]`, that most exceeds its share of the pairs, of those that have a pair to lose.

    Each head's share is what is protected, and of the rest a part as large as the exponential of the mean entropy of
    its queries' attention is in the sum over the heads: by how many pairs a head attends to.
    """
    assert state.owners is not None
    assert state.spread is not None
    assert state.cell.max_cache_size is not None
    heads = torch.arange(state.owning, device=stored.device)
    mine = state.owners[:, None] == heads[:, None]
    held, able = (mine & stored[:, None]).sum(-1), (mine & unprotected[:, None]).any(-1)
    over = held - (protected + _parts(state.spread) * (state.cell.max_cache_size - protected) * state.owning)
    return over.masked_fill(~able, float("-inf")).argmax(1)
