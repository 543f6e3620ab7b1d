"""Each sequence of the batch through the compiled loop, on as many cores as torch uses."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch

from sketch_eval.call import Call, Trace
from sketch_eval.execution.compiled import lane
from sketch_eval.execution.compiled.quantise import HALF
from sketch_eval.execution.compiled.records import Decided, Rules, Store, Tokens
from sketch_eval.execution.compiled.scan import scan_for
from sketch_eval.execution.compiled.sources import FATES, SOURCES
from sketch_eval.execution.prepare import prepare
from sketch_eval.formats import Format, Quantised
from sketch_eval.policies.clairvoyant import BLOCK, Clairvoyant
from sketch_eval.state import LayerState


def serves(state: LayerState, call: Call) -> bool:
    """Calls on a CPU, for the policies and fates that the loop has branches for."""
    known = state.cell.importance in SOURCES and state.cell.strategy in FATES
    return known and call.q.device.type == "cpu" and state.owners is None


def advance(state: LayerState, call: Call) -> tuple[torch.Tensor, Trace]:
    """The compiled counterpart of `stepwise.advance`, which see: same arguments, same results.

    Half-precision stores are widened for the call and rounded once at its end.
    """
    if lane.serves(state, call):
        return lane.advance(state, call)
    # What is ahead is a row of the text for each token.
    if isinstance(state.policy, Clairvoyant) and call.length > BLOCK:
        parts = [advance(state, part) for part in call.split(BLOCK)]
        return torch.cat([output for output, _ in parts], 1), Trace.join([trace for _, trace in parts])
    cell, units = state.cell, state.units
    assert cell.max_cache_size is not None
    batch, query_heads, length, head_dim = call.q.shape
    ready = prepare(state, call)
    output = torch.empty(batch, length, query_heads, head_dim, dtype=torch.float32)
    trace = Trace.empty(batch * units, length)

    visible = cell.visible or 0
    rules = Rules(
        np.float32(call.scaling), np.float32(cell.decay), cell.normalize == "age", cell.conservative,
        *cell.protected(cell.max_cache_size), visible, *cell.protected(visible),
        np.empty(0, np.float32) if state.speeds is None else state.speeds.numpy(),
        _levels(state.held_keys.format), _levels(state.held_values.format), _group(state.held_keys.format),
    )  # fmt: skip
    scan = scan_for(SOURCES[cell.importance], FATES[cell.strategy])
    new = [
        t if units == 1 else t.unflatten(0, (batch, units)).flatten(1, 2) for t in (ready.new_keys, ready.new_values)
    ]
    vectors = [t.detach().float().numpy().swapaxes(1, 2) for t in (call.q, *new)]
    valid, seen = call.valid.contiguous().numpy(), state.seen.numpy()
    arriving, stored, decided = (
        [_by_sequence(tensor, units) for tensor in tensors]
        for tensors in (
            (ready.new_cells, ready.new_scores, ready.ahead, ready.asked),
            (
                *(ready.keys, ready.values, state.positions, ready.counts, ready.cells, ready.scores, ready.table),
                *(ready.key_grids, ready.value_grids, ready.memory, ready.moments, ready.weight),
            ),
            (trace.victims, trace.survivors, trace.hidden),
        )
    )
    out = output.numpy()

    def run(b: int) -> None:
        tokens = Tokens(valid[b], *(a[b] for a in arriving))
        store = Store(*(a[b] for a in stored))
        into = Decided(out[b], *(a[b] for a in decided))
        seen[b] = scan(*(a[b] for a in vectors), tokens, store, rules, int(seen[b]), into)

    if length == 1 or batch == 1 or torch.get_num_threads() == 1:
        for b in range(batch):
            run(b)
    else:
        list(_pool(torch.get_num_threads()).map(run, range(batch)))

    ready.finish(state)
    return output.to(call.v.dtype), trace


def _by_sequence(rows: torch.Tensor, units: int) -> np.ndarray:
    """The same memory, `[batch, units, ...]` of `[rows, ...]`. NumPy's views cost a tenth of torch's, at each token."""
    array = rows.numpy()
    return array.reshape(len(array) // units, units, *array.shape[1:])


def _levels(format: Format) -> int:
    """`key_levels` or `value_levels` of `Rules`."""
    if isinstance(format, Quantised):
        return format.levels
    return 0 if format.exact else HALF


def _group(format: Format) -> int:
    """`group` of `Rules`."""
    return format.group if isinstance(format, Quantised) else 0


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="sketch_eval")
