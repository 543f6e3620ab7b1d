"""docs/design.md §8: quantised stores."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import pytest
import torch
from conftest import tiny_gpt2, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from test_executions import small_cell
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sketch_eval import UsageError, bundled
from sketch_eval.attention import enable
from sketch_eval.cache import SketchCache
from sketch_eval.call import Call, Trace
from sketch_eval.centres import mean_keys, tokens_for
from sketch_eval.config import CacheConfig
from sketch_eval.execution import Execution, advance
from sketch_eval.families import shape_of
from sketch_eval.formats import BITS, FORMATS, Quantised
from sketch_eval.grid.cells import cell_kind, cell_name
from sketch_eval.grid.grid import Block, Grid
from sketch_eval.ledger import ledger
from sketch_eval.lm import SketchHF
from sketch_eval.policies import FATES
from sketch_eval.state import LayerState
from sketch_eval.unbounded import FormatCache

SPEEDS = torch.tensor([1.0, 0.1])


def of_the_package(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A bundled model, on the bounded attention, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(bundled.path(name), dtype=torch.float32).eval()
    enable(model)
    return model, AutoTokenizer.from_pretrained(bundled.path(name))


@given(
    bits=st.integers(1, 8),
    head_dim=st.integers(1, 80),
    group=st.integers(1, 80),
    size=st.sampled_from([1e-6, 1.0, 300.0]),
    offset=st.sampled_from([0.0, 5.0]),
    seed=st.integers(0, 99),
)
def test_what_comes_back_is_within_half_a_step_and_takes_the_bytes_that_are_counted(
    bits: int, head_dim: int, group: int, size: float, offset: float, seed: int
) -> None:
    vectors = (torch.randn(3, 2, head_dim, generator=torch.Generator().manual_seed(seed)) + offset) * size
    kept = Quantised(bits, group, head_dim)
    packed, grid = kept.encode(vectors)
    back = kept.decode((packed, grid))
    groups = -(-head_dim // min(group, head_dim))
    assert packed.nbytes + grid.nbytes == 3 * 2 * (-(-head_dim * bits // 8) + 4 * groups)
    scale = grid[..., 0].float().repeat_interleave(kept.group, -1)[..., :head_dim]
    rounding = vectors.abs().amax() * 2**-10 + 2.0**-24 * kept.levels  # Of float16's scales and zeros.
    assert ((back - vectors).abs() <= scale / 2 + rounding).all()


def test_a_group_that_is_worked_out_by_hand() -> None:
    """From -1 to 2 in 3 bits: a step of 3/7, float16's nearest to which is 0.428466796875."""
    step = 0.428466796875
    back = Quantised(3, 4, 6).rounded(torch.tensor([-1.0, 0.0, 0.1, 2.0, 5.0, 5.0]))
    assert back.tolist() == pytest.approx([-1, 2 * step - 1, 3 * step - 1, 7 * step - 1, 5, 5], abs=1e-6)


@pytest.mark.parametrize("bits", sorted({bits for both in BITS.values() for bits in both}))
def test_codes_are_those_of_torchs_own_quantiser(bits: int) -> None:
    """Which takes a zero in steps of the scale, and multiplies by the scale's inverse: ties may go either way."""
    vectors = torch.randn(500, 32, generator=torch.Generator().manual_seed(bits))
    kept = Quantised(bits, 32, 32)
    _, grid = kept.encode(vectors)
    scale, zero = grid[:, 0].float().unbind(-1)
    torchs = torch.fake_quantize_per_channel_affine(vectors, scale, -zero / scale, 0, 0, kept.levels)
    off = (kept.rounded(vectors) - torchs).abs() > 1e-4 * scale[:, None]
    assert off.float().mean() < 1e-3
    assert ((kept.rounded(vectors) - torchs).abs() <= 1.001 * scale[:, None]).all()


def a_call(fate: str, length: int = 60) -> Call:
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, heads, length, 8, generator=generator) for heads in (4, 2, 2))
    if FATES[fate].turns:  # Of a pair of coordinates each rotary speed turns one: as many as there are.
        q, k, v = q[..., :4], k[..., :4], v[..., :4]
    valid = torch.ones(2, length, dtype=torch.bool)
    valid[1, :7] = False
    return Call(2 * q, k, v, torch.zeros(2, length, dtype=torch.long), valid, 0.5)


def advanced(execution: Execution, call: Call, size: int, **cell: Any) -> tuple[torch.Tensor, Trace, LayerState]:
    """The call in parts of so many tokens."""
    state = LayerState(small_cell(importance="exact", store_group=3, **cell), 0, call.k, speeds=SPEEDS)
    parts = [advance(execution, state, part) for part in call.split(size)]
    return torch.cat([output for output, _ in parts], 1), Trace.join([trace for _, trace in parts]), state


COMPILED = ("topk", "aggregate")
"""Fates whose loops the default run compiles; it runs the others' lines in Python."""


