"""The stress cases of a sketch: text that changes its subject all the time, and text that repeats itself."""

from __future__ import annotations

from random import Random

from datasets import Dataset, DatasetDict

from sketch_eval.errors import UsageError
from sketch_eval.text.recall import digits, pairs, segment, units
from sketch_eval.text.words import between, sentence

LENGTH = 900  # units: up to a tenth more in tokens of the bundled model, so that a text fits in one window
TOPIC = 40  # units, about


def drift(seed: str) -> str:
    """A text whose subject and form change every 40 units or so: what mattered in one part is of no use in the next.

    A part is prose that keeps to two sentences' words, a list of pairs, random words said twice, or numbers.
    """
    rng = Random(f"drift {seed}")
    text, form = "", 3
    while True:
        form = (form + between(rng, 1, 3)) % 4  # another one each time
        if form == 0:
            first, second = sentence(rng), sentence(rng)
            part = f"{first} {second} {first} {second}"
        elif form == 1:
            known = pairs(rng, TOPIC // 8)
            part = "".join(f"{key}: {value}\n" for key, value in [*known, *known])
        elif form == 2:
            part = " ".join(segment(rng, TOPIC // 2) * 2) + "."
        else:
            numbers = [digits(rng, 3) for _ in range(TOPIC // 8)]
            part = ", ".join([*numbers, *numbers]) + "."
        part = part.strip() + "\n"
        if units(text) + units(part) > LENGTH:
            return text
        text += part


def repeat(seed: str) -> str:
    """One to five sentences, over and over: the same keys come again and again, and any one copy is enough."""
    rng = Random(f"repeat {seed}")
    motif = " ".join(sentence(rng) for _ in range(between(rng, 1, 5)))
    copies = LENGTH // units(motif)
    return " ".join([motif] * copies)


def dataset(kind: str, count: int = 50, seed: int = 0) -> DatasetDict:
    """What lm-eval's task asks for: ``count`` texts ("drift" or "repeat") as the column `page` of the split "test"."""
    if kind not in ("drift", "repeat"):
        raise UsageError(f"kind={kind!r}: expected 'drift' or 'repeat'")
    write = drift if kind == "drift" else repeat
    return DatasetDict({"test": Dataset.from_list([{"page": write(f"{seed} {number}")} for number in range(count)])})
