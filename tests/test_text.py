"""The generated documents and the split of the standard library: reproducible, of their lengths, without leaks."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sketch_eval import bundled
from sketch_eval.errors import UsageError
from sketch_eval.text import datasets, stdlib
from sketch_eval.text.recall import recall, units
from sketch_eval.text.words import ANSWERS, DEEDS, FILLER, KEYS


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(bundled.path())


def test_recall_documents_are_the_same_bytes_everywhere() -> None:
    made = [
        recall(f"0 {number}", depth, 900, needles) for number in range(5) for depth in (0, 0.5) for needles in (1, 4)
    ]
    assert (
        hashlib.sha256(repr(made).encode()).hexdigest()
        == "7d0b8c37aafd051f0c8fed003dc5c464b2d5dbf4b525e08d9ce0526f42767d9e"
    )


@given(seed=st.text(max_size=8), depth=st.floats(0, 1), length=st.integers(120, 1000), needles=st.integers(1, 10))
@settings(max_examples=60)
def test_recall_plants_at_depth_and_never_leaks(seed: str, depth: float, length: int, needles: int) -> None:
    document = recall(seed, depth, length, needles)
    room = length - units(document.prompt)
    assert 0 <= room < 20
    before, after = document.prompt.split(f" {document.answer}.")  # the answer stands there once
    assert document.prompt.endswith(" is")
    question = document.prompt[document.prompt.rindex("The code word") :]
    assert before.endswith(question)
    facts = sum(before.count(f" {word}.") for word in document.candidates)
    body = units(document.prompt) - (needles + 1) * units(question) - 2 * needles
    assert abs(units(before) - units(question) - facts * (units(question) + 2) - depth * body) < 20 + 0.1 * body
    assert document.answer in document.candidates
    assert len(set(document.candidates)) == 10
    assert set(document.candidates) <= set(ANSWERS)
    assert sum(word in document.prompt.replace(".", " ").split() for word in ANSWERS) == needles
    assert not set(ANSWERS) & set(after.replace(".", " ").split()) or needles > 1


def test_recall_answers_are_one_token_and_documents_fit(tokenizer: PreTrainedTokenizerFast, shared: Path) -> None:
    assert len(set(KEYS)) == len(KEYS)
    assert not set(FILLER) & set(ANSWERS)
    for loaded in (tokenizer, AutoTokenizer.from_pretrained(shared / "data" / "gpt2-tokenizer")):
        assert all(len(loaded(f" {word}").input_ids) == 1 for word in ANSWERS + KEYS + DEEDS)
        for depth in (0.0, 0.75):
            for row in datasets.recall(depth, documents=10)["test"]:
                assert 850 <= len(loaded(row["prompt"]).input_ids) < 1000
                assert row["choices"][row["answer"]] in row["prompt"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [((-0.1,), "depth=-0.1"), ((1.5,), "depth=1.5"), ((0.5, 20, 900, 11), "needles=11"), ((0.5, 20, 5), "length=5")],
)
def test_recall_refuses(arguments: tuple[float, *tuple[int, ...]], named: str) -> None:
    depth, *rest = arguments
    with pytest.raises(UsageError, match=named):
        datasets.recall(depth, *rest)


def test_heldout_modules_are_a_tenth_and_apart() -> None:
    train, heldout = stdlib.documents("train"), stdlib.documents("heldout")
    assert not {name for name, _ in train} & {name for name, _ in heldout}
    assert not {text for _, text in train} & {text for _, text in heldout}
    assert 0.05 < len(heldout) / (len(train) + len(heldout)) < 0.15
    assert stdlib.is_heldout("socket")
    assert not stdlib.is_heldout("argparse")
    assert not any(name.startswith(("test", "idlelib", "encodings")) for name, _ in train)
    with pytest.raises(UsageError, match="split='dev'"):
        stdlib.documents("dev")  # type: ignore[arg-type]


def test_excerpts_are_long_in_both_tokenizers_and_cut_at_line_ends(
    tokenizer: PreTrainedTokenizerFast, shared: Path
) -> None:
    whole = dict(stdlib.documents("heldout"))
    excerpts = stdlib.excerpts()
    assert len(excerpts) >= 16
    for loaded in (tokenizer, AutoTokenizer.from_pretrained(shared / "data" / "gpt2-tokenizer")):
        for name, text in excerpts:
            assert whole[name].startswith(text)
            assert text.endswith("\n")
            assert 5000 <= len(text) < 5400
            assert len(loaded(text).input_ids) > 1024
    sizes = [len(tokenizer(text).input_ids) for _, text in excerpts]
    assert sorted(sizes)[len(sizes) // 2] < 2048
