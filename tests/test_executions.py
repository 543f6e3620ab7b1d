"""docs/design.md §5: decode == scan == oracle, in decisions and in logits."""

from __future__ import annotations

import bisect
import copy
import heapq
import inspect
import itertools
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, Literal, cast

import pytest
import torch
from conftest import tiny_gpt2, tiny_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, PreTrainedModel

from sketch_eval import bundled
from sketch_eval.attention import enable, foresee
from sketch_eval.cache import SketchCache
from sketch_eval.call import Call
from sketch_eval.config import CacheConfig
from sketch_eval.execution import Execution, advance, oracle
from sketch_eval.execution.compiled import sources
from sketch_eval.hashing import sign_hash
from sketch_eval.policies import FATES, POLICIES
from sketch_eval.policies.items import ITEMS
from sketch_eval.state import LayerState

RANKINGS = [
    (name, item)
    for name, kind in POLICIES.items()
    if not kind.foresees
    for item in (ITEMS if "item" in kind.reads else ["position"])
]
"""Every policy that can begin with a text that it does not know, with every item where it hashes one."""
SKETCHED = [(name, item) for name, item in RANKINGS if POLICIES[name].sketched]
HIDING: list[dict[str, Any]] = [{"strategy": name, "topk": 8} for name, fate in FATES.items() if fate.hides]
UNTURNED: list[dict[str, Any]] = [*({"strategy": name} for name, fate in FATES.items() if not fate.turns), *HIDING]
"""Every fate of victims but those that turn rotary keys, and what hides pairs."""
WAYS: list[dict[str, Any]] = [*UNTURNED, *({"strategy": name} for name, fate in FATES.items() if fate.turns)]

Scope = Literal["layer", "head", "budget", "entropy"]

NEAR_TIE = 1e-5
"""A choice that the oracle made by less than this, relatively, float32 may make otherwise; no more is compared."""


def run(
    model: PreTrainedModel,
    cell: CacheConfig,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    execution: Execution,
    prefill: int | None = None,
) -> tuple[torch.Tensor, SketchCache]:
    """Logits and cache of a text, after `prefill` tokens one token at a time."""
    seen = foresee(model, tokens, cell.foresees) if cell.foresees else None
    cache = SketchCache(model.config, cell, traced=True, execution=execution, foresight=seen)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    length = tokens.shape[1]
    ends = [length] if prefill is None else [prefill, *range(prefill + 1, length + 1)]
    logits = []
    with torch.no_grad():
        for start, end in itertools.pairwise([0, *ends]):
            call = {"input_ids": tokens[:, start:end], "position_ids": positions[:, start:end]}
            logits.append(model(**call, attention_mask=mask[:, :end], past_key_values=cache).logits)
    return torch.cat(logits, 1), cache


def assert_follows_oracle(
    model: PreTrainedModel, cell: CacheConfig, tokens: torch.Tensor, mask: torch.Tensor, tolerance: float = 1e-4
) -> tuple[int, int]:
    """Compare every execution with the oracle; return tokens compared, and tokens there are."""
    truth, standard = run(model, cell, tokens, mask, "oracle")
    layers = range(model.config.num_hidden_layers)
    margins = torch.stack([cast(torch.Tensor, standard.trace(layer).margins) for layer in layers]).amin(0)
    # With scope=head a sequence has a row for each key/value head, and each of them is in what the next layer sees.
    margins = margins.unflatten(0, (len(tokens), -1)).amin(1)
    compared = (margins >= NEAR_TIE).cumprod(1).bool() & mask.bool()
    rows = compared.repeat_interleave(standard.units, 0)
    # What the compiled loop has no branch for runs stepwise, whatever runs it.
    served = cell.importance in sources.SOURCES and cell.strategy in sources.FATES and not cell.shared_out
    fast: list[Execution] = ["compiled"] if served else []
    for execution, prefill in itertools.product([*fast, "stepwise"], [None, 9]):
        logits, cache = run(model, cell, tokens, mask, execution, prefill)
        for layer in layers:
            for what in ("victims", "survivors", "hidden"):
                expected, got = getattr(standard.trace(layer), what), getattr(cache.trace(layer), what)
                assert torch.equal(got[rows], expected[rows]), (execution, prefill, layer, what)
        off = (logits - truth)[compared].abs()
        assert off.numel() == 0 or off.max() < tolerance, (execution, prefill)
    return int(compared.sum()), int(mask.sum())


USUAL: list[dict[str, Any]] = [{"strategy": "topk"}, {"strategy": "aggregate"}, *HIDING]
"""Fates that every ranking meets; the other ways to fold meet a few, for each pair of the two is compiled."""
MAIN = (("count_min", "position"), ("exact", "position"), ("knorm", "position"))
MATRIX = [
    (which, least, fate, importance, item, cast(Scope, scope))
    for which, least, fates in (("model", 0.9, UNTURNED), ("grouped", 0.8, WAYS))
    for fate in fates
    for importance, item in RANKINGS
    if fate in USUAL or (importance, item) in MAIN
    for scope in POLICIES[importance].scopes
    if scope in ("layer", "head")
]
"""A random GPT-2, and a Llama of which eight query heads share two key/value heads, with the least share compared."""


def half(which: str, scope: Scope) -> bool:
    """By default a scope meets one of the models."""
    return (which == "grouped") == (scope == "head")


def quarter(which: str, fate: dict[str, Any], importance: str, scope: Scope) -> bool:
    """And a fate one of the scopes, where a ranking has both."""
    scopes = POLICIES[importance].scopes
    return half(which, scope) and ((scope == "head") == (fate != {"strategy": "topk"}) or "layer" not in scopes)


def main(fate: dict[str, Any], importance: str, item: str) -> bool:
    """What the default run compiles, at some five seconds each; of the others it runs the same lines in Python."""
    return fate in USUAL and (importance, item) in MAIN


@pytest.mark.usefixtures("loop")
@pytest.mark.parametrize(
    ("loop", "which", "least", "fate", "importance", "item", "scope"),
    [
        *(
            pytest.param(
                "machine code", which, least, fate, importance, item, scope,
                marks=[] if half(which, scope) and main(fate, importance, item) else [pytest.mark.slow],
            )
            for which, least, fate, importance, item, scope in MATRIX
        ),
        *(
            ("lines", which, least, fate, importance, item, scope)
            for which, least, fate, importance, item, scope in MATRIX
            if quarter(which, fate, importance, scope) and not main(fate, importance, item)
        ),
    ],
    indirect=["loop"],
    ids=str,
)  # fmt: skip
def test_decode_and_scan_decide_as_the_oracle(
    request: pytest.FixtureRequest,
    which: str,
    least: float,
    importance: str,
    item: str,
    scope: Scope,
    fate: dict[str, Any],
) -> None:
    model = request.getfixturevalue(which)
    cell = small_cell(importance=importance, item=item, scope=scope, **fate)
    tokens, mask = padded_batch(model)
    compared, there = assert_follows_oracle(model, cell, tokens, mask)
    assert compared >= least * there


def small_cell(**changes: Any) -> CacheConfig:
    return CacheConfig(**{"max_cache_size": 12, "width": 8, "depth": 3, "sinks": 1, "recent": 0.5, **changes})


