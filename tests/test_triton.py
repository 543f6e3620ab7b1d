"""The kernel for GPUs against the oracle, on a GPU or interpreted on the CPU; and compiled for GPUs without one."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: pip install -e '.[gpu]' -c constraints.txt")

import triton.language as tl
from triton.runtime import interpreter

from sketch_eval.call import Call, Trace
from sketch_eval.config import CacheConfig
from sketch_eval.errors import UsageError
from sketch_eval.execution import Execution, advance, choose, stepwise
from sketch_eval.execution import triton as execution
from sketch_eval.execution.triton.build import Built, compiled
from sketch_eval.execution.triton.plan import COUNT_MIN, SOURCES
from sketch_eval.state import LayerState

Scope = Literal["layer", "head"]

DEVICE = "cpu" if execution.run.interpreted() else "cuda"

NEAR_TIE = 1e-5
"""As in test_executions: no more is compared after a choice that was made by less."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter without what it does over and over: a function that a kernel calls finds the language patched."""
    patched: set[str] = set()
    patch = interpreter._patch_lang

    def once(function: Any) -> Any:
        if function.__name__ == "scan" or function.__module__ not in patched:
            patched.add(function.__module__)
            return patch(function)
        return None

    def product(a: Any, b: Any, *rest: Any) -> Any:
        """Triton 3.7's interpreter takes the bits of bfloat16 for whole numbers."""
        wide = [
            interpreter.TensorHandle(
                interpreter._convert_float(each.data, tl.bfloat16, tl.float32, None).view(np.float32), tl.float32
            )
            if each.dtype == tl.bfloat16
            else each
            for each in (a, b)
        ]
        return dot(*wide, *rest)

    dot = interpreter.interpreter_builder.create_dot
    monkeypatch.setattr(interpreter.interpreter_builder, "create_dot", product)
    monkeypatch.setattr(interpreter, "_patch_lang", once)


