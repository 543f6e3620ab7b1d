"""Facts planted at a depth of a text of an exact length, and asked for at its end: pass key, key-value list, needles.

They are worded as the drills that the bundled model is trained on (`sketch_eval.train.mixture`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from datasets import Dataset, DatasetDict

from sketch_eval.errors import UsageError
from sketch_eval.text.fitting import Ruler, filler, ruler
from sketch_eval.text.recall import CHOICES, Document, code_question, digits, pairs, passkey_question
from sketch_eval.text.words import ANSWERS, KEYS, PLACES, draw

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
LIST_FREE = 40  # tokens that a key-value list leaves to filler, so that any length can be met

Maker = Callable[[Ruler, Random, float, int, str | None], Document]


def passkey(measure: Ruler, rng: Random, depth: float, length: int, text_folder: str | None) -> Document:
    """One pass key of five digits; nine others to choose from, which the text does not hold."""
    choices: list[str] = []
    while len(choices) < CHOICES:
        choices += [key for key in [digits(rng)] if key not in choices]
    question = passkey_question()
    return _planted(measure, rng, depth, length, text_folder, choices, [f"{question} {choices[0]}."], question)


def needles(measure: Ruler, rng: Random, depth: float, length: int, text_folder: str | None) -> Document:
    """Ten code words of ten places, one asked for: every candidate is in the text, the others at random depths."""
    choices, places = draw(rng, ANSWERS, CHOICES), draw(rng, PLACES, CHOICES)
    facts = [f"{code_question(place)} {answer}." for place, answer in zip(places, choices, strict=True)]
    return _planted(measure, rng, depth, length, text_folder, choices, facts, code_question(places[0]))


def kv(measure: Ruler, rng: Random, depth: float, length: int, text_folder: str | None) -> Document:
    """A list of ``key: value`` lines, as many as fit or as there are keys, after filler; one key comes again."""
    lines, spent = [], LIST_FREE
    known = pairs(rng, len(KEYS))
    for (key, value), cost in zip(known, measure.counts([f"{k}: {v}\n" for k, v in known]), strict=True):
        spent += cost
        if spent > length:
            break
        lines.append((key, value))
    if len({value for _, value in lines}) < CHOICES:
        raise UsageError(f"length={length!r}: expected more, for a list of {CHOICES} different values")
    key, answer = lines[round(depth * (len(lines) - 1))]
    others = sorted({value for _, value in lines} - {answer})
    candidates = draw(rng, [answer, *draw(rng, others, CHOICES - 1)], CHOICES)
    longest = _longest(measure, candidates)

    def write(body: list[str]) -> str:
        listed = "".join(f"{k}: {v}\n" for k, v in lines)
        return (" ".join(body) + "\n" if body else "") + listed + f"{key}:"

    body = measure.fill(length, filler(rng, text_folder, tuple(candidates)), lambda body: f"{write(body)} {longest}")
    return Document(write(body), answer, tuple(candidates), depth)


def _planted(
    measure: Ruler,
    rng: Random,
    depth: float,
    length: int,
    text_folder: str | None,
    choices: list[str],
    facts: list[str],
    question: str,
) -> Document:
    """Filler with the first fact at the depth and the others anywhere; the first choice is the answer."""
    candidates = tuple(draw(rng, choices, CHOICES))
    depths = [depth, *(rng.random() for _ in facts[1:])]
    # From the last fact to the first, so that no insertion moves a later one. Random depths are below 1: at depth 0
    # nothing precedes the fact that is asked for, at depth 1 nothing follows it.
    order = sorted(range(len(facts)), key=lambda number: depths[number], reverse=True)

    def write(body: list[str]) -> str:
        lines = list(body)
        for number in order:
            lines.insert(round(depths[number] * len(body)), facts[number])
        return " ".join([*lines, question])

    longest = _longest(measure, candidates)
    body = measure.fill(length, filler(rng, text_folder, candidates), lambda body: f"{write(body)} {longest}")
    return Document(write(body), choices[0], candidates, depth)


def _longest(measure: Ruler, candidates: Iterable[str]) -> str:
    """The candidate of most tokens."""
    listed = list(candidates)
    counts = measure.counts([f" {candidate}" for candidate in listed])
    return listed[counts.index(max(counts))]


MAKERS: dict[str, Maker] = {"passkey": passkey, "kv": kv, "needles": needles}


def documents(
    kind: str,
    measure: Ruler,
    lengths: Iterable[int],
    depths: Iterable[float] = DEPTHS,
    text_folder: str | None = None,
    count: int = 50,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """``count`` documents of each length as rows; neighbours differ in depth, so that the first few are a fair sample.

    With the longest candidate, every document has exactly its length in the ruler's tokens. The same seed and tokenizer
    give the same bytes on every platform. Raises UsageError for a depth outside 0..1, no lengths, a length beyond the
    model's positions or with no room for the facts, and as `read_folder`.
    """
    depths, lengths = tuple(depths), tuple(lengths)
    for depth in depths:
        if not isinstance(depth, int | float) or not 0 <= depth <= 1:
            raise UsageError(f"depths={list(depths)!r}: expected numbers from 0 to 1")
    if not lengths or not depths:
        raise UsageError(f"max_seq_lengths={list(lengths)!r}, depths={list(depths)!r}: expected at least one of each")
    rows = []
    for number in range(count):
        for length in lengths:
            depth = depths[number % len(depths)]
            rng = Random(f"{kind} {seed} {number} {float(depth)} {length}")
            prompt, answer, candidates, _ = MAKERS[kind](measure, rng, depth, length, text_folder)
            place = candidates.index(answer)
            rows.append(
                {
                    "prompt": prompt,
                    "choices": list(candidates),
                    "answer": place,
                    "depth": float(depth),
                    "length": length,
                }
            )
    return rows


def dataset(
    kind: str,
    length: int | None = None,
    max_seq_lengths: Iterable[int] | None = None,
    depths: Iterable[float] = DEPTHS,
    text_folder: str | None = None,
    **model: Any,
) -> DatasetDict:
    """What lm-eval's task asks for: the documents of one length, or of all of ``max_seq_lengths``, as split "test"."""
    if length is None and not max_seq_lengths:
        raise UsageError(f"max_seq_lengths: {kind}_lengths needs --metadata '{{\"max_seq_lengths\": [2048, 4096]}}'")
    measure = ruler(**{name: model[name] for name in ("pretrained", "tokenizer", "max_length") if name in model})
    lengths = [length] if length is not None else max_seq_lengths or ()
    return DatasetDict({"test": Dataset.from_list(documents(kind, measure, lengths, depths, text_folder))})


def process_results(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float | None]:
    """Whether the answer is the likeliest candidate: as `acc`, and under the nearest of the five depths."""
    likelihoods = [likelihood for likelihood, _ in results]
    right = float(likelihoods.index(max(likelihoods)) == doc["answer"])
    nearest = round(doc["depth"] * 4) / 4
    return {"acc": right, **{f"acc_depth_{depth:.0%}"[:-1]: right if depth == nearest else None for depth in DEPTHS}}


def known_mean(values: list[float | None]) -> float:
    """Mean of the documents of one depth; the others count as None. Not a number where there is none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan
