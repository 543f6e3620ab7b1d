"""Generated documents that plant a fact, bury it in filler and ask for it at the end: the same on every platform."""

from __future__ import annotations

import re
from random import Random
from typing import NamedTuple

from sketch_eval.errors import UsageError
from sketch_eval.text.words import ANSWERS, FILLER, KEYS, PLACES, between, draw, pick, sentence

CHOICES = 10


class Document(NamedTuple):
    """A prompt that ends in an unfinished sentence, the word that finishes it, and ten words to choose from.

    The continuation to score is a space and the word. ``depth`` is the share of the filler that precedes the fact.
    """

    prompt: str
    answer: str
    candidates: tuple[str, ...]
    depth: float


def units(text: str) -> int:
    """Words, single digits and punctuation marks: the number of tokens, for text made of this package's words."""
    return len(re.findall(r"[A-Za-z]+|\d|[^\w\s]|\n", text))


def code_question(place: str) -> str:
    """The unfinished sentence that asks for a place's code word; with the word and a full stop it is the fact."""
    return f"The code word of the {place} is"


def passkey_question(place: str | None = None) -> str:
    """The unfinished sentence that asks for the one pass key, or for that of a place."""
    return "The pass key is" if place is None else f"The pass key of the {place} is"


def digits(rng: Random, count: int = 5) -> str:
    """``count`` random digits."""
    return "".join(pick(rng, "0123456789") for _ in range(count))


def recall(seed: str, depth: float, length: int = 900, needles: int = 1) -> Document:
    """A document of about ``length`` units (at most 20 under, never over) that asks for one planted code word.

    seed: any text; the same seed gives the same bytes on every platform. depth: 0 (the fact is the first sentence) to 1
    (just before the question). needles: the facts planted; all but one are about other places, with other answers, at
    random depths, and their answers are among the candidates. The answer word stands in the document once.
    Raises UsageError for a depth outside 0..1 or a length with no room for the facts.
    """
    if not 0 <= depth <= 1:
        raise UsageError(f"depth={depth!r}: expected a number from 0 to 1")
    if not 1 <= needles <= CHOICES:
        raise UsageError(f"needles={needles!r}: expected 1 to {CHOICES}")
    rng = Random(f"recall {seed} {float(depth)} {length} {needles}")
    places, choices = draw(rng, PLACES, needles), draw(rng, ANSWERS, CHOICES)
    facts = [f"{code_question(place)} {answer}." for place, answer in zip(places, choices, strict=False)]
    question = code_question(places[0])
    room = length - units(" ".join([*facts, question]))
    if room < 0:
        raise UsageError(f"length={length!r}: expected at least {length - room} for {needles} facts and the question")
    body = filler(rng, room)
    at = round(depth * len(body))
    order = sorted([(at, facts[0]), *((between(rng, 0, len(body)), fact) for fact in facts[1:])], reverse=True)
    for where, fact in order:
        body.insert(where, fact)
    candidates = tuple(draw(rng, choices, CHOICES))
    return Document(" ".join([*body, question]), choices[0], candidates, depth)


def filler(rng: Random, room: int) -> list[str]:
    """Sentences that fill ``room`` units as far as whole sentences go."""
    body: list[str] = []
    while True:
        line = sentence(rng)
        room -= units(line)
        if room < 0:
            return body
        body.append(line)


def pairs(rng: Random, count: int) -> list[tuple[str, str]]:
    """``count`` (key, value) pairs for a list of lines ``key: value``; the keys differ, values may repeat."""
    return [(key, pick(rng, ANSWERS)) for key in draw(rng, KEYS, count)]


def segment(rng: Random, count: int) -> list[str]:
    """``count`` random words with nothing to predict one from another."""
    return [pick(rng, FILLER + ANSWERS) for _ in range(count)]
