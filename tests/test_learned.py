"""importance=learned: what it ranks by, how it is fitted, and which models it is refused for."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import give_ranking, tiny_llama
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from sketch_eval.attention import enable
from sketch_eval.cache import SketchCache
from sketch_eval.calibrate.__main__ import main as calibrate
from sketch_eval.calibrate.fit import fit
from sketch_eval.calibrate.observe import observe
from sketch_eval.config import CacheConfig
from sketch_eval.errors import UsageError
from sketch_eval.foresight import Fitted
from sketch_eval.policies import POLICIES, Attention, Pairs, Place
from sketch_eval.policies.learned import FEATURES, features
from sketch_eval.ranking import NAME, check_weights, ranking_of

CELL = CacheConfig(max_cache_size=60, importance="learned", scope="head", recent=0.5)


def test_an_estimate_is_the_exponential_of_the_weighted_features() -> None:
    """Two pairs of the token 7, met by two queries and by one: the first has come again, the second has not."""
    weights = torch.tensor([0.5, 1.0, -2.0, 0.25, 0.125, 3.0, -1.0, 0.75])
    place = Place(1, 3, 1, 2, (0,), torch.device("cpu"), Fitted(weights[None]))
    policy = POLICIES["learned"](CELL, place)
    keys, values = (
        torch.tensor([[[[3.0, 4.0], [0.0, 1.0], [0, 0]]]]),
        torch.tensor([[[[1.0, 0.0], [0.0, 2.0], [0, 0]]]]),
    )
    tokens = torch.tensor([[7, 7, 0]])
    for held, mass in (([0, -1, -1], [1.0, 0.0, 0.0]), ([0, 1, -1], [0.25, 0.75, 0.0])):
        tags = policy.tags(tokens, Pairs(torch.tensor([held]), None, keys, values))
        policy.account(tags, Attention(torch.tensor([True]), mass=torch.tensor([mass])))
    known = [
        [1, *(math.log(m + 1e-4) for m in (1.25, 0.99 + 0.25, 0.9 + 0.25)), math.log(2), math.log(5), 0.0, 1],
        [1, *[math.log(0.75 + 1e-4)] * 3, math.log(1), 0.0, math.log(2), 0],
    ]
    expected = [math.exp(sum(w * x for w, x in zip(weights.tolist(), row, strict=True))) for row in known]
    assert policy.estimate(tags)[0, :2].tolist() == pytest.approx(expected, rel=1e-5)


def test_it_is_fitted_to_the_features_that_it_ranks_by(grouped: LlamaForCausalLM) -> None:
    """What `observe` reads off a whole pass is what the policy has counted by that moment, in every layer and head."""
    tokens = torch.randint(1, 20, (50,), generator=torch.Generator().manual_seed(3))
    cache = SketchCache(grouped.config, CELL)
    with torch.no_grad():
        grouped(tokens[None, :30], past_key_values=cache)
    for moment in observe(grouped, tokens, [30]):
        state = cache.layers[moment.layer].state
        order = state.positions.long().argsort(1)[:, -30:]
        tags = state.tags().gather(1, order[..., None].expand(-1, -1, 4)).float()
        memory = state.policy.memory.gather(2, order[:, None].expand(-1, 4, -1))
        known = features(memory[:, :3].transpose(1, 2), 30 - tags[..., 1], tags[..., 2], tags[..., 3], memory[:, 3])
        assert torch.allclose(known, moment.known, atol=1e-4)
        assert moment.follows.sum(1) == pytest.approx(moment.left - later_mass(grouped, tokens, moment.layer), abs=1e-3)


def later_mass(model: LlamaForCausalLM, tokens: torch.Tensor, layer: int) -> torch.Tensor:
    """What the queries after the thirtieth token give each other, by key/value head: transformers' own weights."""
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            weights = model(tokens[None], output_attentions=True).attentions[layer][0]
    finally:
        enable(model)
    return weights[:, 30:, 30:].sum((1, 2)).unflatten(0, (2, -1)).mean(1)


def test_a_regression_finds_the_weights_that_made_the_mass(
    grouped: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = np.array([0.2, 0.6, 0.0, 0.3, -0.4, 0.5, 0.1, -0.3])

    class Made:
        def __init__(self, seed: int) -> None:
            generator = torch.Generator().manual_seed(seed)
            self.layer, self.left = 0, 7
            self.known = torch.randn(1, 200, len(FEATURES), generator=generator)
            self.known[..., 0] = 1
            self.follows = (self.known.double() @ torch.tensor(weights)).exp() * self.left

    monkeypatch.setattr("sketch_eval.calibrate.fit.observe", lambda model, tokens, moments: map(Made, moments))
    (((found,),), explained) = fit(grouped, [torch.zeros(400)] * 5, seed=0)
    assert np.array(found)[1:] == pytest.approx(weights[1:], abs=1e-3)  # The constant is a common factor of all pairs.
    assert explained > 0.999


def test_a_model_is_calibrated_by_the_command_and_ranks_by_what_was_fitted(checkpoint: str, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("What it is fitted to is long enough. " * 200, encoding="utf-8")
    arguments = ["--pretrained", checkpoint, "--texts", str(texts), "--windows", "2", "--length", "256"]
    out = tmp_path / "fitted"
    calibrate([*arguments, "--out", str(out)])
    model = AutoModelForCausalLM.from_pretrained(out)
    check_weights(model)
    enable(model)
    cache = SketchCache(model.config, CELL.model_copy(update={"max_cache_size": 16}), traced=True)
    with torch.no_grad():
        model(torch.arange(1, 41)[None] % 30, past_key_values=cache)
    assert (cache.trace(0).victims[:, 16:] >= 0).all()
    with pytest.raises(UsageError, match="holds files already"):
        calibrate([*arguments, "--out", str(out)])
    check_weights(AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16))
    for parameter in model.parameters():  # As a little more training would change them.
        parameter.data += (
            0.01
            * parameter.square().mean().sqrt()
            * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        )
    with pytest.raises(UsageError, match="was fitted to other weights"):
        check_weights(model)


def test_a_model_that_nothing_was_fitted_to_is_refused_in_one_line(model: torch.nn.Module) -> None:
    bare = tiny_llama(seed=2)
    delattr(bare.config, NAME)
    with pytest.raises(UsageError, match="no ranking was fitted to pretrained"):
        SketchCache(bare.config, CELL)
    other = tiny_llama(seed=2, layers=3)
    setattr(bare.config, NAME, getattr(other.config, NAME))
    with pytest.raises(UsageError, match="not one of this version and of its shape"):
        ranking_of(bare.config)
    with pytest.raises(UsageError, match="give scope=head"):
        CacheConfig.parse(importance="learned")
    give_ranking(bare)
    SketchCache(bare.config, CELL)
