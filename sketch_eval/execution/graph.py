"""A single token on a GPU: the step of `stepwise`, captured once as a CUDA graph and launched as one from then on.

Some hundred operations of a few microseconds each, launched from Python one by one, take longer than they compute.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from sketch_eval.call import Call, Trace
from sketch_eval.errors import first_line
from sketch_eval.execution import stepwise
from sketch_eval.state import LayerState

_log = logging.getLogger(__name__)

AFTER = 8
"""Steps of a state that are launched one by one before the next is captured, which takes as long as some ten."""


def serves(state: LayerState, call: Call) -> bool:
    """Calls of one token on a CUDA device, unless the caller captures them already, of what need not ask the GPU."""
    return (
        call.q.device.type == "cuda"
        and call.length == 1
        and not state.policy.asks
        and not state.policy.foresees
        and not torch.cuda.is_current_stream_capturing()
    )


def advance(state: LayerState, call: Call) -> tuple[torch.Tensor, Trace]:
    """As `stepwise.advance`, of one token."""
    steps = state.prepared
    if not isinstance(steps, Steps) or not steps.fit(call):
        steps = state.prepared = Steps(call)
    return steps.advance(state, call)


class Steps:
    """The steps of a state, from some token on: `LayerState.select` ends them, as does a call of another shape.

    A graph reads and writes the memory that it was captured with: the state's own, a call's copy, and what a step makes
    on the way, which it keeps. Where a step cannot be captured, or a policy has put another tensor in the place of one
    of its own, steps go on one by one.
    """

    def __init__(self, call: Call) -> None:
        self.taken = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.single = False
        self.began: list[int] = []
        self.call = call
        self.output = self.decided = torch.empty(0)

    def __deepcopy__(self, memo: dict[int, Any]) -> Steps:
        """Of a copied state, whose memory is another."""
        return Steps(self.call)

    def fit(self, call: Call) -> bool:
        """Whether a call is like those before it."""
        pairs = zip(_tensors(self.call), _tensors(call), strict=True)
        alike = all(mine.shape == its.shape and mine.dtype == its.dtype for mine, its in pairs)
        return alike and call.scaling == self.call.scaling

    def advance(self, state: LayerState, call: Call) -> tuple[torch.Tensor, Trace]:
        """The next step."""
        if self.taken == 0:
            self.began = _places(state)
        self.taken += 1
        if self.taken > AFTER and self.graph is None and not self.single:
            self._capture(state, call)
        if self.graph is None:
            return stepwise.advance(state, call)
        for mine, its in zip(_tensors(self.call), _tensors(call), strict=True):
            mine.copy_(its)
        self.graph.replay()
        return self.output.clone(), Trace(*self.decided.clone().unbind())

    def _capture(self, state: LayerState, call: Call) -> None:
        """Record a step, of which nothing is computed yet."""
        self.single = _places(state) != self.began
        if self.single:
            return
        device = call.q.device
        if state.layer == 0:  # What the graphs of caches before held is free, but no capture can ask for it.
            torch.cuda.empty_cache()
        self.call = call.each(torch.clone)
        graph, stream, current = torch.cuda.CUDAGraph(), _stream(device), torch.cuda.current_stream(device)
        stream.wait_stream(current)
        try:
            # Not `torch.cuda.graph`, which collects garbage and empties torch's store of memory: once a layer.
            with torch.cuda.stream(stream):
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    self.output, trace = stepwise.advance(state, self.call)
                    self.decided = torch.stack((trace.victims, trace.survivors, trace.hidden))
                finally:
                    graph.capture_end()
        except RuntimeError as error:  # Nothing was computed, so nothing is lost but speed.
            self.single = True
            _log.warning("execution: a step could not be captured, so each runs by itself: %s", first_line(error))
            return
        finally:
            current.wait_stream(stream)
        self.graph = graph


def _places(state: LayerState) -> list[int]:
    """Where the tensors of a state lie."""
    return [tensor.data_ptr() for tensor in state.tensors().values()]


_streams: dict[torch.device, torch.cuda.Stream] = {}


def _stream(device: torch.device) -> torch.cuda.Stream:
    """Where a device's graphs are captured."""
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    return _streams[device]


def _tensors(call: Call) -> tuple[torch.Tensor, ...]:
    return call.q, call.k, call.v, call.tokens, call.valid
