"""A random segment, a gap and the segment again: what only a token ``distance`` back can predict."""

from __future__ import annotations

from random import Random
from typing import Any

from datasets import Dataset, DatasetDict

from sketch_eval.errors import UsageError
from sketch_eval.text.fitting import Ruler, ruler
from sketch_eval.text.words import ANSWERS, FILLER, draw, pick

SEGMENT = 32  # tokens
PROBES = 8  # words of the copy, evenly spaced up to the last, that are asked for one by one


def document(measure: Ruler, distance: int, seed: str) -> dict[str, Any]:
    """A text of ``distance`` + 32 one-token words, as requests: the copy after its first word, and eight words.

    The segment's words differ, and none is in the gap: a copy's first word, which is given, says where to look back to.
    Raises UsageError for a distance below 32, or beyond the model's positions, or a tokenizer without one-token words.
    """
    if type(distance) is not int or not SEGMENT <= distance <= measure.positions - SEGMENT:
        raise UsageError(
            f"distance={distance!r}: expected {SEGMENT} to {measure.positions - SEGMENT}, so that the copy ends within "
            f"the {measure.positions} positions of {measure.name}"
        )
    rng = Random(f"induction {seed} {distance}")
    words = measure.single(FILLER + ANSWERS)
    if len(words) <= SEGMENT:
        raise UsageError(f"tokenizer={measure.name!r}: has no English words of one token; expected GPT-2's kind")
    segment = draw(rng, words, SEGMENT)
    others = sorted(set(words) - set(segment))
    text = [*segment, *(pick(rng, others) for _ in range(distance - SEGMENT)), *segment]
    step = SEGMENT // PROBES
    spans = [(distance + 1, len(text)), *((end - 1, end) for end in range(distance + step, len(text) + 1, step))]
    return {
        "contexts": ["".join(f" {word}" for word in text[:start]) for start, _ in spans],
        "continuations": ["".join(f" {word}" for word in text[start:end]) for start, end in spans],
        "distance": distance,
    }


def dataset(distance: int, **model: Any) -> DatasetDict:
    """What lm-eval's task asks for: 50 documents of one distance, as split "test".

    ``model`` holds the model's arguments, as `ruler` takes them. Raises UsageError as `document` and `ruler`.
    """
    measure = ruler(**model)
    return DatasetDict({"test": Dataset.from_list([document(measure, distance, f"0 {n}") for n in range(50)])})


def process_results(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, Any]:
    """Token perplexity of the copy's 31 words; the share of the eight, and whether all 31, were the first choice."""
    (likelihood, whole), *probes = results
    right = sum(first for _, first in probes) / len(probes)
    return {"token_perplexity": (likelihood, SEGMENT - 1), "acc": right, "exact_match": float(whole)}
