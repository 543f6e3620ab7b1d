"""Keys less the mean of their head: no attention changes, and a bias that all keys share costs no bits."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from conftest import tiny_gpt2, tiny_llama
from lm_eval.api.instance import Instance
from transformers import GPT2LMHeadModel, PreTrainedModel

from sketch_eval import UsageError
from sketch_eval.cache import SketchCache
from sketch_eval.centres import MOST, Centres, centred, mean_keys, text, tokens_for
from sketch_eval.config import CacheConfig
from sketch_eval.grid.cells import cell_name, computation
from sketch_eval.leaderboard.columns import cell_columns
from sketch_eval.leaderboard.compared import size
from sketch_eval.lm import SketchGPT2
from sketch_eval.unbounded import FormatCache


def tokens(rows: int, length: int, seed: int) -> torch.Tensor:
    return torch.randint(1, 61, (rows, length), generator=torch.Generator().manual_seed(seed))


def biased(by: float) -> GPT2LMHeadModel:
    """A random model, and a vector of such a length added to all keys of a head, which changes nothing it says."""
    model = tiny_gpt2(seed=0)
    width, random = model.config.n_embd, torch.Generator().manual_seed(1)
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.bias[width : 2 * width] += by * torch.randn(width, generator=random)
    return model


@torch.no_grad()
def logits(model: PreTrainedModel, ids: torch.Tensor, cell: CacheConfig, centres: Centres | None) -> torch.Tensor:
    kind = FormatCache if cell.max_cache_size is None else SketchCache
    return model(ids, past_key_values=kind(model.config, cell, centres=centres)).logits


@pytest.mark.parametrize("store", ["float", "float16"])
@pytest.mark.parametrize("model", [biased(5), tiny_llama(seed=0)], ids=["gpt2", "llama"])
def test_a_cap_that_binds_nothing_is_the_untouched_model(model: PreTrainedModel, store: str) -> None:
    ids = tokens(2, 40, seed=2)
    with torch.no_grad():
        truth = model(ids).logits
    centres = mean_keys(model, tokens(1, 50, seed=3))
    cells = [CacheConfig(max_cache_size=40, store=store, centred=True, scope="head", strategy="aggregate")]
    cells += [CacheConfig(max_cache_size=None, store=store, centred=True)] if store != "float" else []
    for cell in cells:
        assert (logits(model, ids, cell, centres) - truth).abs().max() < (1e-4 if store == "float" else 0.05)


@pytest.mark.usefixtures("loop")
@pytest.mark.parametrize(
    "fields",
    [
        {"importance": "recency", "strategy": "aggregate", "store": "int4"},
        {"importance": "knorm"},
        {"importance": "exact", "strategy": "aggregate", "store": "k8v4"},
        {"item": "key", "topk": 7},
    ],
    ids=str,
)
def test_it_decides_as_the_model_does_whose_bias_is_moved(fields: dict[str, Any]) -> None:
    """Without rotary positions the keys' mean can be taken from their bias, and the cell knows of nothing."""
    model, ids = biased(3), tokens(2, 60, seed=4)
    centres = mean_keys(model, tokens(1, 100, seed=5))
    moved, width = copy.deepcopy(model), model.config.n_embd
    with torch.no_grad():
        for layer, block in enumerate(moved.transformer.h):
            block.attn.c_attn.bias[width : 2 * width] -= centres[layer].flatten()
    cell = CacheConfig(max_cache_size=12, scope="head", sinks=2, recent=0.5, **fields)
    caches = [
        SketchCache(model.config, cell.model_copy(update={"centred": True}), traced=True, centres=centres),
        SketchCache(model.config, cell, traced=True),
    ]
    with torch.no_grad():
        one, other = (
            each(ids, past_key_values=cache).logits for each, cache in zip((model, moved), caches, strict=True)
        )
    assert (one - other).abs().max() < 1e-3
    for layer in range(model.config.n_layer):
        mine, its = (cache.trace(layer) for cache in caches)
        assert torch.equal(mine.victims, its.victims)
        assert torch.equal(mine.survivors, its.survivors)
        assert torch.equal(mine.hidden, its.hidden)


@pytest.mark.parametrize("cap", [None, 48])
def test_a_bias_costs_four_bits_everything_and_centred_ones_nothing(cap: int | None) -> None:
    ids, over = tokens(2, 40, seed=6), tokens(1, 120, seed=7)
    with torch.no_grad():
        truth = tiny_gpt2(seed=0)(ids).logits
    cell = CacheConfig(max_cache_size=cap, store="int4", centred=True)
    off = {}
    for by in (0, 30):
        model = biased(by)
        off[by] = (logits(model, ids, cell, mean_keys(model, over)) - truth).abs().mean().item()
    plain = (logits(biased(30), ids, cell.model_copy(update={"centred": False}), None) - truth).abs().mean().item()
    assert off[30] == pytest.approx(off[0], rel=0.2)
    assert plain > 4 * off[30]


