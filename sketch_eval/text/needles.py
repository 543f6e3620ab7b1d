"""Facts planted at a depth of a text of an exact length, and asked for at its end: pass key, key-value list, needles.

They are worded as the drills that the bundled model is trained on (`sketch_eval.train.mixture`). Depth is by tokens: a
fact at depth d has that share of the tokens of all else, the question aside, before it, as near as whole lines allow.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from random import Random
from typing import Any

from datasets import Dataset, DatasetDict

from sketch_eval.errors import UsageError
from sketch_eval.text.arguments import document_count, numbers
from sketch_eval.text.fitting import Ruler, filler, place, ruler
from sketch_eval.text.recall import CHOICES, Document, code_question, digits, passkey_question
from sketch_eval.text.words import ANSWERS, FILLER, KEYS, PEOPLE, PLACES, QUALITIES, THINGS, draw, pick

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
LIST_FREE = 32  # tokens that a key-value list leaves to filler, so that any length can be met
TWO_WORDS = [f"{quality} {thing}" for quality in QUALITIES for thing in PLACES + PEOPLE + THINGS]

Maker = Callable[[Ruler, Random, float, int, Any], Document]


def passkey(measure: Ruler, rng: Random, depth: float, length: int, text_folder: Any) -> Document:
    """One pass key of five digits; nine others to choose from, which the text does not hold."""
    choices: list[str] = []
    while len(choices) < CHOICES:
        choices += [key for key in [digits(rng)] if key not in choices]
    question = passkey_question()
    return _planted(measure, rng, depth, length, text_folder, choices, [f"{question} {choices[0]}."], question)


def needles(measure: Ruler, rng: Random, depth: float, length: int, text_folder: Any) -> Document:
    """Ten code words of ten places, one asked for: every candidate is in the text, the others at random depths."""
    choices, places = draw(rng, ANSWERS, CHOICES), draw(rng, PLACES, CHOICES)
    facts = [f"{code_question(place)} {answer}." for place, answer in zip(places, choices, strict=True)]
    return _planted(measure, rng, depth, length, text_folder, choices, facts, code_question(places[0]))


def kv(measure: Ruler, rng: Random, depth: float, length: int, text_folder: Any) -> Document:
    """A list of ``key: value`` lines after a line or two of filler; one key comes again.

    All candidates stand in the list equally often, so that how often a value is listed says nothing.
    """
    lines, costs = _listed(measure, rng, length - LIST_FREE)
    often = Counter(value for _, value in lines)
    peers = Counter(often.values())  # how many values are listed so often
    fair = [at for at, (_, value) in enumerate(lines) if peers[often[value]] >= CHOICES]
    if not fair:
        raise UsageError(f"length={length!r}: expected more, for a list of {CHOICES} different values")
    at = place(costs[:-1], depth)
    if at not in fair:  # its value comes from the few that the last deck dealt, or did not deal
        other = pick(rng, fair)
        lines[at], lines[other] = (lines[at][0], lines[other][1]), (lines[other][0], lines[at][1])
    key, answer = lines[at]
    others = sorted(value for value in often if often[value] == often[answer] and value != answer)
    candidates = draw(rng, [answer, *draw(rng, others, CHOICES - 1)], CHOICES)
    longest = _longest(measure, candidates)

    def write(body: list[str]) -> str:
        listed = "".join(f"{k}: {v}\n" for k, v in lines)
        return (" ".join(body) + "\n" if body else "") + listed + f"{key}:"

    body = measure.fill(length, filler(rng, text_folder, tuple(candidates)), lambda body: f"{write(body)} {longest}")
    return Document(write(body), answer, tuple(candidates), depth)


def _listed(measure: Ruler, rng: Random, room: int) -> tuple[list[tuple[str, str]], list[int]]:
    """(key, value) lines for ``room`` tokens, and the tokens of each. Keys are of one word, of two where those run out.

    Values are dealt from shuffled decks of all of them: none comes again before all have come.
    """
    lines: list[tuple[str, str]] = []
    costs: list[int] = []
    for words in (KEYS, FILLER, TWO_WORDS):
        keys = draw(rng, words, min(len(words), max(room, 0) // 3))  # a line has three tokens and more
        values: list[str] = []
        while len(values) < len(keys):
            values += draw(rng, ANSWERS, len(ANSWERS))
        lines = list(zip(keys, values, strict=False))
        costs = measure.counts([f"{key}: {value}\n" for key, value in lines]) if lines else []
        if sum(costs) >= room:
            break
    kept = bisect_right(list(accumulate(costs)), room)
    return lines[:kept], costs[:kept]


def _planted(
    measure: Ruler,
    rng: Random,
    depth: float,
    length: int,
    text_folder: Any,
    choices: list[str],
    facts: list[str],
    question: str,
) -> Document:
    """Filler with the first fact at the depth and the others anywhere; the first choice is the answer."""
    candidates = tuple(draw(rng, choices, CHOICES))
    # The fact that is asked for comes last: nothing precedes it at depth 0, nothing follows it at depth 1.
    planted = [*((rng.random(), fact) for fact in facts[1:]), (depth, facts[0])]
    known: dict[str, int] = {}

    def costs(lines: list[str]) -> list[int]:
        new = [line for line in lines if line not in known]
        if new:
            known.update(zip(new, measure.counts([f" {line}" for line in new]), strict=True))
        return [known[line] for line in lines]

    def write(body: list[str]) -> str:
        lines = list(body)
        for where, fact in planted:
            lines.insert(place(costs(lines), where), fact)
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
    lengths: Sequence[int],
    depths: Sequence[float] = DEPTHS,
    text_folder: Any = None,
    count: Any = 50,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """``count`` documents of each length as rows; neighbours differ in depth, so that the first few are a fair sample.

    With the longest candidate, every document has exactly its length in the ruler's tokens. The same seed and tokenizer
    give the same bytes on every platform. Raises UsageError for a depth outside 0..1, a count below 1, what is no list
    of lengths or of depths, a length beyond the model's positions or with no room for the facts, and as `read_folder`.
    """
    count = document_count(count)
    depths = numbers("depths", depths, "numbers from 0 to 1")
    lengths = [measure.check(length) for length in numbers("max_seq_lengths", lengths, "lengths")]
    for depth in depths:
        if isinstance(depth, bool) or not isinstance(depth, int | float) or not 0 <= depth <= 1:
            raise UsageError(f"depths={depths!r}: expected numbers from 0 to 1")
    rows = []
    for number in range(count):
        for length in lengths:
            depth = depths[number % len(depths)]
            rng = Random(f"{kind} {seed} {number} {float(depth)} {length}")
            prompt, answer, candidates, _ = MAKERS[kind](measure, rng, depth, length, text_folder)
            choices, right = list(candidates), candidates.index(answer)
            row = {"prompt": prompt, "choices": choices, "answer": right, "depth": float(depth), "length": length}
            rows.append(row)
    return rows


def dataset(
    kind: str,
    length: Any = None,
    max_seq_lengths: Any = None,
    depths: Any = DEPTHS,
    text_folder: Any = None,
    count: Any = 50,
    **model: Any,
) -> DatasetDict:
    """What lm-eval's task asks for: ``count`` documents of each length, as the split "test".

    ``model`` holds the model's arguments, as `ruler` takes them. Raises UsageError as `documents` and `ruler`, and for
    no length.
    """
    if length is None and max_seq_lengths is None:
        raise UsageError(
            f"max_seq_lengths: {kind}_lengths needs --metadata '{{\"max_seq_lengths\": [2048, 4096]}}', or in a grid "
            "metadata: {max_seq_lengths: [2048, 4096]}"
        )
    lengths = max_seq_lengths if length is None else [length]
    return DatasetDict(
        {"test": Dataset.from_list(documents(kind, ruler(**model), lengths, depths, text_folder, count))}
    )


def process_results(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float | None]:
    """Whether the answer is the likeliest candidate: as `acc`, and under the nearest of the five depths."""
    likelihoods = [likelihood for likelihood, _ in results]
    right = float(likelihoods.index(max(likelihoods)) == doc["answer"])
    nearest = round(doc["depth"] * 4) / 4
    return {"acc": right, **{f"acc_depth_{depth:.0%}"[:-1]: right if depth == nearest else None for depth in DEPTHS}}


def known_mean(values: list[float | None]) -> float | str:
    """Mean of the documents of one depth; the others count as None. Without any it is lm-eval's own "N/A"."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else "N/A"