def padded_batch(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of two texts, the shorter one padded on the left, and their mask."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, model.config.vocab_size, (2, 28), generator=generator)
    mask = torch.ones_like(tokens)
    mask[1, :5] = 0
    return tokens, mask


@pytest.mark.usefixtures("loop")
@pytest.mark.parametrize("execution", ["oracle", "stepwise", "compiled"])
@pytest.mark.parametrize("fate", WAYS, ids=str)
@pytest.mark.parametrize("importance", ["exact", "last", "recency", "knorm"])
def test_heads_that_attend_alike_keep_what_their_layer_keeps(
    importance: str, fate: dict[str, Any], execution: Execution
) -> None:
    """One head's queries, keys and values in all heads: their mean is each one's, so the scopes cannot differ."""
    one = torch.randn(3, 2, 1, 40, 8, generator=torch.Generator().manual_seed(11))
    q, k, v = (one * torch.tensor([3.0, 1.0, 1.0]).view(3, 1, 1, 1, 1)).expand(3, 2, 4, 40, 8)
    call = Call(q, k, v, torch.zeros(2, 40, dtype=torch.long), torch.ones(2, 40, dtype=torch.bool), 0.5)
    found = {}
    for scope in ("layer", "head"):
        state = LayerState(
            small_cell(importance=importance, scope=scope, **fate), 0, k, speeds=torch.tensor([1.0, 0.1])
        )
        output, trace = advance(execution, state, call)
        found[scope] = output, trace.victims.unflatten(0, (2, -1)), trace.survivors.unflatten(0, (2, -1))
    for which in (1, 2):
        assert (found["head"][which] == found["layer"][which]).all()
    assert (found["layer"][1][:, :, 12:] >= 0).all()
    assert (found["head"][0] - found["layer"][0]).abs().max() < 1e-5


BUDGETED = [
    (name, fate, scope)
    for name, kind in POLICIES.items()
    for scope in kind.scopes
    if scope in ("budget", "entropy")
    for fate in ("topk", "aggregate")
]


@pytest.mark.parametrize(
    ("which", "importance", "fate", "scope"),
    [
        pytest.param(which, *each, marks=pytest.mark.slow if (which, each[1]) == ("model", "aggregate") else [])
        for each in BUDGETED
        for which in ("model", "grouped")
    ],
)
def test_heads_that_share_a_budget_decide_as_the_oracle(
    request: pytest.FixtureRequest, which: str, importance: str, fate: str, scope: Scope
) -> None:
    model = request.getfixturevalue(which)
    tokens, mask = padded_batch(model)
    if POLICIES[importance].foresees:
        mask = torch.ones_like(mask)
    cell = small_cell(importance=importance, strategy=fate, scope=scope)
    compared, there = assert_follows_oracle(model, cell, tokens, mask)
    assert compared >= 0.7 * there


@pytest.mark.parametrize("scope", ["budget", "entropy"])
def test_a_budget_is_shared_out_by_need_and_never_exceeded(scope: Scope) -> None:
    """One head looks at one place over and over, the other everywhere alike, which leaves nothing of its own behind."""
    generator = torch.Generator().manual_seed(7)
    k, v = torch.randn(1, 2, 60, 8, generator=generator), torch.randn(1, 2, 60, 8, generator=generator)
    q = torch.stack((torch.zeros(60, 8), 9 * k[0, 1, :1].expand(60, 8)))[None]
    call = Call(q, k, v, torch.zeros(1, 60, dtype=torch.long), torch.ones(1, 60, dtype=torch.bool), 1.0)
    cell = CacheConfig(max_cache_size=12, importance="exact", decay=1.0, scope=scope, sinks=0, recent=2)
    state = LayerState(cell, 0, k)
    for part in call.split(1):
        advance("auto", state, part)
        assert (state.positions >= 0).sum() <= 24
    assert state.owners is not None
    held = state.owners[state.positions >= 0].bincount().tolist()
    assert sum(held) == 24
    assert held[0] > 18 > 6 > held[1] >= 3  # The spread one needs most; the other keeps its place.


@pytest.mark.parametrize("execution", ["oracle", "stepwise"])
def test_a_budget_is_shared_out_as_computed_by_hand(execution: Execution) -> None:
    """Ada-KV's choice (Feng et al., 2024), at every token: the layer's most important pairs stay, whosever they are.

    Three pairs a head, so six. One head gives all pairs alike: after four tokens 25/12, 13/12, 7/12 and 1/4 in sum. The
    other gives all to the first: 4, 0, 0, 0. The newest is protected. So the second head's pairs 1 and 2 leave, and at
    the fifth token its pair 3 and, of 137/60, 77/60, 47/60 and 9/20, the first head's pair 3.
    """
    k = torch.zeros(1, 2, 5, 4)
    k[0, 1, 0, 0] = 1.0
    q = torch.zeros(1, 2, 5, 4)
    q[0, 1, :, 0] = 200.0
    call = Call(q, k, k, torch.zeros(1, 5, dtype=torch.long), torch.ones(1, 5, dtype=torch.bool), 1.0)
    cell = CacheConfig(max_cache_size=3, importance="exact", decay=1.0, scope="budget", sinks=0, recent=1)
    state = LayerState(cell, 0, k)
    _, trace = advance(execution, state, call)
    left = [[(name // 2, name % 2) for name in line] for line in trace.victims.T[3:].tolist()]  # Position, head.
    assert left == [[(1, 1), (2, 1)], [(3, 1), (3, 0)]]
    assert (trace.victims[:, :3] == -1).all()


@st.composite
def cells(draw: st.DrawFn) -> CacheConfig:
    """Any cell of a small cap."""
    cap = draw(st.integers(1, 14))
    sinks = draw(st.integers(0, cap))
    importance, item = draw(st.sampled_from(RANKINGS))
    scope = cast(Scope, draw(st.sampled_from(POLICIES[importance].scopes)))
    strategy = draw(st.sampled_from(list(FATES)))
    return CacheConfig(
        max_cache_size=cap,
        width=draw(st.sampled_from([1, 3, 8, 64])),
        depth=draw(st.integers(1, 5)),
        strategy=strategy,
        scope=scope,
        topk=draw(st.none() | st.integers(1, cap)) if FATES[strategy].hides and scope in ("layer", "head") else None,
        importance=importance,
        item=item,
        sinks=sinks,
        recent=draw(st.integers(0, cap - sinks)),
        normalize=draw(st.sampled_from(["none", "age"])),
        decay=draw(st.sampled_from([1.0, 0.95, 0.5])),
        conservative=importance == "count_min" and draw(st.booleans()),
        seed=draw(st.integers(0, 2**40)),
    )


@pytest.mark.parametrize("examples", [30, pytest.param(100, marks=pytest.mark.slow)])
def test_any_cell_of_any_model_follows_the_oracle_on_any_batch(request: pytest.FixtureRequest, examples: int) -> None:
    """The slow run's cells are compiled."""
    if examples < 100:
        request.getfixturevalue("interpreted")
    followed: list[tuple[int, int]] = []

    @settings(max_examples=examples)
    @given(cell=cells(), seed=st.integers(0, 1000), lengths=st.lists(st.integers(1, 30), min_size=1, max_size=3))
    def follows(cell: CacheConfig, seed: int, lengths: list[int]) -> None:
        model: PreTrainedModel
        if seed % 3 and not FATES[cell.strategy].turns:
            model = tiny_gpt2(seed=seed % 5, layers=1 + seed % 3, heads=1 + seed % 4)
        else:
            model = tiny_llama(seed=seed % 5, layers=1 + seed % 2, heads=4, kv_heads=2 - seed % 2)
        width = max(lengths) + seed % 2  # A column of padding everywhere, now and then.
        mask = torch.stack([(torch.arange(width) >= width - length).long() for length in lengths])
        # Few different tokens, so that the item `token` has repeats.
        tokens = torch.randint(1, 9, mask.shape, generator=torch.Generator().manual_seed(seed))
        followed.append(assert_follows_oracle(model, cell, tokens, mask))

    follows()
    compared, there = map(sum, zip(*followed, strict=True))
    assert compared >= 0.8 * there


@pytest.mark.parametrize(
    ("importance", "scope"),
    [
        ("count_min", "head"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in [("race", "layer"), ("race", "head"), ("count_sketch", "layer")]
        ),
    ],
)
def test_folding_follows_the_oracle_over_a_thousand_tokens(importance: str, scope: Scope) -> None:
    """Long enough for a mass that were counted again at each fold to show; called token by token and 20 at a time."""
    model = tiny_gpt2(seed=1, layers=1, positions=1000)
    tokens = torch.randint(1, 61, (1, 1000), generator=torch.Generator().manual_seed(5))
    cell = CacheConfig(max_cache_size=16, strategy="aggregate", importance=importance, recent=0.5, scope=scope)
    mask = torch.ones_like(tokens)
    compared, there = assert_follows_oracle(model, cell, tokens, mask)
    assert compared >= 0.9 * there
    whole, cache = run(model, cell, tokens, mask, "compiled"), SketchCache(model.config, cell)
    with torch.no_grad():
        parts = [model(part, past_key_values=cache).logits for part in tokens.split(20, dim=1)]
    assert (torch.cat(parts, 1) - whole[0]).abs().max() < 1e-4


@pytest.mark.parametrize("depth", [3, 5])
def test_ties_of_whole_counts_by_age_go_alike(depth: int) -> None:
    """A division decides by what it rounds to; the product with the inverse, which LLVM may make of it, is not that."""
    model = tiny_gpt2(seed=2, layers=1)
    for seed in range(4):
        tokens = torch.randint(1, 61, (2, 180), generator=torch.Generator().manual_seed(seed))
        cell = CacheConfig(
            max_cache_size=64, width=8, depth=depth, importance="race_queries", scope="head", decay=1.0,
            normalize="age", recent=1, seed=seed,
        )  # fmt: skip
        traces = [
            run(model, cell, tokens, torch.ones_like(tokens), name)[1].trace(0) for name in ("stepwise", "compiled")
        ]
        assert torch.equal(traces[0].victims, traces[1].victims)


@pytest.mark.slow
def test_one_scan_and_calls_of_twenty_tokens_agree_where_the_bundled_model_folds() -> None:
    """With RACE, a table in which folding counted mass again grew until one of the two overflowed first."""
    model = AutoModelForCausalLM.from_pretrained(bundled.path(), dtype=torch.float32).eval()
    enable(model)
    text = AutoTokenizer.from_pretrained(bundled.path())(inspect.getsource(inspect))["input_ids"][:1000]
    tokens, cell = torch.tensor([text]), CacheConfig(importance="race", strategy="aggregate")
    whole, _ = run(model, cell, tokens, torch.ones_like(tokens), "compiled")
    cache = SketchCache(model.config, cell)
    with torch.no_grad():
        parts = [model(part, past_key_values=cache).logits for part in tokens.split(20, dim=1)]
    assert (torch.cat(parts, 1) - whole).abs().max() < 1e-3


@pytest.mark.usefixtures("loop")
@pytest.mark.parametrize(
    ("importance", "item", "execution"),
    [
        (importance, item, execution)
        for importance, item in SKETCHED
        if "mass" in POLICIES[importance].observes and "layer" in POLICIES[importance].scopes
        for execution in (["stepwise", "compiled"] if importance in sources.SOURCES else ["stepwise"])
    ],
)
def test_a_folding_sketch_is_the_sketch_of_the_masses_that_queries_gave(
    model: GPT2LMHeadModel, importance: str, item: str, execution: Execution, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folding moves no mass (docs/design.md §2): the table is of a stream kept apart; no row exceeds 1 / (1 - γ)."""
    streams: dict[int, torch.Tensor] = {}
    step = oracle.Oracle.step

    def record(self: oracle.Oracle, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, token: int, scale: float) -> Any:
        """The oracle's step, after a mass of our own computing is added to a table of our own."""
        there = [(pair.key.clone(), pair.n, pair.item) for pair in self.pairs]
        output = step(self, q, k, v, token, scale)
        there.append((k, 1.0, self._item(token, k)))
        keys, counts, items = zip(*there, strict=True)
        scores = torch.einsum("hd,hsd->hs", q, torch.stack(keys, 1)) * scale + torch.tensor(counts).log()
        assert self.sketch is not None
        apart = type(self.sketch)(cell.width, cell.depth, seed=cell.seed, stream=self.layer)
        apart.update(torch.stack(items)[None], scores.softmax(-1).mean(0)[None])
        table = streams.setdefault(self.layer, torch.zeros_like(apart.table))
        table.mul_(cell.decay).add_(apart.table)
        return output

    monkeypatch.setattr(oracle.Oracle, "step", record)
    cell = CacheConfig(
        max_cache_size=12, width=8, depth=3, recent=0.5, importance=importance, item=item, strategy="aggregate"
    )
    tokens = torch.randint(1, 61, (1, 120), generator=torch.Generator().manual_seed(6))
    run(model, cell, tokens, torch.ones_like(tokens), "oracle")
    _, cache = run(model, cell, tokens, torch.ones_like(tokens), execution)
    for layer, stream in streams.items():
        table = cache.layers[layer].state.policy.sketch.table
        assert torch.allclose(table, stream, atol=1e-4)
        assert table.sum(-1).abs().max() <= 1 / (1 - cell.decay) * (1 + 1e-5)


SPOILT = [
    (importance, fate)
    for importance in ("count_min", "count_sketch", "race", "exact", "last")
    for fate in UNTURNED
    if importance in ("count_min", "exact") or not FATES[fate["strategy"]].counts
]


@pytest.mark.usefixtures("loop")
@pytest.mark.parametrize("execution", ["stepwise", "compiled"])
@pytest.mark.parametrize(("importance", "fate"), SPOILT, ids=str)
@pytest.mark.parametrize("spoilt", [float("nan"), float("inf"), -float("inf")])
def test_a_protected_pair_is_never_evicted_whatever_the_estimates(
    model: GPT2LMHeadModel, importance: str, fate: dict[str, Any], execution: Execution, spoilt: float
) -> None:
    """What estimates are read from is spoilt halfway, in part and then altogether."""
    cell = CacheConfig(max_cache_size=12, width=8, sinks=2, recent=4, importance=importance, **fate)
    cache = SketchCache(model.config, cell, traced=True, execution=execution)
    tokens = torch.randint(1, 61, (2, 60), generator=torch.Generator().manual_seed(8))
    for start in range(0, 60, 10):
        with torch.no_grad():
            model(tokens[:, start : start + 10], past_key_values=cache)
        for layer in cache.layers if start >= 20 else ():
            read_from = layer.state.policy.tensors()
            read_from.get("sketch", read_from.get("scores"))[..., :: 1 + (start < 40)] = spoilt
    for layer in range(model.config.n_layer):
        victims = cache.trace(layer).victims
        assert (victims[:, 12:] >= 2).all()
        assert (victims <= torch.arange(60) - 4)[:, 12:].all()
        held = cache.layers[layer].state.positions
        assert all({0, 1, 56, 57, 58, 59} <= set(row.tolist()) for row in held)


@pytest.mark.parametrize("execution", ["oracle", "stepwise", "compiled"])
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_torchs_default_dtype_decides_nothing(
    model: GPT2LMHeadModel, execution: Execution, default: torch.dtype
) -> None:
    cells = [CacheConfig(max_cache_size=12, recent=0.5, importance=name) for name in ("count_min", "exact", "race")]
    cells += [CacheConfig(max_cache_size=12, recent=0.5, strategy="aggregate", item="key")]
    tokens = torch.randint(1, 61, (1, 40), generator=torch.Generator().manual_seed(9))
    sign_hash.cache_clear()
    known = [run(model, cell, tokens, torch.ones_like(tokens), execution) for cell in cells]
    sign_hash.cache_clear()
    torch.set_default_dtype(default)
    try:
        for cell, (logits, cache) in zip(cells, known, strict=True):
            again, other = run(model, cell, tokens, torch.ones_like(tokens), execution)
            assert torch.equal(again, logits)
            for one, two in zip(cache.layers, other.layers, strict=True):
                for name, tensor in two.state.tensors().items():
                    assert tensor.dtype == one.state.tensors()[name].dtype
                    assert torch.equal(tensor, one.state.tensors()[name])
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("name", "fate"),
    [
        *(pytest.param("bundled", fate, marks=[] if fate in USUAL else pytest.mark.slow) for fate in UNTURNED),
        ("bundled-rotary", {"strategy": "aggregate"}),
        pytest.param("bundled-rotary", {"strategy": "aggregate_turned"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_bundled_models_follow_the_oracle_on_real_text(name: str, fate: dict[str, Any]) -> None:
    """To within twice what float32 makes of the untouched model's own logits, for both sides are so rounded."""
    model = AutoModelForCausalLM.from_pretrained(bundled.path(name), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(bundled.path(name))
    texts = (cast(str, str.__doc__) * 3, *map(inspect.getsource, (bisect, heapq, textwrap)))
    tokens = torch.tensor([tokenizer(text)["input_ids"][:56] for text in texts])
    with torch.no_grad():
        rounding = (copy.deepcopy(model).double()(tokens).logits - model(tokens).logits).abs().max().item()
    enable(model)
    cell = CacheConfig(max_cache_size=24, width=32, depth=3, recent=0.5, item="token", **fate)
    compared, there = assert_follows_oracle(model, cell, tokens, torch.ones_like(tokens), max(1e-4, 2 * rounding))
    assert compared >= (0.6 if FATES[cell.strategy].turns else 0.8) * there  # Turned keys are more often nearly equal.


@pytest.mark.parametrize("fate", [{}, {"conservative": True}, {"strategy": "aggregate"}], ids=str)
def test_decay_goes_on_long_after_its_factor_was_renormalised(model: GPT2LMHeadModel, fate: dict[str, Any]) -> None:
    """At decay 0.5 the compiled loop renormalises its table every 41 tokens."""
    tokens = torch.randint(1, 61, (1, 100), generator=torch.Generator().manual_seed(3))
    cell = CacheConfig(max_cache_size=12, width=8, depth=2, sinks=1, recent=0.5, decay=0.5, item="token", **fate)
    compared, there = assert_follows_oracle(model, cell, tokens, torch.ones_like(tokens))
    assert compared == there


@pytest.mark.parametrize("source", ["count_min", "race", "exact"])
def test_half_precision_and_autocast_decide_in_float32(source: str) -> None:
    """bfloat16 rounds the model, not the decisions: the executions agree on the same rounded queries and keys."""
    tokens = torch.randint(1, 61, (2, 60), generator=torch.Generator().manual_seed(2))
    mask, model = torch.ones_like(tokens), tiny_gpt2(seed=0, layers=1)
    cell = CacheConfig(max_cache_size=12, sinks=1, recent=0.5, importance=source, item="key")
    caches = []
    for execution in ("oracle", "stepwise", "compiled"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            caches.append(run(model, cell, tokens, mask, execution)[1])
    half = tiny_gpt2(seed=0, layers=1).bfloat16()
    caches += [run(half, cell, tokens, mask, execution)[1] for execution in ("oracle", "stepwise", "compiled")]
    victims = [cache.trace(0).victims for cache in caches]
    assert all(torch.equal(v, victims[0]) for v in victims[:3])
    assert all(torch.equal(v, victims[3]) for v in victims[3:])
    for cache in caches[1:3] + caches[4:]:
        assert cache.layers[0].keys.dtype == torch.bfloat16
        assert cache.layers[0].keys.shape[2] == 13


@pytest.mark.parametrize("execution", ["stepwise", "compiled"])
@pytest.mark.parametrize("source", ["count_min", "exact"])
def test_what_is_not_a_number_stays_one_and_harms_no_other_row(source: str, execution: Execution) -> None:
    model, cell = (
        tiny_gpt2(seed=0),
        CacheConfig(max_cache_size=12, sinks=1, recent=0.5, importance=source, strategy="aggregate"),
    )
    tokens = torch.randint(2, 61, (2, 40), generator=torch.Generator().manual_seed(4))
    truth, _ = run(model, cell, tokens, torch.ones_like(tokens), execution)
    with torch.no_grad():
        model.transformer.wte.weight[1] = float("nan")
    tokens[0, 7] = 1
    logits, _ = run(model, cell, tokens, torch.ones_like(tokens), execution)
    assert logits[0, 7].isnan().all()
    assert (logits[1, :, 2:] - truth[1, :, 2:]).abs().max() < 1e-4


ONE_PASS = """
import hashlib, torch
from transformers import AutoModelForCausalLM
from sketch_eval import bundled
from sketch_eval.attention import enable, foresee
from sketch_eval.cache import SketchCache
from sketch_eval.config import CacheConfig

torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(bundled.path()).eval()
enable(model)
ids = torch.randint(1, 4096, (2, 300), generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    for cell in ({}, {"strategy": "aggregate"}, {"topk": 32}, {"importance": "knorm"}):
        logits = model(ids, past_key_values=SketchCache(model.config, CacheConfig(max_cache_size=64, **cell))).logits
        print(hashlib.sha256(logits.numpy().tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_the_process_that_compiles_scores_as_those_that_load(tmp_path: Path) -> None:
    """Bit for bit: the first sweep of a machine makes the tables of all that follow."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    compiled, loaded = (
        subprocess.run([sys.executable, "-c", ONE_PASS], env=environment, capture_output=True, text=True, check=True)
        for _ in range(2)
    )
    # Each loop has an index of its own: processes that write to one at once can leave the code of one loop for another.
    assert len(list(tmp_path.rglob("scan*.nbi"))) == len(list(tmp_path.rglob("scan*.nbc"))) == 3
    assert compiled.stdout == loaded.stdout