@pytest.mark.usefixtures("loop")
@pytest.mark.parametrize(
    ("fate", "scope", "store", "loop"),
    [
        # By default a format meets the scopes in turn.
        pytest.param(
            fate, scope, store, loop,
            marks=[] if loop == by_default and (row + column) % 2 == (scope == "head") else [pytest.mark.slow],
        )
        for row, fate in enumerate(FATES)
        for column, store in enumerate(FORMATS)
        for scope in ("layer", "head")
        for by_default in ["machine code" if fate in COMPILED else "lines"]
        for loop in dict.fromkeys((by_default, "machine code"))
    ],
    indirect=["loop"],
)  # fmt: skip
def test_decode_and_scan_keep_what_the_oracle_keeps(fate: str, scope: Literal["layer", "head"], store: str) -> None:
    """Of one call, so that no other layer's rounding moves a number over the edge between two codes."""
    call = a_call(fate)
    truth, standard, _ = advanced("oracle", call, 60, strategy=fate, scope=scope, store=store)
    assert standard.margins is not None
    clear = (standard.margins > 1e-5).cumprod(1).bool().unflatten(0, (2, -1)).all(1)
    assert clear.float().mean() > (0.3 if FATES[fate].turns else 0.7)  # A turned key is no short sum of codes.
    rows = clear.repeat_interleave(len(standard.victims) // 2, 0)
    held: list[list[torch.Tensor]] = []
    for execution, size in (("compiled", 60), ("compiled", 7), ("stepwise", 60), ("stepwise", 1)):
        output, trace, state = advanced(execution, call, size, strategy=fate, scope=scope, store=store)  # type: ignore[arg-type]
        assert (output - truth)[clear].abs().max() < 1e-4, (execution, size)
        for what in ("victims", "survivors"):
            assert torch.equal(getattr(trace, what)[rows], getattr(standard, what)[rows]), (execution, size, what)
        stored = state.positions.sort(1)
        taken = stored.indices[:, 1:, None, None].expand(-1, -1, *state.keys.shape[1::2])
        held.append([state.keys.transpose(1, 2).gather(1, taken), state.values.transpose(1, 2).gather(1, taken)])
    if clear.all():
        for keys, values in held[1:]:
            assert (keys.float() - held[0][0].float()).abs().max() < 1e-4
            assert (values.float() - held[0][1].float()).abs().max() < 1e-4


@pytest.mark.parametrize(("execution", "size"), [("stepwise", 60), ("compiled", 60), ("compiled", 1)])
@pytest.mark.parametrize("coordinate", [0, 3])
def test_what_is_not_a_number_stays_one(execution: Execution, size: int, coordinate: int) -> None:
    """In the first group of a vector and in another, folded again and again, in one call and in many."""
    call = a_call("topk")
    call.v[0, 0, 20, coordinate] = torch.nan
    output, _, state = advanced(execution, call, size, strategy="aggregate", store="int4")
    assert output[0, 20].isnan().any()
    assert output[0, 59].isnan().any()
    assert not output[1].isnan().any()
    assert state.values[0].isnan().any()


@pytest.mark.parametrize("store", FORMATS)
@pytest.mark.parametrize("cap", [None, 24])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_answer_is_what_scoring_it_says_and_its_cache_has_the_bytes_of_the_ledger(
    family: str, cap: int | None, store: str
) -> None:
    """Greedy tokens of `generate`, of two prompts together, are the likeliest ones of a pass over the whole."""
    model = tiny_model(family, layers=1)  # One layer: no rounding of another moves a number to another code.
    enable(model)
    cell = CacheConfig(max_cache_size=cap, store=store, store_group=4, scope="head")

    def cache() -> SketchCache | FormatCache:
        return FormatCache(model.config, cell) if cap is None else SketchCache(model.config, cell)

    prompt = torch.randint(1, 60, (2, 10), generator=torch.Generator().manual_seed(3))
    used = cache()
    answer = model.generate(prompt, past_key_values=used, min_new_tokens=40, max_new_tokens=40, pad_token_id=0)
    with torch.no_grad():
        logits = model(answer, past_key_values=cache()).logits
    best = logits.topk(2, -1)
    clear = best.values[:, 9:-1, 0] - best.values[:, 9:-1, 1] > 1e-3
    assert clear.float().mean() > 0.9
    assert torch.equal(best.indices[:, 9:-1, 0][clear], answer[:, 10:][clear])
    length = 49  # The last token of an answer is never fed back.
    counted = ledger(cell, model.config, torch.float32, length)
    assert used.nbytes() == {name: 2 * bytes_ for name, bytes_ in counted["layer_bytes"].items()}
    bits = {"float": 32.0, "float16": 16.0} | {name: sum(both) / 2 + 8.0 for name, both in BITS.items()}
    assert counted["kv_bytes"] == shape_of(model.config).token_numbers * (cap or length) * bits[store] / 8


@pytest.mark.parametrize(("cap", "centred"), [(None, False), (None, True), (64, True)])
def test_more_bits_are_nearer_to_the_models_own_numbers_and_eight_are_within_a_thousandth(
    cap: int | None, centred: bool
) -> None:
    """The bundled GPT-2's perplexity of a text of its own kind; its keys have much in common, which takes bits."""
    model, tokenizer = of_the_package("bundled")
    tokens, nats = torch.tensor([tokenizer(inspect.getsource(inspect))["input_ids"][:1000]]), {}
    centres = mean_keys(model, tokens_for(tokenizer, 1024)) if centred else None
    kind = FormatCache if cap is None else SketchCache
    for store in FORMATS:
        cell = CacheConfig(max_cache_size=cap, store=store, importance="recency", centred=centred)
        with torch.no_grad():
            logits = model(tokens, past_key_values=kind(model.config, cell, centres=centres)).logits
        nats[store] = torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:]).item()
    off = [abs(nats[store] - nats["float"]) for store in ("int8", "k8v4", "int4", "int3")]
    assert off[0] < 1e-3
    assert off == sorted(off)


