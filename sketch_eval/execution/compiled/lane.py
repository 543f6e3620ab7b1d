"""Tokens that come one at a time, as in generation: what does not change from one to the next is made once.

The loop itself takes some tens of microseconds for a token. `run.advance` prepares it by a hundred small operations,
which cost several times as much; a lane prepares it once for a state. It serves stores in float32 whose pairs are
ranked by their positions, by counters, or by a Count-Min Sketch of positions. It holds views of the state, no memory.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numba
import numpy as np
import torch

from sketch_eval.call import Call, Trace
from sketch_eval.execution.compiled.jit import kept
from sketch_eval.execution.compiled.records import Decided, Rules, Store, Tokens
from sketch_eval.execution.compiled.scan import scan_for
from sketch_eval.execution.compiled.sources import FATES, SOURCES
from sketch_eval.hashing import MERSENNE_31
from sketch_eval.policies.counters import Exact, Last
from sketch_eval.policies.recency import Recency
from sketch_eval.policies.sketched import CountMin
from sketch_eval.state import LayerState

RANKED = (Recency, Exact, Last, CountMin)
"""The policies, by their very types: one that is derived from them may need other arrays."""


def serves(state: LayerState, call: Call) -> bool:
    """Whether a call that the compiled loop serves can go this way."""
    whole = all(t.dtype == torch.float32 for t in (call.q, call.k, call.v, state.held_keys.parts[0]))
    plain = call.length == 1 and whole and state.exact and state.items is None
    return plain and type(state.policy) in RANKED


def advance(state: LayerState, call: Call) -> tuple[torch.Tensor, Trace]:
    """As `run.advance`, which see, of one token."""
    if state.prepared is None:
        state.prepared = Lane(state)
    return state.prepared.advance(call)


class Lane:
    """A state as the loop is given it, token by token.

    Args:
        state: the state, whose memory the loop writes to.
    """

    def __init__(self, state: LayerState) -> None:
        cell, policy = state.cell, state.policy
        assert cell.max_cache_size is not None
        self.cell, self.units, self.batch = cell, state.units, len(state.seen)
        visible = cell.visible or 0
        self.protected = (*cell.protected(cell.max_cache_size), visible, *cell.protected(visible))
        self.speeds = np.empty(0, np.float32) if state.speeds is None else state.speeds.numpy()
        self.scan = scan_for(SOURCES[cell.importance], FATES[cell.strategy])
        self.hash = None
        if isinstance(policy, CountMin):
            hashes = policy.sketch.hashes
            self.hash = hashes.a.numpy(), hashes.b.numpy(), hashes.size
        self.by_position = isinstance(policy, Recency)
        self.positions, self.seen, own = self._split(state.positions), state.seen.numpy(), policy.tensors()
        self.keys = self._split(state.held_keys.parts[0]).swapaxes(3, 4)  # Coordinate by coordinate, as they lie.
        self.values = self._split(state.held_values.parts[0])
        # The loop is given an array for everything, and looks at none of these where it wants none.
        none = np.zeros((self.units, 1, 1, 1), np.float32)
        self.ahead, self.asked = none[..., 0], none[..., 0].astype(np.int32)
        grids = np.zeros((*self.values.shape[1:4], 0, 2), np.float32)
        self.others = grids, grids, none[..., 0], none, none[..., 0, 0]
        nothing = none[None, ..., 0, 0].repeat(self.batch, 0)
        self.counts = nothing if state.counts is None else self._split(state.counts)
        self.scores = self._split(own["scores"]) if "scores" in own else nothing
        self.table = self._split(own["sketch"]) if "sketch" in own else nothing[..., None]

    def __reduce__(self) -> Any:
        """A copy of the state has other tensors, and prepares itself."""
        return type(None), ()

    def advance(self, call: Call) -> tuple[torch.Tensor, Trace]:
        """See `advance`."""
        cell, units, batch = self.cell, self.units, self.batch
        output = torch.empty(batch, 1, call.q.shape[1], call.q.shape[3], dtype=torch.float32)
        trace = Trace.empty(batch * units, 1)
        decided = [self._split(each) for each in (trace.victims, trace.survivors, trace.hidden)]
        vectors = [each.detach().numpy().swapaxes(1, 2) for each in (call.q, call.k, call.v)]
        valid, out = np.ascontiguousarray(call.valid.numpy()), output.numpy()
        rules = Rules(
            np.float32(call.scaling), np.float32(cell.decay), cell.normalize == "age", cell.conservative,
            *self.protected, self.speeds, 0, 0, 0,
        )  # fmt: skip
        # What is read off the positions is read off them again at each token: it would be memory that is in no ledger.
        now = self.seen[:, None, None].repeat(units, 1)
        depth = 1 if self.hash is None else cell.depth
        cells, new_cells = (np.zeros((*at.shape, depth), np.int32) for at in (self.positions, now))
        scores, new_scores = self.scores, np.zeros(now.shape, np.float32)
        if self.by_position:
            scores, new_scores = self.positions.astype(np.float32), now.astype(np.float32)
        if self.hash is not None:
            locate = _locator()
            locate(self.positions, *self.hash, cells)
            locate(now, *self.hash, new_cells)
        for b in range(batch):
            tokens = Tokens(valid[b], new_cells[b], new_scores[b], self.ahead, self.asked)
            store = Store(
                self.keys[b], self.values[b], self.positions[b], self.counts[b], cells[b], scores[b], self.table[b],
                *self.others,
            )  # fmt: skip
            written = Decided(out[b], *(each[b] for each in decided))
            self.seen[b] = self.scan(*(each[b] for each in vectors), tokens, store, rules, int(self.seen[b]), written)
        return output, trace

    def _split(self, rows: torch.Tensor) -> np.ndarray:
        """The same memory, `[batch, units, ...]` of `[rows, ...]`."""
        array = rows.numpy()
        return array.reshape(self.batch, self.units, *array.shape[1:])


@lru_cache
def _locator() -> Any:
    @kept(
        numba.void(
            numba.int32[:, :, ::1], numba.int64[:, ::1], numba.int64[:, ::1], numba.int64, numba.int32[:, :, :, ::1]
        ),
        "locate",
    )
    def locate(positions, a, b, size, cells):  # type: ignore[no-untyped-def]
        """Cells int32 `[batch, units, n, depth]` of positions int32 `[batch, units, n]`, as `hashing.PairwiseHash`."""
        for i in range(positions.shape[0]):
            for unit in range(positions.shape[1]):
                family = unit % a.shape[0]
                for s in range(positions.shape[2]):
                    item = max(numba.int64(positions[i, unit, s]), 0)
                    for r in range(cells.shape[3]):
                        cells[i, unit, s, r] = (item * a[family, r] + b[family, r]) % MERSENNE_31 % size

    return locate