def arriving(
    batch: int = 2, kv_heads: int = 2, group: int = 2, length: int = 22, head_dim: int = 8, seed: int = 0
) -> Call:
    """Random tokens, the queries in groups; the second sequence is shorter, with padding at both of its ends."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(batch, heads, length, head_dim, generator=generator)
        for heads in (kv_heads * group, kv_heads, kv_heads)
    )
    valid = torch.ones(batch, length, dtype=torch.bool)
    valid[1:, :4] = valid[1:, -2:] = False
    tokens = torch.randint(1, 6, (batch, length), generator=generator)
    return Call(3 * q, k, v, tokens, valid, head_dim**-0.5)


def typed(call: Call, dtype: torch.dtype) -> Call:
    """The same tokens, their vectors in a dtype."""
    return replace(call, q=call.q.to(dtype), k=call.k.to(dtype), v=call.v.to(dtype))


def small_cell(**changes: Any) -> CacheConfig:
    return CacheConfig(**{"max_cache_size": 8, "width": 8, "depth": 3, "sinks": 1, "recent": 0.5, **changes})


def run(name: Execution, cell: CacheConfig, calls: list[Call]) -> tuple[torch.Tensor, Trace, LayerState]:
    """Output and trace, on the CPU, and final state of calls, one after the other; the oracle stays on the CPU."""
    calls = [call.to("cpu" if name == "oracle" else DEVICE) for call in calls]
    first = calls[0]
    state = LayerState(cell, 3, first.k, first.q.shape[1] // first.k.shape[1])
    outputs, traces = zip(*(advance(name, state, call) for call in calls), strict=True)
    trace = Trace.join(list(traces))
    decided = Trace(trace.victims.cpu(), trace.survivors.cpu(), trace.hidden.cpu(), trace.margins)
    return torch.cat(outputs, 1).cpu(), decided, state


def assert_follows_oracle(cell: CacheConfig, call: Call, calls: list[Call] | None = None) -> LayerState:
    """The kernel decides as the oracle at every token, and attends to what it kept."""
    truth, standard, _ = run("oracle", cell, [call])
    output, trace, state = run("triton", cell, calls or [call])
    assert standard.margins is not None
    clear = (standard.margins >= NEAR_TIE).cumprod(1).bool()
    assert clear.float().mean() > 0.9
    for what in ("victims", "survivors", "hidden"):
        assert torch.equal(getattr(trace, what)[clear], getattr(standard, what)[clear]), what
    compared = clear.unflatten(0, (len(truth), -1)).all(1)
    assert (output - truth)[compared].abs().max() < 1e-5
    assert (output[~call.valid] == 0).all()
    assert (state.seen.cpu() == call.valid.sum(1)).all()
    return state


QUICK = {
    ("exact", "topk", "head"),
    ("count_min", "topk", "layer"),
    ("count_min", "aggregate", "head"),
    ("knorm", "aggregate", "layer"),
}
MATRIX = [
    pytest.param(*case, marks=[] if case in QUICK else [pytest.mark.slow])
    for case in itertools.product(
        ["count_min", "exact", "last", "recency", "knorm"], ["topk", "aggregate"], ["head", "layer"]
    )
]
"""Interpreted, a token takes a row some hundredths of a second: a few cases by default."""


@pytest.mark.parametrize(("importance", "fate", "scope"), MATRIX)
def test_the_kernel_decides_as_the_oracle(importance: str, fate: str, scope: Scope) -> None:
    cell = small_cell(importance=importance, scope=scope, strategy=fate)
    call = arriving(kv_heads=2 if scope == "head" else 3, group=2 if scope == "head" else 1)
    assert_follows_oracle(cell, call)


CELLS: list[dict[str, Any]] = [
    {"topk": 4, "importance": "recency", "normalize": "age"},
    {"max_cache_size": 40},  # Nothing ever leaves.
    {"importance": "count_min", "item": "token", "normalize": "age", "decay": 1.0, "depth": 1},
    {"importance": "count_min", "item": "key", "decay": 0.02, "width": 3, "scope": "head"},  # Its table is scaled.
]
MORE_CELLS: list[dict[str, Any]] = [
    {"topk": 5, "importance": "count_min"},
    {"topk": 3, "importance": "exact", "sinks": 2, "recent": 0.25, "scope": "head"},
    {"max_cache_size": 40, "strategy": "aggregate"},
    {"max_cache_size": 1, "sinks": 0, "recent": 0, "importance": "exact"},
    {"max_cache_size": 1, "sinks": 0, "recent": 0, "importance": "exact", "strategy": "aggregate"},
    {"importance": "exact", "normalize": "age", "decay": 1.0, "sinks": 0, "recent": 0},
    {"importance": "random", "seed": 5},
    {"importance": "exact", "store": "int4", "store_group": 4},
    {"importance": "exact", "store": "float16"},
]


@pytest.mark.parametrize(
    "changes", [*CELLS, *(pytest.param(each, marks=pytest.mark.slow) for each in MORE_CELLS)], ids=str
)
def test_any_cell_that_it_serves_follows_the_oracle(changes: dict[str, Any]) -> None:
    assert_follows_oracle(small_cell(**changes), arriving(length=20, seed=1))


@pytest.mark.parametrize("fate", ["topk", pytest.param("aggregate", marks=pytest.mark.slow)])
def test_a_sketch_whose_table_is_divided_between_chunks_follows_the_oracle(fate: str) -> None:
    """0.25^-32 is 2^64: the table is divided before the third chunk of 16 tokens."""
    cell = small_cell(importance="count_min", decay=0.25, strategy=fate, scope="head")
    assert_follows_oracle(cell, arriving(batch=1, kv_heads=1, length=56, seed=4))


@pytest.mark.parametrize(
    "changes",
    [
        {"importance": "count_min", "topk": 20},
        pytest.param({"importance": "exact", "topk": 20}, marks=pytest.mark.slow),
        pytest.param({"importance": "count_min", "strategy": "aggregate"}, marks=pytest.mark.slow),
        pytest.param({"importance": "knorm", "strategy": "aggregate", "recent": 0}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_stores_with_long_chunks_follow_the_oracle(changes: dict[str, Any]) -> None:
    """Stores of 32 pairs and more take chunks of 32 tokens, or of 16 with a sketch: here two or five, and a bit."""
    cell = small_cell(max_cache_size=36, width=64, scope="head", **changes)
    assert_follows_oracle(cell, arriving(batch=1, kv_heads=1, length=80, seed=6))


@pytest.mark.parametrize(
    "changes",
    [
        {"importance": "count_min", "topk": 4},
        pytest.param({"importance": "exact", "recent": 0, "sinks": 0}, marks=pytest.mark.slow),
        pytest.param({"importance": "count_min", "strategy": "aggregate"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_queries_that_are_no_numbers_have_the_victims_of_stepwise(changes: dict[str, Any]) -> None:
    call = arriving(seed=5)
    q = call.q.clone()
    q[:, 0, 12], q[0, 1, 15] = float("nan"), float("inf")
    (output, trace, _), (wanted, standard, _) = (
        run(name, small_cell(**changes), [replace(call, q=q)]) for name in ("triton", "stepwise")
    )
    for what in ("victims", "survivors", "hidden"):
        assert torch.equal(getattr(trace, what), getattr(standard, what)), what
    assert torch.equal(output.isnan(), wanted.isnan())


@pytest.mark.parametrize(
    "changes",
    [
        {"importance": "knorm", "store": "int8"},
        {"importance": "count_min", "item": "token", "strategy": "aggregate"},
        pytest.param({"importance": "exact", "scope": "head"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_it_leaves_the_state_that_stepwise_leaves_and_goes_on_from_it(changes: dict[str, Any]) -> None:
    """Calls of one token, of a chunk and a bit, and of the rest; the kernel's own, and by turns with stepwise."""
    cell, call = small_cell(**changes), arriving(length=24, seed=2)
    first, second, *_ = call.split(1)
    rest = Call(
        call.q[:, :, 2:], call.k[:, :, 2:], call.v[:, :, 2:], call.tokens[:, 2:], call.valid[:, 2:], call.scaling
    )  # fmt: skip
    parts = [first, second, *rest.split(18)]
    state = assert_follows_oracle(cell, call, parts)
    _, _, wanted = run("stepwise", cell, [call])
    assert_same_pairs(state, wanted)
    turns = LayerState(cell, 3, call.k.to(DEVICE), 2)
    for name, part in zip(("stepwise", "triton", "stepwise", "triton"), parts, strict=True):
        advance(name, turns, part.to(DEVICE))  # type: ignore[arg-type]
    assert_same_pairs(turns, wanted)


def assert_same_pairs(one: LayerState, two: LayerState) -> None:
    """Two states hold the same pairs, in whatever slots."""
    orders = [state.positions.cpu().argsort(dim=1) for state in (one, two)]
    for (name, mine), its in zip(one.tensors().items(), two.tensors().values(), strict=True):
        mine, its = mine.cpu(), its.cpu()
        if name in ("seen", "sketch"):
            assert torch.allclose(mine.float(), its.float(), rtol=1e-4, atol=1e-7), name
            continue
        in_order = []
        for tensor, order in zip((mine, its), orders, strict=True):
            by_slot = tensor.transpose(1, 2) if name.startswith(("keys", "values")) else tensor
            picked = by_slot[torch.arange(len(order))[:, None], order]
            in_order.append(picked[:, 1:].float())  # The free slot holds anything.
        assert torch.allclose(in_order[0], in_order[1], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize(
    ("dtype", "fate"),
    [(torch.bfloat16, "topk"), pytest.param(torch.float16, "aggregate", marks=pytest.mark.slow)],
    ids=str,
)
def test_half_precision_decides_in_float32(dtype: torch.dtype, fate: str) -> None:
    """Of rounded vectors the kernel makes what the oracle makes of the same numbers in float32."""
    exact = arriving(seed=3, head_dim=16)
    half = typed(exact, dtype)
    wide = typed(half, torch.float32)
    cell = small_cell(importance="exact", strategy=fate)
    output, trace, _ = run("triton", cell, [half])
    truth, standard, _ = run("oracle", cell, [wide])
    if fate == "topk":
        assert torch.equal(trace.victims, standard.victims)
    else:  # A folded pair is kept in half precision, from the next chunk on.
        assert torch.equal(trace.victims[:, :16], standard.victims[:, :16])
        assert torch.equal(trace.survivors[:, :16], standard.survivors[:, :16])
    assert output.dtype == dtype
    near = torch.finfo(dtype).eps * (1 + truth[:, :16].abs())
    assert ((output.float() - truth)[:, :16].abs() <= near).all()


@pytest.mark.skipif(DEVICE == "cpu", reason="interpreted, it would take an hour: needs a GPU")
@pytest.mark.parametrize("scope", ["head", "layer"])
@pytest.mark.parametrize(
    "changes",
    [
        {"importance": "exact"},
        {"importance": "count_min", "width": 512, "depth": 4},
        {"importance": "count_min", "width": 64, "depth": 3, "strategy": "aggregate"},
        {"importance": "count_min", "width": 512, "depth": 4, "topk": 100},
    ],
    ids=str,
)
def test_at_the_sizes_of_gpt2_it_decides_as_stepwise(changes: dict[str, Any], scope: Scope) -> None:
    """Until a sequence's first near tie, which either may decide otherwise: seldom, of 400 choices among 200 pairs."""
    cell = CacheConfig.parse(max_cache_size=200, scope=scope, **changes)
    call = arriving(batch=4, kv_heads=12, group=1, length=600, head_dim=64, seed=7)
    (output, trace, _), (wanted, standard, _) = (run(name, cell, [call]) for name in ("triton", "stepwise"))
    alike = (trace.victims == standard.victims) & (trace.survivors == standard.survivors)
    alike = alike.cumprod(1).bool()
    assert alike.float().mean() > 0.9
    agreed = alike.unflatten(0, (4, -1)).all(1)
    assert (output - wanted)[agreed].abs().max() < 1e-4


def test_what_it_does_not_serve_is_refused_by_name_and_goes_stepwise_otherwise(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = arriving().to(DEVICE)
    for changes, why in (
        ({"importance": "race"}, "importance=race"),
        ({"importance": "exact", "strategy": "aggregate_near"}, "strategy=aggregate_near"),
        ({"importance": "exact", "scope": "budget"}, "scope=budget"),
        ({"importance": "exact", "max_cache_size": 961}, "max_cache_size=960"),
        ({"importance": "exact", "strategy": "aggregate", "store": "int8"}, "store=int8"),
        ({"importance": "count_min", "conservative": True}, "conservative=True"),
    ):
        state = LayerState(small_cell(**changes), 0, call.k, 2)
        assert why in execution.why_not(state, call)
        with pytest.raises(UsageError, match="does not serve this call"):
            advance("triton", state, call)
        assert choose.FASTEST_FIRST[-1] == "stepwise"
        assert stepwise.serves(state, call)
    served = LayerState(small_cell(importance="exact"), 0, call.k, 2)
    assert not execution.why_not(served, call)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    call = call.to("cpu")
    assert "this is cpu" in execution.why_not(served, call)
    monkeypatch.setattr(choose, "_said", set())
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            choose._say_once(served, call)
    (record,) = caplog.records
    assert "stepwise" in record.getMessage()


# Machine code, of the compiler and the assembler inside Triton's wheel.

SPILLED, SHARED = 64, 40 * 1024
"""Bytes of a thread in local memory, and of a program in shared memory, that no kernel for half precision exceeds: of
40 KiB an SM of an A100 has room for four. What spills is not touched in the loop over tokens."""
WIDE_SPILLED, WIDE_SHARED = 384, 64 * 1024
"""The same for float32 vectors, whose products take more registers: there the loop over tokens spills, too."""
LARGEST_SPILLED = 160
"""The same in half precision where a thread has the most numbers: a layer's twelve heads, a sketch of more than 480
pairs, and queries that see a part of them. There a hundredth of the loop's instructions are spills."""

KEY: list[dict[str, Any]] = [
    {"cell": {"max_cache_size": 64, "importance": "exact", "scope": "head"}, "heads": 1, "queries": 1},
    {"cell": {"max_cache_size": 64, "strategy": "aggregate"}, "heads": 12, "queries": 12},
]
ALL: list[dict[str, Any]] = [
    {
        "cell": {"max_cache_size": cap, "importance": importance, "strategy": strategy, "topk": topk, "scope": scope},
        "heads": heads,
        "queries": queries,
    }
    for cap in (64, 128, 256, 512)
    for importance, strategy, topk in (
        ("exact", "topk", None),
        ("count_min", "topk", 32),
        ("count_min", "aggregate", None),
    )
    for scope, heads, queries in (("head", 1, 1), ("head", 1, 4), ("layer", 12, 12))
]


def assert_fits(built: Built, wide: bool = False) -> None:
    plan = built.plan
    largest = plan.source == COUNT_MIN and plan.hide and plan.queries > 8 and plan.columns > 512
    assert built.registers <= 255
    assert built.stack <= (WIDE_SPILLED if wide else LARGEST_SPILLED if largest else SPILLED), plan
    assert built.shared <= (WIDE_SHARED if wide else SHARED), plan
    spills = sum(code.startswith(("LDL", "STL")) for code in built.step)
    assert wide or spills <= (len(built.step) / 80 if largest else 0), plan
    # Vectors meet in matrix products, which are no step's.
    assert not any(code.startswith("HMMA") for code in built.step)


@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_it_compiles_without_a_gpu_and_stays_in_registers(architecture: int) -> None:
    for built in compiled([{**kernel, "head_dim": 64, "architecture": architecture} for kernel in KEY]):
        assert f"sm_{architecture}" in built.ptx
        assert_fits(built)


@pytest.mark.slow
@pytest.mark.parametrize(("head_dim", "dtype"), [(64, "bfloat16"), (128, "bfloat16"), (64, "float32")])
def test_every_offered_size_stays_within_the_limits_of_its_dtype(head_dim: int, dtype: str) -> None:
    for built in compiled([{**kernel, "head_dim": head_dim, "dtype": dtype} for kernel in ALL]):
        assert_fits(built, dtype == "float32")


def test_every_policy_that_it_knows_is_one_that_there_is() -> None:
    from sketch_eval.policies import POLICIES

    assert set(SOURCES) <= set(POLICIES)
