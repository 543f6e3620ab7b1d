"""The trainer: rows as specified, a start that looks back, and a resumed run that is the uninterrupted run."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from sketch_eval import bundled
from sketch_eval.errors import UsageError
from sketch_eval.text import stdlib
from sketch_eval.train import books
from sketch_eval.train.__main__ import main, schedule
from sketch_eval.train.loop import train
from sketch_eval.train.mixture import ANSWER, Mixture
from sketch_eval.train.model import build_model
from sketch_eval.train.settings import Settings

TINY = Settings(
    steps=4, cooldown=2, tokens=256, micro=128, layers=2, width=32, heads=4, positions=128, every=4, threads=1
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(bundled.path())


@pytest.fixture(autouse=True)
def few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the library: the trainer reads it several times here."""
    every = stdlib.documents
    monkeypatch.setattr(stdlib, "documents", lambda split: every(split)[::25])


def test_resumed_run_is_the_uninterrupted_run(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for folder in ("whole", "parts"):
        tokenizer.save_pretrained(tmp_path / folder)
    whole = train(TINY, tmp_path / "whole")
    for _ in range(4):
        parts = train(replace(TINY, limit=0.0), tmp_path / "parts")  # one step a call
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "parts" / "model")
    assert loaded.dtype == torch.float32
    assert len(AutoTokenizer.from_pretrained(tmp_path / "parts" / "model")) == loaded.config.vocab_size
    for name, value in parts.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float()), name
    report = json.loads((tmp_path / "whole" / "log.jsonl").read_text())
    assert {"step", "heldout", "code", "passkey", "kv", "induction"} <= set(report)
    assert "tokens/s" in capsys.readouterr().out

    with pytest.raises(UsageError, match="another size"):
        train(replace(TINY, width=64), tmp_path / "parts")
    with pytest.raises(UsageError, match=r"heads=8: the checkpoint in out=.* was trained with 4"):
        train(replace(TINY, heads=8), tmp_path / "parts")


BOOK = """The Project Gutenberg EBook of A Tale

*** START OF THIS PROJECT GUTENBERG EBOOK A TALE ***
CHAPTER I

It was the best
of times.

*** END OF THIS PROJECT GUTENBERG EBOOK A TALE ***
Licence.
"""


def test_a_book_is_its_prose_without_the_licence() -> None:
    assert books.prose(BOOK) == ["CHAPTER I", "It was the best of times."]
    assert books.prose("No licence.\n\n\nNone at\nall.") == ["No licence.", "None at all."]


