"""Which execution takes a call."""

from __future__ import annotations

from importlib import import_module
from typing import Literal, Protocol, cast

import torch

from sketch_eval.state import Call, LayerState, Trace

Execution = Literal["auto", "oracle", "stepwise", "compiled"]

FASTEST_FIRST: tuple[Execution, ...] = ("compiled", "stepwise")
"""Of these modules `auto` takes the first that serves a call."""


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
    """
    if execution != "auto":
        return _module(execution).advance(state, call)
    return next(found for name in FASTEST_FIRST if (found := _module(name)).serves(state, call)).advance(state, call)


def _module(name: str) -> Module:
    """Imported when first wanted, for some bring a compiler along."""
    return cast(Module, import_module(f"sketch_eval.execution.{name}"))
