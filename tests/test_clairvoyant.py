"""The clairvoyant control: it evicts by the attention that the full cache has still to give (docs/design.md §9)."""

from __future__ import annotations

import copy
import inspect
import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from conftest import tiny_gpt2
from lm_eval.api.instance import Instance
from test_executions import UNTURNED, assert_follows_oracle, run, small_cell
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2LMHeadModel, PreTrainedModel

from sketch_eval import UsageError
from sketch_eval.attention import enable, foresee
from sketch_eval.cache import SketchCache
from sketch_eval.config import CONTROLS, CacheConfig
from sketch_eval.evaluate.work import Worker
from sketch_eval.grid.grid import Grid
from sketch_eval.lm import SketchGPT2

FORESEEN = CONTROLS["clairvoyant"]


def texts(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, 61, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scope", ["layer", "head"])
def test_the_victim_is_the_pair_with_the_least_attention_still_to_come(scope: str) -> None:
    """Recomputed from the weights that transformers itself says its full cache gave."""
    model = tiny_gpt2(seed=2, layers=1)
    tokens = texts(1, 40)
    untouched = GPT2LMHeadModel(copy.deepcopy(model.config)).eval()
    untouched.load_state_dict(model.state_dict())
    untouched.set_attn_implementation("eager")
    with torch.no_grad():
        weights = untouched(tokens, output_attentions=True).attentions[0][0].double()
    expected = []
    for mass in weights if scope == "head" else [weights.mean(0)]:
        held, victims = [], []
        for t in range(40):
            held.append(t)
            victim = -1
            if len(held) > 12:
                victim = min(held[:-1], key=lambda position: (float(mass[t + 1 :, position].sum()), position))
                held.remove(victim)
            victims.append(victim)
        expected.append(victims)
    cell = CacheConfig(max_cache_size=12, scope=cast(Any, scope), **FORESEEN)
    assert run(model, cell, tokens, torch.ones_like(tokens), "auto")[1].trace(0).victims.tolist() == expected


@pytest.mark.usefixtures("loop")
@pytest.mark.parametrize("fate", UNTURNED, ids=str)
@pytest.mark.parametrize(("which", "scope"), [("model", "layer"), ("grouped", "head")])
def test_all_executions_decide_as_the_oracle(
    request: pytest.FixtureRequest, which: str, scope: str, fate: dict[str, Any]
) -> None:
    model: PreTrainedModel = request.getfixturevalue(which)
    tokens = texts(2, 30)
    cell = small_cell(scope=scope, **{**FORESEEN, "recent": 2}, **fate)
    compared, there = assert_follows_oracle(model, cell, tokens, torch.ones_like(tokens))
    assert compared >= 0.8 * there


@pytest.mark.usefixtures("loop")
@pytest.mark.parametrize("scope", ["layer", "head"])
@pytest.mark.parametrize("fate", ["topk", "aggregate"])
def test_surprisal_is_the_full_caches_loss_and_all_executions_decide_by_it(
    grouped: PreTrainedModel, fate: str, scope: str
) -> None:
    tokens = texts(2, 30)
    with torch.no_grad():
        likely = grouped(tokens).logits.log_softmax(-1)[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]
    seen = foresee(grouped, tokens, "losses")
    assert all(torch.allclose(one.losses[:, 1:], -likely, atol=1e-5) for one in seen.values())  # type: ignore[union-attr]
    cell = small_cell(importance="surprisal", scope=scope, strategy=fate)
    compared, there = assert_follows_oracle(grouped, cell, tokens, torch.ones_like(tokens))
    assert compared >= 0.8 * there
    cache = run(grouped, cell, tokens, torch.ones_like(tokens), "auto")[1]
    victim = int(cache.trace(0).victims[0, 12])  # Of positions 1 to 6, the rest is protected.
    assert victim == 1 + int((-likely[0, :6]).argmin())


def test_a_long_text_is_foreseen_block_by_block(grouped: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("policies.clairvoyant", "execution.compiled.run"):
        monkeypatch.setattr(f"sketch_eval.{module}.BLOCK", 16)
    tokens = texts(1, 70)
    cell = CacheConfig(max_cache_size=20, scope="head", **FORESEEN)
    compared, there = assert_follows_oracle(grouped, cell, tokens, torch.ones_like(tokens))
    assert compared >= 0.8 * there


class Largest(TorchDispatchMode):
    """Records the numbers of the largest tensor that an operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else (made,):
            if isinstance(each, torch.Tensor):
                self.numbers = max(self.numbers, each.numel())
        return made


@pytest.mark.parametrize("scope", ["layer", "head", "budget"])
def test_no_tensor_of_length_times_length_is_made(
    grouped: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, scope: str
) -> None:
    """Of 320 tokens in blocks of 16: the largest is a block's rows of all eight query heads, or the model's logits."""
    for module in ("policies.clairvoyant", "execution.compiled.run"):
        monkeypatch.setattr(f"sketch_eval.{module}.BLOCK", 16)
    cell = CacheConfig(max_cache_size=20, scope=cast(Any, scope), **FORESEEN)
    tokens = texts(1, 320)
    with Largest() as largest:
        run(grouped, cell, tokens, torch.ones_like(tokens), "auto")
    assert largest.numbers <= 320 * 16 * 8 < 320**2


def likelihoods(lm: SketchGPT2, pairs: list[tuple[str, str]]) -> list[float]:
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    return [likelihood for likelihood, _ in lm.loglikelihood(requests, disable_tqdm=True)]


def test_a_text_is_scored_as_alone_in_any_batch_and_better_than_by_a_window() -> None:
    source = inspect.getsource(json.decoder)
    pairs = [
        (source[at : at + 900], source[at + 900 : at + 1800 - 300 * number]) for number, at in enumerate((0, 4000))
    ]
    lm = SketchGPT2(pretrained="bundled", max_cache_size=64, scope="head", batch_size=2, device="cpu", **FORESEEN)
    together = likelihoods(lm, pairs)
    assert [likelihoods(lm, [pair])[0] for pair in pairs] == together
    assert lm.counts.tasks[""].evictions > 0
    lm.cell = CacheConfig(max_cache_size=64, **CONTROLS["window"])
    assert sum(together) > sum(likelihoods(lm, pairs)) + 5


def test_what_cannot_be_foreseen_is_refused_in_one_line(model: GPT2LMHeadModel) -> None:
    cell = CacheConfig(max_cache_size=16, **FORESEEN)
    with pytest.raises(UsageError, match="importance='clairvoyant' has to know the text before it begins: pass"):
        SketchCache(model.config, cell)
    tokens = texts(2, 20)
    enable(model)
    cache = SketchCache(model.config, cell, foresight=foresee(model, tokens))
    with pytest.raises(UsageError, match="has seen texts of 20 tokens without padding"):
        model(tokens, attention_mask=torch.tensor([[1] * 20, [0] * 3 + [1] * 17]), past_key_values=cache)
    with torch.no_grad():
        model(tokens, past_key_values=cache)
    with pytest.raises(UsageError, match="and nothing after them"):
        model(tokens[:, :1], past_key_values=cache)
    lm = SketchGPT2(pretrained="bundled", max_cache_size=64, device="cpu", **FORESEEN)
    asked = Instance("generate_until", {}, ("def f(", {"until": ["\n"], "max_gen_toks": 4}), 0)
    with pytest.raises(UsageError, match="cannot generate; name tasks that score given texts"):
        lm.generate_until([asked])


def test_a_sweep_with_a_task_that_generates_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "said.jsonl").write_text(json.dumps({"q": "import os, sys", "a": "import"}))
    task = {
        "task": "said", "dataset_path": "json", "dataset_kwargs": {"data_files": str(tmp_path / "said.jsonl")},
        "test_split": "train", "output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}",
        "metric_list": [{"metric": "exact_match"}],
    }  # fmt: skip
    (tmp_path / "said.yaml").write_text(yaml.safe_dump(task))
    grid = Grid.model_validate(
        {
            "model": {"pretrained": "bundled"},
            "include_path": str(tmp_path),
            "tasks": ["said"],
            "cells": [{"controls": ["clairvoyant"], "max_cache_size": 64}],
        }
    )
    with pytest.raises(UsageError, match="has to know the text before it begins, and said generates one"):
        Worker(grid)