def test_works_are_kept_out_whole_and_are_of_one_name_each(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, names in ((one, ("whale", "sea")), (other, ("road",))):
        folder.mkdir()
        for name in names:
            (folder / f"{name}.txt").write_text(f"The {name}.\n\nThe end.")
    both = f"{one}, {other},"
    assert books.documents(both, "train", "sea.txt") == ["The whale.\nThe end.\n", "The road.\nThe end.\n"]
    assert books.documents(both, "heldout", "sea.txt") == ["The sea.\nThe end.\n"]
    assert len(books.checksums(both)) == 3
    with pytest.raises(UsageError, match=r"kept_out='moon\.txt': no such file"):
        books.documents(both, "train", "moon.txt")
    (tmp_path / "sea.txt").write_text("Another.")
    with pytest.raises(UsageError, match=r"sea\.txt is in two of the folders"):
        books.documents(f"{both}{tmp_path}", "train")


def test_a_run_goes_on_from_a_given_model_and_reads_books(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "books"
    folder.mkdir()
    (folder / "tale.txt").write_text("\n\n".join(f"Once upon {n} times there was a whale." for n in range(200)))
    train_part, heldout = (books.documents(str(folder), split)[0] for split in ("train", "heldout"))
    assert (train_part.count("whale"), heldout.count("whale")) == (190, 10)
    tokenizer.save_pretrained(tmp_path / "first")
    train(replace(TINY, every=2, steps=2), tmp_path / "first")
    start = str(tmp_path / "first" / "model")
    first = AutoModelForCausalLM.from_pretrained(start).state_dict()
    # Without a step of any size the model is the one that it began with.
    still = train(replace(TINY, rate=0.0, start=start, books=str(folder)), tmp_path / "second")
    assert all(torch.equal(value, first[name]) for name, value in still.state_dict().items())
    report = json.loads((tmp_path / "second" / "log.jsonl").read_text())
    assert 0 < report["heldout_books"] != report["heldout"]
    assert books.checksums(str(folder))["tale.txt"] in capsys.readouterr().out
    assert (tmp_path / "second" / "tokenizer.json").read_text() == (tmp_path / "first" / "tokenizer.json").read_text()


def test_rows_are_repeatable_and_weigh_what_can_be_known(tokenizer: PreTrainedTokenizerFast) -> None:
    mixture = Mixture(tokenizer, ["import os\n" * 500], seed=3)
    for length in (128, 512):
        ids, weights, positions = mixture.batch(7, 24, length, 1.0, 1024)
        again = Mixture(tokenizer, ["import os\n" * 500], seed=3).batch(7, 24, length, 1.0, 1024)
        assert all(torch.equal(one, other) for one, other in zip((ids, weights, positions), again, strict=True))
        assert ids.shape == weights.shape == positions.shape == (24, length)
        assert (positions[:, 1:] - positions[:, :-1] == 1).all()
        assert positions.max() < 1024
        for row, weight in zip(ids.tolist(), weights.tolist(), strict=True):
            asked = [at for at, value in enumerate(weight) if value == ANSWER]
            # Every answer's token stands in the row before: nothing is asked that was not said.
            assert all(row[at] in row[:at] for at in asked)
    assert not torch.equal(mixture.batch(8, 24, 128, 1.0, 1024)[0], mixture.batch(7, 24, 128, 1.0, 1024)[0])


@pytest.mark.parametrize(
    "shape",
    [
        {"width": 256},
        {"shape": "llama", "width": 320, "heads": 10, "kv_heads": 2},
        {"shape": "llama", "width": 320, "heads": 10},
    ],
    ids=["gpt2", "llama", "a key head for each query head"],
)
def test_untrained_model_already_looks_back(tokenizer: PreTrainedTokenizerFast, shape: dict[str, Any]) -> None:
    model = build_model(replace(TINY, positions=256, **shape), tokenizer).eval()
    model.set_attn_implementation("eager")
    segment = torch.randint(1, 4096, (1, 60), generator=torch.Generator().manual_seed(0))
    first, second = model(torch.cat([segment, segment], 1), output_attentions=True).attentions
    assert first[0, 0].diagonal(-1).mean() > 0.7
    assert first[0, 1].diagonal(-2).mean() > 0.7
    assert second[0, 0].diagonal(-59).mean() > 0.07  # 0.01 by chance


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("--heads 2", "heads=2"),
        ("--steps 0", "steps=0"),
        ("--layers 1", "layers=1"),
        ("--start nowhere", "start='nowhere'"),
        ("--book-share 2", "book_share=2.0"),
        ("--shape t5", "shape='t5': expected gpt2 or llama"),
        ("--shape llama --kv-heads -2", "kv_heads=-2"),
        ("--kv-heads 2", "kv_heads=2: expected a divisor of heads=4, and shape=llama"),
        ("--kept-out a.txt", "kept_out='a.txt': there are no books"),
        ("--books /nowhere --positions 64", "no folder"),
    ],
)
def test_bad_settings_are_named(arguments: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=named):
        main(["--out", str(tmp_path), *arguments.split()])


def test_schedules(tokenizer: PreTrainedTokenizerFast) -> None:
    assert schedule("0:128,400:256") == ((0, 128), (400, 256))
    assert schedule("0:0.35") == ((0, 0.35),)
    settings = Settings(steps=100, cooldown=20, warmup=10)
    rates = [settings.learning_rate(step) / settings.rate for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:81] == [1.0] * 72
    assert all(late < early for early, late in pairwise(rates[80:]))
    assert 0 < rates[-1] < 0.05
    assert [Settings().length(step) for step in (0, 299, 300, 799, 800, 1500)] == [128, 128, 256, 256, 512, 1024]
