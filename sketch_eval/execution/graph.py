"""A single token on a GPU: the step of `stepwise`, captured once as a CUDA graph and launched as one from then on.

Some hundred operations of a few microseconds each, launched from Python one by one, take longer than they compute.
"""

from __future__ import annotations

import torch

from sketch_eval.execution import stepwise
from sketch_eval.state import Call, LayerState, Trace

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

    A graph reads and writes the memory that it was captured with: the state's own, a call's copy, and its output.
    """

    def __init__(self, call: Call) -> None:
        self.taken = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.call = call
        self.output = self.decided = torch.empty(0)

    def fit(self, call: Call) -> bool:
        """Whether a call is like those before it."""
        pairs = zip(_tensors(self.call), _tensors(call), strict=True)
        alike = all(mine.shape == its.shape and mine.dtype == its.dtype for mine, its in pairs)
        return alike and call.scaling == self.call.scaling

    def advance(self, state: LayerState, call: Call) -> tuple[torch.Tensor, Trace]:
        """The next step."""
        self.taken += 1
        if self.taken <= AFTER:
            return stepwise.advance(state, call)
        if self.graph is None:
            self._capture(state, call)
        assert self.graph is not None
        for mine, its in zip(_tensors(self.call), _tensors(call), strict=True):
            mine.copy_(its)
        self.graph.replay()
        return self.output.clone(), Trace(*self.decided.clone().unbind())

    def _capture(self, state: LayerState, call: Call) -> None:
        """Record a step, of which nothing is computed yet."""
        self.call = call.each(torch.clone)
        graph, stream = torch.cuda.CUDAGraph(), _stream(call.q.device)
        stream.wait_stream(torch.cuda.current_stream())
        # Not `torch.cuda.graph`, which collects garbage and empties torch's store of memory: once a layer.
        with torch.cuda.stream(stream):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                self.output, trace = stepwise.advance(state, self.call)
                self.decided = torch.stack((trace.victims, trace.survivors, trace.hidden))
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = graph


_streams: dict[torch.device, torch.cuda.Stream] = {}


def _stream(device: torch.device) -> torch.cuda.Stream:
    """Where a device's graphs are captured."""
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    return _streams[device]


def _tensors(call: Call) -> tuple[torch.Tensor, ...]:
    return call.q, call.k, call.v, call.tokens, call.valid
