"""Tokens that come one at a time: the way that is prepared once decides and computes as the general one, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sketch_eval.call import Call, Trace
from sketch_eval.config import CacheConfig
from sketch_eval.execution.compiled import lane, run
from sketch_eval.policies import FATES
from sketch_eval.state import LayerState

CELLS: list[dict[str, Any]] = [
    {},
    {"scope": "head", "conservative": True, "strategy": "aggregate_near"},
    {"strategy": "aggregate", "scope": "head", "decay": 0.5},
    {"importance": "exact", "scope": "head", "normalize": "age"},
    {"importance": "recency", "strategy": "aggregate", "sinks": 0},
    {"importance": "last", "topk": 7, "recent": 2},
    {"strategy": "aggregate_turned", "decay": 1.0, "width": 1, "depth": 1},
    {"max_cache_size": 2, "sinks": 0, "recent": 1},
]


def decode(cell: CacheConfig, prepared: bool) -> tuple[torch.Tensor, Trace, LayerState]:
    """Nine tokens at once, then 21 one at a time, of which one sequence has three at its start less than the others.

    Half-way the first sequence takes the place of the second, as in a beam search.
    """
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(3, heads, 30, 8, generator=generator) for heads in (6, 2, 2))
    valid = torch.ones(3, 30, dtype=torch.bool)
    valid[2, :12] = False
    turns = torch.tensor([1.0, 0.1, 0.01, 0.001]) if FATES[cell.strategy].turns else None
    state, parts = LayerState(cell, 3, k, 3, speeds=turns), []
    for start, end in [(0, 9), *((i, i + 1) for i in range(9, 30))]:
        if start == 20:
            state.select(torch.tensor([0, 0, 2]))
        new_q, new_k, new_v = (each[:, :, start:end] for each in (q, k, v))
        call = Call(new_q, new_k, new_v, torch.zeros(3, end - start, dtype=torch.int64), valid[:, start:end], 0.3)
        assert lane.serves(state, call) == (prepared and start >= 9)
        parts.append(run.advance(state, call))
    return torch.cat([output for output, _ in parts], 1), Trace.join([trace for _, trace in parts]), state


def rare(fields: dict[str, Any]) -> bool:
    """Whether no other test of the default run compiles the loop of a cell; by default its lines are run in Python."""
    return "_" in fields.get("strategy", "") or fields.get("importance") == "last"


@pytest.mark.usefixtures("loop")
@pytest.mark.parametrize(
    ("fields", "loop"),
    [
        *(pytest.param(fields, "machine code", marks=[pytest.mark.slow] if rare(fields) else []) for fields in CELLS),
        *((fields, "lines") for fields in CELLS if rare(fields)),
    ],
    indirect=["loop"],
    ids=str,
)
def test_a_prepared_token_is_as_any_other_to_the_bit(fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    cell = CacheConfig(**{"max_cache_size": 10, "width": 8, "depth": 3, "sinks": 1, "recent": 0.5, **fields})
    output, trace, state = decode(cell, prepared=True)
    monkeypatch.setattr(lane, "serves", lambda state, call: False)
    expected, decided, other = decode(cell, prepared=False)
    assert (trace.victims >= 0).sum() > 30
    assert torch.equal(output, expected)
    for name in ("victims", "survivors", "hidden"):
        assert torch.equal(getattr(trace, name), getattr(decided, name)), name
    mine, its = state.tensors(), other.tensors()
    assert mine.keys() == its.keys()
    for name in mine:
        assert torch.equal(mine[name], its[name]), name


@pytest.mark.parametrize(
    "fields",
    [
        {"store": "int4"},
        {"store": "float16"},
        {"item": "token"},
        {"importance": "knorm"},
        {"importance": "count_sketch"},
    ],
    ids=str,
)
def test_what_wants_more_than_positions_goes_the_general_way(fields: dict[str, Any]) -> None:
    """A policy that derives from a counter's is not taken for it: VATP's scores are not its estimates."""
    k = torch.zeros(1, 2, 1, 8)
    call = Call(torch.zeros(1, 6, 1, 8), k, k, torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1).bool(), 1.0)
    for cell in (CacheConfig(**fields), CacheConfig(importance="vatp", scope="head")):
        assert not lane.serves(LayerState(cell, 0, k, 3), call)
    assert lane.serves(LayerState(CacheConfig(), 0, k, 3), call)