def test_what_is_generated_is_what_scoring_says() -> None:
    model, prompt = biased(5), tokens(1, 20, seed=8)
    centres = mean_keys(model, tokens(1, 50, seed=9))
    options: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for cell in (
        CacheConfig(max_cache_size=16, store="int8", centred=True, strategy="aggregate"),
        CacheConfig(max_cache_size=None, store="int4", centred=True),
    ):
        kind = FormatCache if cell.max_cache_size is None else SketchCache
        output = model.generate(prompt, past_key_values=kind(model.config, cell, centres=centres), **options)
        choices = logits(model, output, cell, centres).argmax(-1)
        assert torch.equal(choices[0, 19:-1], output[0, 20:])


def test_the_text_is_there_wherever_the_package_is_and_as_long_as_the_model_reads() -> None:
    lm = SketchGPT2(pretrained="bundled", max_cache_size=64, store="int4", centred=True, device="cpu")
    assert "Apache License" in text()
    ids = tokens_for(lm.tokenizer, lm.max_length)
    assert ids.shape == (1, 1024)
    assert tokens_for(lm.tokenizer, 10**6).shape[1] <= MOST
    assert all(torch.equal(lm.centres[layer], mean) for layer, mean in mean_keys(lm.transformer, ids).items())
    assert lm.get_model_info()["sketch_eval"]["cell"]["centred"] is True


@pytest.mark.parametrize("cap", [None, 64])
def test_lm_evals_model_scores_and_generates_with_them(cap: int | None) -> None:
    """As the cache does on its own, in tokens that are encoded here; and otherwise than with keys as they are."""
    lm = SketchGPT2(pretrained="bundled", max_cache_size=cap, store="int4", centred=True, device="cpu")
    ids = tokens_for(lm.tokenizer, 200)
    said = lm.tokenizer.decode(ids[0])
    assert lm.tok_encode(said) == ids[0].tolist()
    given = torch.cat([torch.tensor([[lm.prefix_token_id]]), ids[:, :-1]], 1)
    of_cell = logits(lm.transformer, given, lm.cell, lm.centres).log_softmax(-1)
    wanted = of_cell.gather(2, ids[..., None]).sum().item()
    (scored,) = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (said,), 0)])
    assert scored == pytest.approx(wanted, abs=0.01)
    plain = logits(lm.transformer, given, lm.cell.model_copy(update={"centred": False}), None).log_softmax(-1)
    assert abs(plain.gather(2, ids[..., None]).sum().item() - wanted) > 0.05
    settings = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False}
    (answer,) = lm.generate_until([Instance("generate_until", {}, (said, settings), 0)])
    kind, chosen = FormatCache if cap is None else SketchCache, ids
    cache = kind(lm.config, lm.cell, centres=lm.centres)
    with torch.no_grad():
        for _ in range(12):
            last = lm.transformer(chosen[:, cache.get_seq_length() :], past_key_values=cache).logits[:, -1:]
            chosen = torch.cat([chosen, last.argmax(-1)], 1)
    assert lm.tokenizer.decode(chosen[0, 200:]).partition("\n\n")[0] == answer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_difference_is_taken_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    keys = (100 + torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(10))).to(dtype)
    centre = torch.full((3, 1, 8), 100.03)
    less = centred(keys, centre)
    assert less.dtype == dtype
    assert torch.equal(less, (keys.double() - centre.double()).float().to(dtype))


def test_a_table_says_how_pairs_are_kept() -> None:
    few = cell_columns(CacheConfig(store="int4", store_group=16, centred=True))
    assert (few["store"], few["store_group"], few["centred"]) == ("int4", 16.0, "True")
    plain = cell_columns(CacheConfig(store_group=16))
    assert (plain["store"], plain["centred"]) == ("float", "False")
    assert math.isnan(plain["store_group"])


def test_a_window_in_full_numbers_is_compared_with_centred_cells_and_one_in_few_bits_is_not() -> None:
    cells = [CacheConfig(store=store, centred=centred) for store in ("float", "int4") for centred in (False, True)]
    assert size(cells[0]) == size(cells[1])
    assert size(cells[2]) != size(cells[3])


def test_names_and_computations() -> None:
    few = CacheConfig(max_cache_size=None, store="int4", centred=True)
    assert cell_name(few) == "int4 centred=True"
    assert computation(few) != computation(few.model_copy(update={"centred": False}))
    full = CacheConfig(max_cache_size=None, centred=True)
    assert cell_name(full) == "full"
    assert computation(full) == computation(CacheConfig(max_cache_size=None))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"strategy": "aggregate_turned"}, "centred=True does not go with strategy=aggregate_turned"),
        ({"importance": "learned", "scope": "head"}, "centred=True does not go with importance=learned"),
    ],
)
def test_what_does_not_go_with_it_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        CacheConfig.parse(centred=True, **fields)


def test_means_that_are_missing_or_of_nothing_are_refused(model: GPT2LMHeadModel) -> None:
    for cell in (CacheConfig(centred=True), CacheConfig(max_cache_size=None, store="int4", centred=True)):
        for given in (None, {0: torch.zeros(3, 1, 16)}):
            with pytest.raises(UsageError, match="centred=True needs the mean keys of the model's 2 layers"):
                logits(model, tokens(1, 5, seed=0), cell, given)
    with pytest.raises(UsageError, match="tokens: a mean of keys needs some"):
        mean_keys(model, tokens(1, 0, seed=0))
