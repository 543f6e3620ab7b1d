"""Training by the clock: it ends cooled down when its time is over, and its losses are those of the other loop."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from sketch_eval import bundled
from sketch_eval.errors import UsageError
from sketch_eval.text import stdlib
from sketch_eval.train import books, timed
from sketch_eval.train.__main__ import main
from sketch_eval.train.feed import STOCK, Feed, Pool, chunk
from sketch_eval.train.loop import load, weighted_loss
from sketch_eval.train.mixture import ANSWER, Mixture, two_word_keys
from sketch_eval.train.muon import orthogonal
from sketch_eval.train.settings import Settings
from sketch_eval.train.timed import CAUSAL, Loss, blank_lines


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(bundled.path())


@pytest.mark.slow
def test_a_run_ends_cooled_down_when_its_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = stdlib.documents
    monkeypatch.setattr(stdlib, "documents", lambda split: every(split)[::25])
    ticks = count()  # A clock that goes on by a tenth of a second whenever it is read.
    monkeypatch.setattr(timed, "time", SimpleNamespace(monotonic=lambda: next(ticks) / 10))
    (tmp_path / "works").mkdir()
    (tmp_path / "works" / "tale.txt").write_text("\n\n".join(f'"Oh," said {n} whales.' for n in range(2000)))
    shape = "--steps 100 --cooldown 60 --warmup 1 --fall linear --tokens 512 --micro 256 --every 50 --workers 1"
    sizes = "--positions 128 --layers 2 --width 32 --vocabulary 600 --lengths 0:64,50:128 --threads 1"
    main(f"--out {tmp_path / 'run'} --books {tmp_path / 'works'} --seconds 25 {shape} {sizes}".split())
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert log[-1] == json.loads((tmp_path / "run" / "results.json").read_text())
    assert 0 < log[-1]["rate"] < 0.05 * Settings().rate < log[1]["rate"]
    assert {"heldout_books", "bytes_books", "kv2", "pass key", "length"} <= set(log[-1])
    assert log[-1]["heldout_books"] < log[0]["heldout_books"]
    assert min(log[-1]["drills"].values()) > 0
    level, model = (AutoModelForCausalLM.from_pretrained(tmp_path / "run" / name) for name in ("level", "model"))
    assert not torch.equal(level.lm_head.weight, model.lm_head.weight)
    assert "causal" not in (tmp_path / "run" / "model" / "config.json").read_text()


def test_batches_are_windows_and_drills(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    feed = Feed(0, str(tmp_path), [256], 1, 3, "cpu")
    try:
        feed.hold([(0.5, np.arange(1, 2001, dtype=np.int32)), (0.5, np.arange(2001, 3001, dtype=np.int32))])
        ids, weights = feed.batch(64, 256, 0.0)
        assert ids.dtype == torch.int64
        assert (weights == 1).all()
        assert (ids[:, 2:] - ids[:, 1:-1] == 1).all()  # No window goes over the end of a stream:
        assert not ((ids[:, 1:] == 2000).any(1) & (ids[:, 1:] == 2001).any(1)).any()
        assert 0.2 < (ids[:, 0] == 0).float().mean() < 0.8
        ids, weights = feed.batch(64, 256, 0.5)
        assert (weights[:32] == 1).all()
        assert feed.pools[256].count >= STOCK
        for row, weight in zip(ids[32:].tolist(), weights[32:].tolist(), strict=True):
            asked = [at for at, value in enumerate(weight) if value == ANSWER]
            assert all(row[at] in row[:at] for at in asked)
    finally:
        feed.close()


def test_a_pool_keeps_the_newest(tokenizer: PreTrainedTokenizerFast) -> None:
    pool = Pool(16_384, torch.device("cpu"), tokens=1)
    _, *arrays = chunk(Mixture(tokenizer, [], 0), Random("pool"), 16_384)
    for number in range(STOCK + 1):
        arrays[2][:] = number
        pool.put(*arrays)
    assert pool.count == pool.room == 4 * STOCK
    assert pool.sizes.tolist() == [STOCK] * 4 + [number for number in range(1, STOCK) for _ in range(4)]


@pytest.mark.parametrize("name", bundled.NAMES)
def test_the_loss_is_that_of_the_other_loop(name: str) -> None:
    model = load(bundled.path(name))
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 4000, (3, 100), generator=random)
    weights = torch.rand(3, 100, generator=random).where(ids % 3 > 0, 0)
    want = weighted_loss(model, ids, weights, torch.arange(100).expand(3, 100))
    model.set_attn_implementation(CAUSAL)
    torch.testing.assert_close(Loss(model, "cpu").forward(ids, weights), want)


def test_a_batch_whose_compiled_loss_fails_has_the_gradients_of_all_its_parts() -> None:
    """The second of three parts fails after it has added to the gradients."""
    model = load(bundled.path())
    model.set_attn_implementation(CAUSAL)
    random = torch.Generator().manual_seed(0)
    ids, weights = torch.randint(1, 4000, (6, 32), generator=random), torch.rand(6, 32, generator=random)
    plain, fails = Loss(model, "cpu"), Loss(model, "cpu")
    want = plain.backward(ids, weights, 2)
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    calls = count()

    def compiled(ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        if next(calls):
            fails.forward(ids, weights).backward()
            raise RuntimeError("the second part")
        return fails.forward(ids, weights)

    fails.compiled = compiled
    torch.testing.assert_close(fails.backward(ids, weights, 2), want)
    assert next(calls) == 2
    for mine, its in zip((p.grad for p in model.parameters() if p.grad is not None), gradients, strict=True):
        torch.testing.assert_close(mine, its, atol=1e-5, rtol=1e-4)


def test_a_text_shorter_than_a_row_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    feed = Feed(0, str(tmp_path), [64, 256], 1, 3, "cpu")
    try:
        with pytest.raises(UsageError, match="a text of 100 tokens: rows are of up to 256"):
            feed.hold([(1.0, np.arange(100, dtype=np.int32))])
    finally:
        feed.close()


def test_keys_of_two_words_take_both_to_find(tokenizer: PreTrainedTokenizerFast) -> None:
    for budget in (12, 250, 1000, 4000, 40_000):
        pieces = two_word_keys(Random(f"two {budget}"), budget)
        lines = [text[:-1].rsplit("\n", 1)[-1] for text, weight in pieces if text.count(": ") == 1 and not weight]
        known = dict(line.split(": ") for line in lines)
        asked = [(key[:-1], value[1:]) for (key, _), (value, weight) in pairwise(pieces) if weight == ANSWER]
        assert asked
        assert all(known[key] == value for key, value in asked)
        if budget > 500:
            assert len({key.split()[1] for key in known}) < 0.7 * len(known)
    ids, _ = Mixture(tokenizer, [], 0).encode([("quiet harbor: copper\n", 0.0)])
    assert len(ids) == 5


def test_matrices_of_one_shape_are_made_orthogonal_each_by_itself() -> None:
    matrices = torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(0))
    for some in (matrices, matrices.mT):
        for one, together in zip(some, orthogonal(some, torch.float32), strict=True):
            torch.testing.assert_close(orthogonal(one[None], torch.float32)[0], together)
            assert ((torch.linalg.svdvals(together) - 1).abs() < 0.4).all()


def test_works_are_set_in_other_ways(tokenizer: PreTrainedTokenizerFast) -> None:
    assert books.curly('"I can\'t," he said. \'No.\' ("Why?")') == "“I can’t,” he said. ‘No.’ (“Why?”)"
    text = "One.\nTwo, three.\nFour"
    ids = np.array(tokenizer(text)["input_ids"])
    assert tokenizer.decode(blank_lines(ids, tokenizer)) == text.replace("\n", "\n\n")


def test_a_library_is_read_from_a_folder(tmp_path: Path) -> None:
    for name in ("alpha", "beta", "gamma", "delta", *(f"m{n}" for n in range(20))):
        (tmp_path / f"{name}.py").write_text(f"name = {name!r}\n")
    train, heldout = (books.library(str(tmp_path), split) for split in ("train", "heldout"))
    assert len(train) + len(heldout) == 24
    assert not set(train) & set(heldout)
    assert books.library("", "heldout") == [text for _, text in stdlib.documents("heldout")]
    with pytest.raises(UsageError, match="library="):
        books.library(str(tmp_path / "none"), "train")


def test_the_rate_falls_in_a_line() -> None:
    settings = Settings(steps=100, cooldown=40, warmup=1, fall="linear")
    rates = [settings.learning_rate(part) / settings.rate for part in (0.0, 50.5, 60, 80, 99.5)]
    assert rates == pytest.approx([1, 1, 1, 0.5, 0.0125])
    timed_run = replace(settings, seconds=10.0, warmup=2)
    assert [timed_run.learning_rate(part) / settings.rate for part in (0.0, 0.5, 1.5, 2.0)] == [0, 0.25, 0.75, 1]
    with pytest.raises(UsageError, match="fall='steps'"):
        replace(settings, fall="steps")
    with pytest.raises(UsageError, match="seconds=-1"):
        replace(settings, seconds=-1.0)
