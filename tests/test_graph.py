"""A step as a CUDA graph: what makes one possible, tried anywhere, and its equality with stepwise, on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sketch_eval.call import Call
from sketch_eval.commands.verify.executions import PREFIX, SPEEDS, random_call
from sketch_eval.config import CacheConfig
from sketch_eval.execution import advance, graph, stepwise
from sketch_eval.foresight import Fitted
from sketch_eval.policies import FATES, POLICIES
from sketch_eval.policies.learned import FEATURES
from sketch_eval.state import LayerState

RANKINGS = [name for name, kind in POLICIES.items() if not kind.asks and not kind.foresees]


def cells(importance: str) -> list[CacheConfig]:
    """Every scope that a ranking goes with, and a store in whole numbers; every fate with one of them."""
    fields: dict[str, Any] = {"max_cache_size": 12, "width": 8, "depth": 2, "sinks": 1, "recent": 0.5}
    found = [
        CacheConfig.parse(**fields, importance=importance, strategy=strategy, scope=scope)
        for scope in POLICIES[importance].scopes
        for strategy in (FATES if importance == "exact" else ("topk", "aggregate"))
    ]
    scope = POLICIES[importance].scopes[0]
    found += [CacheConfig.parse(**fields, importance=importance, scope=scope, store="int4", store_group=8)]
    found += [CacheConfig.parse(**fields, importance=importance, scope=scope, topk=8)]
    return found


class NoCopies(TorchDispatchMode):
    """Raises where a tensor goes from one device to another."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            assert args[0].device == made.device, f"{tuple(made.shape)} is copied to {made.device}"
        return made


def make(cell: CacheConfig, call: Call) -> LayerState:
    fitted = None
    if cell.fitted:
        numbers = torch.arange(2 * len(FEATURES), device=call.k.device).float().view(2, -1)
        fitted = Fitted((numbers * 7 % 5) - 2)
    speeds = SPEEDS if FATES[cell.strategy].turns else None  # On the CPU, as a model's come.
    return LayerState(cell, 0, call.k, 2, speeds=speeds, foresight=fitted)


@pytest.mark.parametrize("importance", RANKINGS)
def test_a_step_asks_nothing_of_its_numbers_and_changes_its_tensors_in_place(importance: str) -> None:
    """Tensors without numbers raise where Python would look at one; nor does a step bring any to the device."""
    for cell in cells(importance):
        call = random_call(1).split(1)[0]
        state = make(cell, call)
        before = {name: tensor.data_ptr() for name, tensor in state.tensors().items()}
        stepwise.advance(state, call)
        assert {name: tensor.data_ptr() for name, tensor in state.tensors().items()} == before, cell
        hollow = call.to("meta")
        state = make(cell, hollow)
        stepwise.advance(state, hollow)  # The constants of hashes go there once.
        with NoCopies():
            stepwise.advance(state, hollow)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
@pytest.mark.parametrize("importance", RANKINGS)
def test_captured_steps_leave_what_stepwise_leaves(importance: str) -> None:
    for cell in cells(importance):
        call = random_call(1).to("cuda")
        one, two = make(cell, call), make(cell, call)
        head, *rest = call.split(PREFIX)
        for state in (one, two):
            stepwise.advance(state, head)
        for token in rest[0].split(1):
            output, trace = advance("graph", one, token)
            wanted, standard = stepwise.advance(two, token)
            assert torch.allclose(output, wanted, atol=1e-5), cell
            assert torch.equal(trace.victims, standard.victims), cell
            assert torch.equal(trace.survivors, standard.survivors), cell
            assert torch.equal(trace.hidden, standard.hidden), cell
        assert isinstance(one.prepared, graph.Steps)
        assert one.prepared.graph is not None
        for name, mine in one.tensors().items():
            assert torch.allclose(mine.float(), two.tensors()[name].float(), atol=1e-5), (cell, name)
        one.select(torch.tensor([1, 0], device="cuda"))  # As beam search: the graph is of other memory.
        two.select(torch.tensor([1, 0], device="cuda"))
        token = rest[0].split(1)[0]
        assert torch.allclose(advance("graph", one, token)[0], stepwise.advance(two, token)[0], atol=1e-5), cell
