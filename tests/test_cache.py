"""What a bounded cache promises its users, on random models (docs/design.md §2, §5, §6)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import give_ranking, tiny_gpt2
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from sketch_eval import UsageError
from sketch_eval.attention import enable, in_parts
from sketch_eval.cache import SketchCache
from sketch_eval.config import CONTROLS, CacheConfig
from sketch_eval.ledger import ledger
from sketch_eval.policies import POLICIES

CELLS: dict[str, dict[str, Any]] = {
    "count_min": {},
    "hidden": {"topk": 10},
    "aggregate": {"strategy": "aggregate"},
    "race": {"importance": "race"},
    "token": {"item": "token"},
    "head": {"scope": "head"},
    "budget": {"scope": "budget", "importance": "exact"},
    "entropy": {"scope": "entropy", "importance": "exact"},
    "budget aggregate": {"scope": "budget", "importance": "vatp", "strategy": "aggregate"},
    "head aggregate": {"scope": "head", "strategy": "aggregate", "item": "key"},
    **{
        name: changes
        for name, changes in CONTROLS.items()
        if changes.get("max_cache_size", 1) and not POLICIES[changes["importance"]].foresees
    },
}


@pytest.fixture(autouse=True)
def few_are_compiled(request: pytest.FixtureRequest) -> None:
    """Only the loops of rankings that other tests compile as well; the others are run as they are written."""
    params = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if CELLS.get(str(params.get("name")), {}).get("importance", "count_min") not in ("count_min", "exact", "recency"):
        request.getfixturevalue("interpreted")


def cell_of(name: str, cap: int = 16) -> CacheConfig:
    return CacheConfig(**{"max_cache_size": cap, "width": 64, "recent": 0.5, **CELLS[name]})


def text(seed: int, length: int) -> torch.Tensor:
    return torch.randint(1, 61, (1, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: GPT2LMHeadModel, tokens: torch.Tensor, cell: CacheConfig) -> torch.Tensor:
    return model(tokens, past_key_values=SketchCache(model.config, cell)).logits


def kept(model: GPT2LMHeadModel, tokens: torch.Tensor, cell: CacheConfig) -> list[int]:
    """Positions that the first layer holds after a text."""
    cache = SketchCache(model.config, cell)
    with torch.no_grad():
        model(tokens, past_key_values=cache)
    positions = cache.layers[0].state.positions[0]
    return sorted(positions[positions >= 0].tolist())


@pytest.mark.parametrize("name", CELLS)
def test_a_cap_that_binds_nothing_is_the_untouched_model_and_one_that_binds_is_not(name: str) -> None:
    torch.manual_seed(0)
    untouched = GPT2LMHeadModel(tiny_gpt2(seed=0).config).eval()
    tokens = text(1, 40)
    with torch.no_grad():
        truth = untouched(tokens).logits
    enable(untouched)
    changes = {"topk": 40} if name == "hidden" else {}
    wide = cell_of(name, cap=40).model_copy(update=changes)
    assert (logits(untouched, tokens, wide) - truth).abs().max() < 1e-4
    difference = (logits(untouched, tokens, cell_of(name)) - truth).abs().amax(-1)[0]
    first = 7 if name == "hidden" else 17
    assert difference[:first].max() < 1e-4
    assert difference[first:].max() > 1e-2


@pytest.mark.parametrize("name", CELLS)
def test_a_text_has_the_same_logits_alone_and_in_any_batch_in_any_order_after_any_other(
    model: GPT2LMHeadModel, name: str
) -> None:
    cell = cell_of(name)
    one, other, long = text(1, 40), text(2, 40), text(3, 40)
    alone = logits(model, one, cell)
    logits(model, other, cell)
    assert torch.equal(logits(model, one, cell), alone)
    for batch, row in ((torch.cat([one, other, long]), 0), (torch.cat([long, long, other, one]), 3)):
        assert (logits(model, batch, cell)[row] - alone[0]).abs().max() < 1e-4


def test_a_row_is_as_alone_whatever_its_padding(model: GPT2LMHeadModel) -> None:
    short, long = text(1, 25), text(2, 40)
    alone = logits(model, short, cell_of("count_min"))[0]
    left = torch.cat([torch.nn.functional.pad(short, (15, 0)), long])
    mask = torch.ones_like(left)
    mask[0, :15] = 0
    cache = SketchCache(model.config, cell_of("count_min"))
    with torch.no_grad():
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        padded = model(left, attention_mask=mask, position_ids=positions, past_key_values=cache).logits
    assert (padded[0, 15:] - alone).abs().max() < 1e-4
    right = torch.cat([torch.nn.functional.pad(short, (0, 15)), long])
    assert (logits(model, right, cell_of("count_min"))[0, :25] - alone).abs().max() < 1e-4


@pytest.mark.parametrize("name", CELLS)
def test_generate_runs_on_the_bounded_cache(model: GPT2LMHeadModel, name: str) -> None:
    """Greedy tokens are the scan's own choices, and not the full cache's; a padded batch generates as its rows do."""
    cell, prompts = cell_of(name), [text(4, 30), text(5, 21)]
    options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    outputs = []
    for prompt in prompts:
        output = model.generate(prompt, past_key_values=SketchCache(model.config, cell), **options)
        choices = logits(model, output, cell).argmax(-1)[0]
        assert torch.equal(choices[prompt.shape[1] - 1 : -1], output[0, prompt.shape[1] :])
        outputs.append(output[0, prompt.shape[1] :])
    assert not torch.equal(model.generate(prompts[0], **options)[0, 30:], outputs[0])
    batch = torch.cat([prompts[0], torch.nn.functional.pad(prompts[1], (9, 0))])
    mask = torch.ones_like(batch)
    mask[1, :9] = 0
    cache = SketchCache(model.config, cell)
    together = model.generate(batch, attention_mask=mask, past_key_values=cache, **options)
    assert torch.equal(together[:, 30:], torch.stack(outputs))


@pytest.mark.parametrize("name", ["token", "exact", "race", "aggregate", "head aggregate"])
def test_beam_search_carries_the_store_along(model: GPT2LMHeadModel, name: str) -> None:
    options = {"max_new_tokens": 12, "num_beams": 3, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    cell, prompt = cell_of(name), text(6, 30)
    cache = SketchCache(model.config, cell)
    report = {"return_dict_in_generate": True, "output_scores": True, "length_penalty": 0.0}
    output = model.generate(prompt, past_key_values=cache, **options, **report)
    chosen = output.sequences
    logprobs = logits(model, chosen, cell).log_softmax(-1)[0, 29:-1]
    assert output.sequences_scores.item() == pytest.approx(
        logprobs.gather(1, chosen[0, 30:, None]).sum().item(), abs=1e-3
    )


def test_the_naive_setting_freezes_on_the_prompt_and_the_default_does_not(model: GPT2LMHeadModel) -> None:
    """docs/design.md §2: without sinks, recent tokens and decay, the store stays what it first was."""
    tokens = text(7, 200)
    naive = CacheConfig(max_cache_size=32, importance="exact", sinks=0, recent=0, decay=1.0)
    default = CacheConfig(max_cache_size=32)
    assert sum(position < 40 for position in kept(model, tokens, naive)) >= 28
    assert sum(position < 40 for position in kept(model, tokens, default)) <= 8
    assert set(range(184, 200)) <= set(kept(model, tokens, default))


def test_a_window_holds_the_newest_and_streaming_the_sinks_as_well(model: GPT2LMHeadModel) -> None:
    assert kept(model, text(8, 100), cell_of("window")) == list(range(84, 100))
    assert kept(model, text(8, 100), cell_of("streaming")) == [0, 1, 2, 3, *range(88, 100)]


def test_folding_pairs_with_equal_keys_loses_nothing() -> None:
    """docs/design.md §2, step 4: in `A B B B …`, read without positions, only equal pairs can be folded."""
    model = tiny_gpt2(seed=3, layers=1)
    tokens = torch.tensor([[5] + [8] * 59])
    with torch.no_grad():
        model.transformer.wpe.weight.zero_()
        full = model(tokens).logits
    folded = CacheConfig(max_cache_size=3, strategy="aggregate", sinks=1, recent=1)
    dropped = folded.model_copy(update={"strategy": "topk"})
    assert (logits(model, tokens, folded) - full).abs().max() < 1e-4
    assert (logits(model, tokens, dropped) - full).abs().max() > 1e-2


def test_an_infinitely_wide_count_min_decides_as_exact_counters(model: GPT2LMHeadModel) -> None:
    tokens = text(10, 120)
    wide = CacheConfig(max_cache_size=16, width=2**16, depth=4, recent=0.25, seed=1)
    narrow, exact = wide.model_copy(update={"width": 4}), wide.model_copy(update={"importance": "exact"})
    assert torch.equal(logits(model, tokens, wide).argmax(-1), logits(model, tokens, exact).argmax(-1))
    assert kept(model, tokens, wide) == kept(model, tokens, exact) != kept(model, tokens, narrow)


@pytest.mark.parametrize(
    ("name", "new"),
    [("count_min", 1000), ("budget aggregate", 300)] + [(name, 80) for name in CELLS],
    ids=str,
)
def test_after_many_tokens_the_cache_owns_what_the_ledger_says(name: str, new: int) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=61, n_layer=2, n_embd=16, n_head=2, n_positions=1024)).eval()
    enable(model)
    give_ranking(model)
    cell = cell_of(name, cap=64)
    cache = SketchCache(model.config, cell)
    output = model.generate(text(11, 10), past_key_values=cache, min_new_tokens=new, max_new_tokens=new, pad_token_id=0)
    assert output.shape[1] == 10 + new
    for layer in cache.layers:
        pooled, units = cell.shared_out, layer.state.units
        shape = (1, 1, 130, 8) if pooled else (units, 2 // units, 65, 8)
        assert layer.keys.shape == layer.values.shape == shape
        assert layer.keys.untyped_storage().nbytes() == layer.keys.nbytes == 65 * 16 * 4
        assert layer.values.untyped_storage().nbytes() == layer.values.nbytes
        assert ((layer.state.positions >= 0).sum(1) == 64 * layer.state.owning).all()
    book = ledger(cell, model.config, torch.float32, 1024)
    assert {tensor: b * 2 for tensor, b in book["layer_bytes"].items()} == cache.nbytes()
    assert book["peak_bytes"] == sum(cache.nbytes().values())
    pair = sum(b for tensor, b in cache.nbytes().items() if tensor not in ("sketch", "moments", "weight", "seen")) // 65
    assert book["steady_bytes"] == book["peak_bytes"] - pair
    assert book["kv_bytes"] + book["sketch_bytes"] + book["other_bytes"] == book["steady_bytes"]


def test_the_ledger_of_gpt2_in_half_precision_is_the_designs() -> None:
    """docs/design.md §6: 36,864 bytes a token; 2.25 MiB at cap 64; a 128×2 sketch is 12 KiB, exact counters 3 KiB."""
    sketched = ledger(CacheConfig(max_cache_size=64, width=128, depth=2), GPT2Config(), torch.float16, 1024)
    assert sketched["kv_bytes"] == 64 * 36_864 == 2.25 * 2**20
    assert sketched["sketch_bytes"] == 12 * 2**10
    exact = ledger(CacheConfig(max_cache_size=64, importance="exact"), GPT2Config(), torch.float16, 1024)
    assert exact["sketch_bytes"] == 3 * 2**10
    full = ledger(CacheConfig(max_cache_size=None), GPT2Config(), torch.float16, 1024)
    assert full["steady_bytes"] == full["full_bytes"] == 1024 * 36_864


def test_a_model_that_would_not_consult_the_cache_is_refused(model: GPT2LMHeadModel) -> None:
    """Never the full cache's scores under a bounded cache's name, and never attention to the newest token alone."""
    tokens, cell = text(12, 5), cell_of("count_min")
    unprepared = GPT2LMHeadModel(copy.deepcopy(model.config))  # Its config says what the other model was made to use.
    with pytest.raises(UsageError, match="enable"):
        logits(unprepared, tokens, cell)
    enable(unprepared)
    assert logits(unprepared, tokens, cell).shape == (1, 5, 61)
    unprepared.set_attn_implementation("sdpa")
    with pytest.raises(UsageError, match="sdpa"):
        logits(unprepared, tokens, cell)


def test_calls_that_a_bounded_cache_cannot_answer_are_refused(model: GPT2LMHeadModel) -> None:
    cache, full_mask = SketchCache(model.config, cell_of("count_min")), torch.ones(1, 1, 8, 8)
    model(text(1, 8).repeat(2, 1), past_key_values=cache)
    with pytest.raises(UsageError, match="of 1 sequences: the cache holds 2"):
        model(text(1, 8), past_key_values=cache)
    with pytest.raises(UsageError, match="cropped"):
        cache.crop(3)
    with pytest.raises(UsageError, match="use_cache=False"):
        model.generate(
            text(1, 8),
            past_key_values=SketchCache(model.config, cell_of("count_min")),
            use_cache=False,
            max_new_tokens=4,
        )
    with pytest.raises(UsageError, match="2-D padding mask"):
        model(text(1, 8), past_key_values=SketchCache(model.config, cell_of("count_min")), attention_mask=full_mask)


@pytest.mark.parametrize(
    ("execution", "message"),
    [
        ("fast", "execution='fast': give one of auto, oracle, stepwise, compiled"),
        ("oracle", "does not serve this call"),
    ],
)
def test_an_execution_that_cannot_take_a_call_is_refused(model: GPT2LMHeadModel, execution: Any, message: str) -> None:
    """The oracle keeps no state: a second call would begin afresh, and say nothing."""
    cache = SketchCache(model.config, cell_of("count_min"), execution=execution)
    if execution == "oracle":
        model(text(1, 8), past_key_values=cache)
    with pytest.raises(UsageError, match=message):
        model(text(1, 8), past_key_values=cache)


def test_rotary_positions_that_depend_on_the_length_are_refused() -> None:
    config = LlamaConfig(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    with pytest.raises(UsageError, match="rotary positions of the kind 'dynamic'"):
        SketchCache(config, cell_of("count_min"))


def test_positional_arguments_are_heard_too(model: GPT2LMHeadModel) -> None:
    tokens, mask = text(1, 30), torch.ones(1, 30, dtype=torch.long)
    mask[0, :6] = 0
    cell = cell_of("count_min")
    with torch.no_grad():
        named = model.transformer(tokens, past_key_values=SketchCache(model.config, cell), attention_mask=mask)
        placed = model.transformer(tokens, SketchCache(model.config, cell), mask)
    assert torch.equal(named.last_hidden_state, placed.last_hidden_state)


@pytest.mark.parametrize("name", CELLS)
def test_a_text_in_parts_is_the_text_at_once(model: GPT2LMHeadModel, name: str) -> None:
    tokens = torch.cat([text(1, 60), text(2, 60)])
    whole = logits(model, tokens, cell_of(name))
    with torch.no_grad():
        parts = [part.logits for part in in_parts(model, tokens, SketchCache(model.config, cell_of(name)), size=23)]
    assert [part.shape[1] for part in parts] == [20, 20, 20]
    assert (torch.cat(parts, 1) - whole).abs().max() < 1e-4


def test_a_padded_prompt_makes_no_mask_of_its_length_squared(
    model: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, mask = torch.cat([text(1, 30), text(2, 30)]), torch.ones(2, 30, dtype=torch.long)
    mask[1, :7] = 0
    made = []
    monkeypatch.setattr("sketch_eval.attention.sdpa_mask", lambda *args, **kwargs: made.append(kwargs))
    with torch.no_grad():
        model(tokens, attention_mask=mask, past_key_values=SketchCache(model.config, cell_of("count_min")))
        assert made == []
        model(tokens, attention_mask=mask)
    assert len(made) == 1


def test_attention_that_never_asks_the_cache_is_refused(grouped: LlamaForCausalLM) -> None:
    """As code from a hub may have it, under the name of a known family."""
    model = copy.deepcopy(grouped)

    def forward(hidden_states: torch.Tensor, past_key_values: Any, **_: Any) -> tuple[torch.Tensor, None]:
        past_key_values.update(*(torch.zeros(1, 2, hidden_states.shape[1], 8) for _ in range(2)), layer_idx=0)
        return hidden_states, None

    model.model.layers[0].self_attn.forward = forward
    with pytest.raises(UsageError, match="does not go through transformers' AttentionInterface"):
        model(text(1, 20), past_key_values=SketchCache(model.config, cell_of("count_min")))


def test_another_model_and_a_cell_without_a_bound_are_refused(model: GPT2LMHeadModel) -> None:
    other = BloomForCausalLM(BloomConfig(vocab_size=8, hidden_size=8, n_layer=1, n_head=2))
    with pytest.raises(UsageError, match="is a bloom model; give one of GPT-2, Llama"):
        enable(other)
    with pytest.raises(UsageError, match="max_cache_size=None"):
        SketchCache(model.config, CacheConfig(max_cache_size=None))
    with pytest.raises(UsageError, match="inputs_embeds"):
        model(inputs_embeds=torch.zeros(1, 2, 48), past_key_values=SketchCache(model.config, cell_of("count_min")))


def test_a_trace_follows_its_rows_where_they_are_repeated_chosen_or_reordered(model: GPT2LMHeadModel) -> None:
    tokens, later = torch.cat([text(1, 30), text(2, 30)]), text(3, 30)

    def traced(prompt: torch.Tensor, change: str = "", argument: Any = None) -> SketchCache:
        cache = SketchCache(model.config, cell_of("aggregate"), traced=True)
        with torch.no_grad():
            model(prompt, past_key_values=cache)
            if change:
                getattr(cache, change)(argument)
            model(later.repeat(len(cache.layers[0].state.seen), 1), past_key_values=cache)
        return cache

    alone = [traced(row[None]).trace(1).victims[0] for row in tokens]
    for change, argument, rows in (
        ("batch_repeat_interleave", 2, [0, 0, 1, 1]),
        ("batch_select_indices", torch.tensor([1]), [1]),
        ("reorder_cache", torch.tensor([1, 0]), [1, 0]),
    ):
        victims = traced(tokens, change, argument).trace(1).victims
        assert torch.equal(victims, torch.stack([alone[row] for row in rows])), change
