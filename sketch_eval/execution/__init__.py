"""Executions of the one step of DESIGN §2. The oracle is the specification in code; the others are held to it."""

from __future__ import annotations

from typing import Literal

import torch

from sketch_eval.execution import oracle, stepwise
from sketch_eval.state import LayerState, Trace

Execution = Literal["auto", "oracle", "stepwise", "compiled"]


@torch.no_grad()
def advance(
    execution: Execution,
    state: LayerState,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tokens: torch.Tensor,
    valid: torch.Tensor,
    scaling: float,
) -> tuple[torch.Tensor, Trace]:
    """Append tokens to a layer's store and attend from each, by the named execution; see `stepwise.advance`.

    `auto` is the compiled loop on a CPU and batched PyTorch elsewhere. No gradient goes through it.
    """
    if execution == "auto":
        compiled_serves = q.device.type == "cpu" and state.importance.compiled is not None
        execution = "compiled" if compiled_serves else "stepwise"
    if execution == "oracle":
        return oracle.advance(state, q, k, v, tokens, valid, scaling)
    if execution == "stepwise":
        return stepwise.advance(state, q, k, v, tokens, valid, scaling)
    from sketch_eval.execution import compiled  # Here, for it compiles, or loads, its loop.

    return compiled.advance(state, q, k, v, tokens, valid, scaling)


__all__ = ["Execution", "advance"]