@pytest.mark.parametrize("cap", [None, 12])
def test_beams_and_padding_carry_a_quantised_store_along(cap: int | None) -> None:
    """Of one layer, whose input no code has changed: what the beams say they scored is what scoring says."""
    model = tiny_gpt2(seed=0, layers=1)
    cell = CacheConfig(max_cache_size=cap, store="k8v4", store_group=4, strategy="aggregate", sinks=1, recent=0.5)

    def cache() -> FormatCache | SketchCache:
        return FormatCache(model.config, cell) if cap is None else SketchCache(model.config, cell)

    prompts = [torch.arange(3, 33)[None], torch.arange(40, 19, -1)[None]]
    batch = torch.cat([prompts[0], torch.nn.functional.pad(prompts[1], (9, 0))])
    mask = torch.ones_like(batch)
    mask[1, :9] = 0
    options = {"max_new_tokens": 12, "num_beams": 3, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    report = {"return_dict_in_generate": True, "output_scores": True, "length_penalty": 0.0}
    output = model.generate(batch, attention_mask=mask, past_key_values=cache(), **options, **report)
    for row, prompt in enumerate(prompts):
        chosen = output.sequences[row : row + 1, 30 - prompt.shape[1] :]
        with torch.no_grad():
            logits = model(chosen, past_key_values=cache()).logits
        scored = logits.log_softmax(-1)[0, prompt.shape[1] - 1 : -1].gather(1, chosen[0, prompt.shape[1] :, None])
        assert output.sequences_scores[row].item() == pytest.approx(scored.sum().item(), abs=1e-3)


@pytest.mark.parametrize("name", bundled.NAMES)
def test_over_the_layers_decode_and_scan_differ_by_single_codes(name: str) -> None:
    """Rounding that differs in the last place before a layer makes a code another one in it, now and then.

    What that changes is a part of what the codes themselves do, and for most tokens a small one.
    """
    model, tokenizer = of_the_package(name)
    tokens = torch.tensor([tokenizer(inspect.getsource(inspect))["input_ids"][:150]])

    @torch.no_grad()
    def logits(store: str, parts: int) -> torch.Tensor:
        cache = SketchCache(model.config, CacheConfig.parse(max_cache_size=48, store=store, importance="recency"))
        return torch.cat([model(part, past_key_values=cache).logits for part in tokens.split(parts, dim=1)], 1)

    full = logits("float", 150)
    for store in ("int8", "k8v4", "int4"):
        scanned, decoded = logits(store, 150), logits(store, 1)
        off, quantised = ((one - scanned).abs().amax(2)[0] for one in (decoded, full))
        assert off.max() < quantised.max() / 3
        assert off.median() < quantised.median() / 7


def test_a_full_cache_with_fewer_bits_takes_tokens_back_and_a_bounded_one_names_it() -> None:
    model = tiny_model("gpt2", layers=1)
    cell = CacheConfig(max_cache_size=None, store="k8v4", store_group=4)
    prompt = torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8, 5, 6]])
    plain, looked_up = (
        model.generate(
            prompt, past_key_values=FormatCache(model.config, cell), max_new_tokens=20, pad_token_id=0, **how
        )
        for how in ({}, {"prompt_lookup_num_tokens": 3})
    )
    assert torch.equal(plain, looked_up)
    with pytest.raises(UsageError, match=r"use sketch_eval\.unbounded\.FormatCache"):
        SketchCache(model.config, cell)


def test_a_full_cache_with_fewer_bits_is_counted_as_bound_and_a_grid_keeps_it() -> None:
    lm = SketchHF(pretrained="bundled", max_cache_size=None, store="int3")
    lm.loglikelihood([Instance("loglikelihood", {}, ("def ", "f(x):"), 0)])
    counts: Any = lm.counts.as_dict()
    assert (counts["requests"], counts["binding_requests"]) == (1, 1)
    cells = Grid(tasks=["kv_256"], cells=[{"controls": ["int4"]}, {"max_cache_size": None, "store": "float16"}])  # type: ignore[arg-type]
    assert [cell_name(cell) for cell in cells.expand()] == ["int4", "float16"]
    assert [cell_kind(cell) for cell in cells.expand()] == ["control", "control"]
    halved = cells.model_copy(update={"defaults": {"store": "float16"}, "cells": (Block(controls=("full", "window")),)})
    assert [cell_name(cell) for cell in halved.expand()] == ["window store=float16"]
