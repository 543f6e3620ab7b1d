"""Which execution takes a call."""

from __future__ import annotations

import logging
from functools import lru_cache
from importlib import import_module
from typing import Literal, Protocol, cast, get_args

import torch

from sketch_eval.call import Call, Trace
from sketch_eval.errors import UsageError
from sketch_eval.state import LayerState

Execution = Literal["auto", "oracle", "stepwise", "compiled", "graph", "triton"]

FASTEST_FIRST: tuple[Execution, ...] = ("compiled", "graph", "triton", "stepwise")
"""Of these modules `auto` takes the first that serves a call: on a CPU the first, on a GPU the second for single tokens
and the third for texts."""

_log = logging.getLogger(__name__)
_said: set[str] = set()


class Module(Protocol):
    """What a module of an execution has."""

    def serves(self, state: LayerState, call: Call) -> bool:
        """Whether it can take the call."""

    def advance(self, state: LayerState, call: Call) -> tuple[torch.Tensor, Trace]:
        """See `stepwise.advance`."""


@torch.no_grad()
def advance(execution: Execution, state: LayerState, call: Call) -> tuple[torch.Tensor, Trace]:
    """Append tokens to a layer's store and attend from each; see `stepwise.advance`. No gradient goes through it.

    Args:
        execution: by name, or `auto` for the fastest that serves the call.
        state: the layer's state, changed in place.
        call: the tokens.

    Raises:
        UsageError: there is no such execution, or it does not serve the call; or the state is of another batch.
    """
    if execution != "auto" and execution not in get_args(Execution):
        raise UsageError(f"execution={execution!r}: give one of {', '.join(get_args(Execution))}")
    if len(call.q) != len(state.seen):
        raise UsageError(f"call of {len(call.q)} sequences: the state is of {len(state.seen)}; give as many")
    for name in FASTEST_FIRST if execution == "auto" else (execution,):
        module = _module(name)
        if module.serves(state, call):
            if (execution, name) == ("auto", "stepwise") and call.q.device.type == "cuda":
                _say_once(state, call)
            answer = module.advance(state, call)
            state.columns += call.length
            return answer
    raise UsageError(
        f"execution={execution!r} does not serve this call (importance={state.cell.importance}, "
        f"strategy={state.cell.strategy}, on {call.q.device}, after {state.columns} tokens); leave it out"
    )


def _say_once(state: LayerState, call: Call) -> None:
    """Let users know that a call on a GPU goes the slow way, and why; once for each reason."""
    from sketch_eval.execution.triton import why_not

    reason = why_not(state, call)
    if reason not in _said:
        _said.add(reason)
        _log.warning("execution: %s; each token runs stepwise, as some hundred launches a layer", reason)


@lru_cache
def _module(name: str) -> Module:
    """Imported when first wanted, for some bring a compiler along."""
    return cast(Module, import_module(f"sketch_eval.execution.{name}"))
