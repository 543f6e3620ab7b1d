"""The step of DESIGN §2 in batched PyTorch operations, one token of every sequence at a time, on any device."""

from __future__ import annotations

import torch

from sketch_eval.state import LayerState, Trace, flat_keys


def advance(
    state: LayerState,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tokens: torch.Tensor,
    valid: torch.Tensor,
    scaling: float,
) -> tuple[torch.Tensor, Trace]:
    """Append tokens to a layer's store, one after the other, and attend from each.

    Args:
        state: the layer's state, changed in place.
        q, k, v: `[batch, heads, tokens, head_dim]`.
        tokens: token ids, int64 `[batch, tokens]`.
        valid: bool `[batch, tokens]`; a token that is not valid is padding: it changes nothing, and its output is 0.
        scaling: factor of the query-key products.

    Returns:
        Output `[batch, tokens, heads, head_dim]` in the dtype of v, and what was decided.
    """
    batch, heads, length, head_dim = q.shape
    output = v.new_empty(batch, length, heads, head_dim)
    trace = Trace.empty(batch, length, q.device)
    for i in range(length):
        output[:, i] = _step(state, q[:, :, i], k[:, :, i], v[:, :, i], tokens[:, i], valid[:, i], scaling, trace, i)
    return output, trace


def _step(
    state: LayerState,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    token: torch.Tensor,
    live: torch.Tensor,
    scaling: float,
    trace: Trace,
    i: int,
) -> torch.Tensor:
    cell, source = state.cell, state.importance
    t = state.seen.long()

    # 1. Append. There always is a free slot; a token of padding may leave its pair there, but no position.
    slot = (state.positions < 0).int().argmax(1)
    rows = torch.arange(len(slot), device=slot.device)
    state.keys[rows, :, slot] = k
    state.values[rows, :, slot] = v
    state.positions[rows, slot] = torch.where(live, t, -1).int()
    if state.counts is not None:
        state.counts[rows, slot] = 1.0
    if state.items is not None:
        state.items[rows, slot] = source.items(t[:, None], token[:, None], flat_keys(k[:, :, None]))[:, 0].int()
    source.arrive(slot)
    state.seen += live.int()

    # 2. Rank and attend.
    position = state.positions.long()
    stored = (position >= 0) & live[:, None]
    age = t[:, None] - position
    tags = state.tags()
    seen = stored
    if cell.visible is not None:
        seen = _visible(state, stored, position, age, tags, cell.visible)
        trace.hidden[:, i] = (stored & ~seen).sum(1)
    scores = torch.einsum("bhd,bhsd->bhs", q.float(), state.keys.float()) * scaling
    if state.counts is not None:
        scores = scores + state.counts.log()[:, None]
    weights = scores.masked_fill(~seen[:, None], torch.finfo(torch.float32).min).softmax(-1) * seen[:, None]
    output = torch.einsum("bhs,bhsd->bhd", weights, state.values.float())

    # 3. Account.
    source.account(tags, weights.mean(1), live)

    # 4. Bound.
    _bound(state, stored, position, age, tags, trace, i)
    return output.to(v.dtype)


def _visible(
    state: LayerState, stored: torch.Tensor, position: torch.Tensor, age: torch.Tensor, tags: torch.Tensor, k: int
) -> torch.Tensor:
    """The pairs that a query sees, bool `[batch, slots]`."""
    sinks, recent = state.cell.protected(k)
    protected = (position < sinks) | (age < recent) | (age == 0)
    # Three keys, least first: a stable sort by each in turn sorts by the last, then the one before it.
    importance = torch.where(protected, -age.float(), _importance(state, age, tags))
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
    victim = _least(_importance(state, age, tags), position, unprotected)
    at = victim[:, None]
    trace.victims[:, i] = torch.where(full, position.gather(1, at)[:, 0], -1)
    if state.counts is not None:
        keys = flat_keys(state.keys)
        norms = keys.norm(dim=-1)
        of_victim = keys.gather(1, at[:, :, None].expand(-1, 1, keys.shape[-1]))
        cosine = (keys * of_victim).sum(-1) / (norms * norms.gather(1, at)).clamp(min=1e-12)
        partners = unprotected.scatter(1, at, False) & ~cosine.isnan()
        survivor = _least(-cosine, position, partners)
        folds = full & partners.any(1)
        trace.survivors[:, i] = torch.where(folds, position.gather(1, survivor[:, None])[:, 0], -1)
        _fold(state, victim, survivor, folds)
    state.positions.scatter_(1, at, torch.where(full, -1, position.gather(1, at)[:, 0]).int()[:, None])


def _fold(state: LayerState, victim: torch.Tensor, survivor: torch.Tensor, folds: torch.Tensor) -> None:
    """Make the survivor's key and value the means over all the tokens of both pairs."""
    assert state.counts is not None
    rows = torch.arange(len(victim), device=victim.device)[folds]
    into, gone = survivor[folds], victim[folds]
    mine, its = state.counts[rows, into], state.counts[rows, gone]
    total = mine + its
    for pairs in (state.keys, state.values):
        own, added = pairs[rows, :, into].float(), pairs[rows, :, gone].float()
        mean = (own * mine[:, None, None] + added * its[:, None, None]) / total[:, None, None]
        pairs[rows, :, into] = mean.to(pairs.dtype)
    state.counts[rows, into] = total


def _importance(state: LayerState, age: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
    """Importance of every slot, float32 `[batch, slots]`; anything for a free one.

    An estimate that is not a number is below all that are: a defect in the numbers must not protect a pair.
    """
    estimate = state.importance.read(tags)
    importance = estimate / (age + 1) if state.cell.normalize == "age" else estimate
    return importance.masked_fill(importance.isnan(), float("-inf"))


def _least(value: torch.Tensor, position: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """The slot `[batch]` with the smallest value among some, ties to the oldest."""
    value = value.masked_fill(~among, float("inf"))
    ties = among & (value == value.amin(1, keepdim=True))
    return position.masked_fill(~ties, torch.iinfo(torch.int64).max).argmin(1)
