"""Every family of models: exact on a random model of it, and a line of refusal where it cannot be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from conftest import tiny_model
from hub import write_tokenizer
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from test_executions import assert_follows_oracle, small_cell
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from sketch_eval import UsageError
from sketch_eval.attention import enable
from sketch_eval.cache import SketchCache
from sketch_eval.config import CacheConfig
from sketch_eval.families import FAMILIES, shape_of
from sketch_eval.grid.grid import Grid
from sketch_eval.lm import SketchGPT2, SketchHF
from sketch_eval.rotary import speeds, turn
from sketch_eval.state import LayerState
from sketch_eval.sweep.plan import plan

TEXTS = ["one two three", "three one two two one three one two", "two"]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a random model of a family, with a tokenizer."""
    path = tmp_path_factory.mktemp(request.param)
    write_tokenizer(path, TEXTS)
    tiny_model(request.param, vocabulary=len(AutoTokenizer.from_pretrained(path))).save_pretrained(path)
    return str(path)


def likelihoods(lm: HFLM) -> list[float]:
    requests = [
        Instance("loglikelihood", {}, (text, " " + " ".join(TEXTS)), number) for number, text in enumerate(TEXTS)
    ]
    return [likelihood for likelihood, _ in lm.loglikelihood(requests)]


def test_a_cap_that_holds_the_text_is_the_untouched_model_and_a_smaller_one_is_not(folder: str) -> None:
    full, wide, narrow = (
        likelihoods(SketchHF(pretrained=folder, max_cache_size=cap, batch_size=2, **small))
        for cap, small in ((None, {}), (200, {}), (8, {"sinks": 1}))
    )
    assert wide == pytest.approx(full, abs=1e-4)
    assert max(abs(one - other) for one, other in zip(narrow, full, strict=True)) > 0.01


@pytest.mark.slow
def test_the_plain_command_line_takes_a_folder_of_the_family(folder: str, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "lm_eval"), "--model", "sketch_hf", "--tasks", "stdlib_text"]
    command += [
        "--model_args",
        f"pretrained={folder},max_cache_size=24",
        "--limit",
        "1",
        "--output_path",
        str(tmp_path),
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (file,) = tmp_path.rglob("results_*.json")
    result = json.loads(file.read_text())
    assert result["results"]["stdlib_text"]["byte_perplexity,none"] > 1
    counts = result["config"]["sketch_eval"]["counts"]["tasks"]["stdlib_text"]
    assert counts["binding_requests"] == 1
    assert counts["evictions"] > 0


def test_logits_made_for_scored_rows_alone_are_the_models_own(folder: str) -> None:
    config = json.loads(Path(folder, "config.json").read_text())
    for setting in {"logits_scaling": 3.0, "final_logit_softcapping": 2.0}.items():
        if setting[0] in config:
            Path(folder, "config.json").write_text(json.dumps(config | dict([setting])))
    ours, theirs = (
        likelihoods(lm(pretrained=folder, batch_size=2, device="cpu"))
        for lm in (lambda **more: SketchHF(max_cache_size=None, **more), HFLM)
    )
    Path(folder, "config.json").write_text(json.dumps(config))
    assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.fixture(scope="module", params=FAMILIES)
def random(request: pytest.FixtureRequest) -> PreTrainedModel:
    model = tiny_model(request.param)
    enable(model)
    return model


@pytest.mark.parametrize("cell", [{"scope": "head", "topk": 8}, {}, {"scope": "head"}], ids=str)
def test_decode_and_scan_decide_as_the_oracle(random: PreTrainedModel, cell: dict[str, Any]) -> None:
    if "topk" not in cell:
        cell = cell | {"strategy": "aggregate" if speeds(random.config, 0) is None else "aggregate_turned"}
    # Half of the tokens come again: where rotary keys are turned, their first keys are equal but for rounding.
    half = torch.randperm(60, generator=torch.Generator().manual_seed(3))[:13] + 1
    tokens = torch.stack([torch.cat([half, half]), torch.cat([half, half.flip(0)])])
    mask = torch.ones_like(tokens)
    mask[1, :5] = 0
    compared, there = assert_follows_oracle(random, small_cell(**cell), tokens, mask)
    assert compared >= 0.8 * there


def test_a_text_has_the_same_logits_alone_and_in_a_batch_after_another(random: PreTrainedModel) -> None:
    cell = small_cell(scope="head")
    tokens = torch.randint(1, 61, (3, 40), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        alone = random(tokens[1:2], past_key_values=SketchCache(random.config, cell)).logits
        batch = random(tokens, past_key_values=SketchCache(random.config, cell)).logits
        again = random(tokens[1:2], past_key_values=SketchCache(random.config, cell)).logits
    assert torch.equal(alone, again)
    assert (batch[1] - alone[0]).abs().max() < 1e-4


@pytest.mark.slow
def test_an_answer_of_a_thousand_tokens_holds_one_pair_more_than_the_cap() -> None:
    for family in FAMILIES:
        model = tiny_model(family, positions=1024)
        enable(model)
        cache = SketchCache(model.config, CacheConfig(max_cache_size=16, recent=0.5))
        prompt = torch.randint(1, 61, (1, 10), generator=torch.Generator().manual_seed(5))
        answer = model.generate(prompt, past_key_values=cache, min_new_tokens=1000, max_new_tokens=1000, pad_token_id=0)
        assert answer.shape[1] == 1010
        for layer in cache.layers:
            assert layer.keys.shape[2] == 17, family
            assert (layer.state.positions >= 0).sum() == 16, family


SCALED: dict[str, dict[str, Any]] = {
    family: {} for family in FAMILIES if speeds(AutoConfig.for_model(family), 0) is not None
} | {
    "llama": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    | {"original_max_position_embeddings": 64, "rope_theta": 1e4},
    "granite": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    "qwen2": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4},
}


@pytest.mark.parametrize("family", SCALED)
def test_a_key_turned_to_another_position_is_the_key_that_the_model_makes_there(family: str) -> None:
    scaled: dict[str, Any] = {"rope_parameters": SCALED[family]} if SCALED[family] else {}
    model = tiny_model(family, layers=4, **scaled)
    enable(model)
    cache = SketchCache(model.config, CacheConfig(max_cache_size=60))
    with torch.no_grad():
        model(torch.full((1, 60), 7), past_key_values=cache)  # One token everywhere: only positions differ.
    for layer, store in enumerate(cache.layers):
        keys = cast(LayerState, store.state).keys[:, :, :60]
        turned = turn(keys, torch.arange(59, -1, -1), cast(torch.Tensor, speeds(model.config, layer)))
        assert (turned - keys[:, :, -1:]).abs().max() < 1e-3 * keys.abs().max(), layer


ROTARY = {"rope_theta": 1e4}


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        (
            "mistral",
            {"sliding_window": 64},
            "max_length=None: the model has 256 positions, but layers that attend to the",
        ),
        (
            "gemma3_text",
            {"sliding_window": 32},
            "attend to the last 32 tokens only, which a cell would not do; give 1 to",
        ),
        ("llama", {"rope_parameters": ROTARY | {"rope_type": "dynamic", "factor": 2.0}}, "of the kind 'dynamic'"),
        (
            "phi3",
            {"sliding_window": 64, "use_sliding_window": False},
            "attend to the last 64 tokens only, which a cell",
        ),
        ("llama", {"is_causal": False}, "attends to the tokens that follow; give a causal language model"),
        ("qwen2_vl", {}, "is a qwen2_vl model, which takes more than text; give one of"),
        ("gemma2", {}, "is a gemma2 model, which caps its attention's logits"),
        ("bloom", {}, "is a bloom model; give one of GPT-2, Llama, Mistral"),
        ("t5", {}, "is a t5 model, whose encoder and decoder share no cache that could be bounded; give one of"),
        ("mamba", {}, "is a mamba model, which has no attention; give one of"),
        ("deepseek_v3", {}, "which caches latents rather than keys and values (multi-head latent attention); give"),
        ("qwen3_next", {}, "is a qwen3_next model, which has layers of linear_attention, which keep no pair for each"),
    ],
)
def test_what_cannot_be_exact_is_refused_in_one_line_before_there_are_weights(
    family: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """The folder holds a config and nothing else."""
    config = AutoConfig.for_model(family, **settings)
    if family in FAMILIES:
        config.max_position_embeddings = 256
    config.save_pretrained(tmp_path)
    with pytest.raises(UsageError) as error:
        SketchHF(pretrained=str(tmp_path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_texts_within_the_window_of_sliding_layers_are_exact_and_longer_ones_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, TEXTS)
    vocabulary = len(AutoTokenizer.from_pretrained(tmp_path))
    model = tiny_model("mistral", vocabulary=vocabulary)
    model.config.sliding_window = 64
    model.save_pretrained(tmp_path)
    full, wide = (
        likelihoods(SketchHF(pretrained=str(tmp_path), max_length=64, max_cache_size=cap)) for cap in (None, 64)
    )
    assert wide == pytest.approx(full, abs=1e-4)
    assert shape_of(model.config).window == 64
    assert shape_of(AutoConfig.for_model("llama", sliding_window=64)).window is None  # Its code never reads it.
    enable(model)
    with pytest.raises(UsageError, match="a text of more than 64 tokens"):
        model(torch.ones(1, 65, dtype=torch.long), past_key_values=SketchCache(model.config, CacheConfig()))


def test_gpt2_alone_goes_by_its_own_name(tmp_path: Path) -> None:
    AutoConfig.for_model("qwen2").save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="is a qwen2 model, which sketch_hf takes; give a GPT-2 one"):
        SketchGPT2(pretrained=str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "of-tomorrow"}))
    with pytest.raises(UsageError, match="is no model that sketch_hf takes: "):
        SketchHF(pretrained=str(tmp_path))


def test_a_fate_that_turns_keys_is_refused_for_a_model_without_rotary_positions(tmp_path: Path) -> None:
    AutoConfig.for_model("gpt2").save_pretrained(tmp_path)
    with pytest.raises(
        UsageError, match=r"strategy='aggregate_turned' turns rotary keys, and pretrained=.* has no rotary"
    ):
        SketchHF(pretrained=str(tmp_path), strategy="aggregate_turned")
    grid = Grid.model_validate(
        {
            "model": {"pretrained": str(tmp_path)},
            "tasks": ["kv_256"],
            "cells": [{"max_cache_size": 64, "strategy": ["aggregate", "aggregate_turned"]}],
        }
    )
    with pytest.raises(UsageError, match="turns rotary keys"):
        plan(grid)
