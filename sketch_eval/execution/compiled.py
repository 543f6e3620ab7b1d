"""The scan on a CPU: each sequence of the batch through the compiled loop, on as many cores as torch uses."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch

from sketch_eval.execution.kernel import scan
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
    """The compiled counterpart of `stepwise.advance`, which see: same arguments, same results.

    Half-precision stores are widened for the call and rounded once at its end.
    """
    cell, source = state.cell, state.importance
    assert cell.max_cache_size is not None
    assert source.compiled is not None
    batch, heads, length, head_dim = q.shape
    slots = cell.max_cache_size + 1

    # Positions first: a token's items and tags may depend on its own.
    first = state.seen.clone()
    position = first[:, None] + valid.cumsum(1) - 1
    new_keys = flat_keys(k)
    items = source.items(position, tokens, new_keys)
    new_cells, new_scores = _split(source.locate(items, new_keys))
    cells, scores = _split(state.tags())
    held = source.tensors()
    scores = held.get("scores", scores)
    if "scores" in held:
        new_scores = torch.zeros_like(new_scores)
    table = held.get("sketch", torch.zeros(batch, 1, 1, dtype=torch.float32))
    counts = torch.ones(batch, slots, dtype=torch.float32) if state.counts is None else state.counts
    keys, values = state.keys.transpose(2, 3).float().contiguous(), state.values.float().contiguous()
    output = torch.empty(batch, length, heads, head_dim, dtype=torch.float32)
    trace = Trace.empty(batch, length)

    sinks, recent = cell.protected(cell.max_cache_size)
    visible = cell.visible or 0
    choices = (source.compiled, cell.counted, cell.normalize == "age", cell.conservative, np.float32(cell.decay))
    bounds = (np.float32(scaling), sinks, recent, visible, *cell.protected(visible))
    tensors = [t.transpose(1, 2).float() for t in (q, k, v)]
    tensors += [valid, new_cells, new_scores, keys, values, state.positions, counts, cells, scores, table]
    arrays = [t.detach().numpy() for t in tensors]
    results = [t.numpy() for t in (output, trace.victims, trace.survivors, trace.hidden)]
    seen = state.seen.numpy()

    def run(b: int) -> None:
        seen[b] = scan(*(a[b] for a in arrays), int(seen[b]), *choices, *bounds, *(r[b] for r in results))

    if length == 1 or batch == 1 or torch.get_num_threads() == 1:
        for b in range(batch):
            run(b)
    else:
        list(_pool(torch.get_num_threads()).map(run, range(batch)))

    if state.items is not None:
        _keep_items(state, items, first, valid)
    if keys.data_ptr() != state.keys.data_ptr():  # They were widened, or lay otherwise in memory.
        state.keys.copy_(keys.transpose(2, 3))
        state.values.copy_(values)
    return output.to(v.dtype), trace


def _split(tags: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tags as cells int32 `[batch, n, depth]` and as scores float32 `[batch, n]`, one of which is a placeholder."""
    batch, n = tags.shape[:2]
    if tags.dim() == 3:
        return tags.int().contiguous(), torch.zeros(batch, n, dtype=torch.float32)
    return torch.zeros(batch, n, 1, dtype=torch.int32), tags.float().contiguous()


def _keep_items(state: LayerState, items: torch.Tensor, first: torch.Tensor, valid: torch.Tensor) -> None:
    """Put the items of the pairs that arrived in this call, and stayed, in their slots.

    Args:
        state: the state after the call.
        items: int64 `[batch, tokens, ...]` of the call's tokens.
        first: int `[batch]`, position of the first of them that was valid.
        valid: bool `[batch, tokens]`.
    """
    assert state.items is not None
    columns = valid.int().argsort(dim=1, descending=True, stable=True)  # The valid ones, in order, lead.
    arrival = state.positions - first[:, None]
    row, slot = (arrival >= 0).nonzero(as_tuple=True)
    state.items[row, slot] = items[row, columns[row, arrival[row, slot].long()]].int()


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="sketch_eval")
