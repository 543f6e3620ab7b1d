"""Perplexity by position: where in a text a bounded cache begins to cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset

from sketch_eval.errors import UsageError, first_line
from sketch_eval.text import stdlib
from sketch_eval.text.arguments import document_count
from sketch_eval.text.fitting import Ruler, read_folder, ruler

FIRST = 64  # tokens of the first bucket; each of the others ends twice as far from the start of the text
SLACK = 16  # tokens that a cut may come early, and that are read beyond the last
CHARACTERS = 5000 / 1024  # a token, in what is read of a module: more than its tokens have, on the whole
MOST_CHARACTERS = 32  # a token, in what is read for a window: far more than any text has
UNITS = ("token", "byte", "word")


def ends_of(buckets: int) -> list[int]:
    """Where so many buckets end, in tokens from the start of the text."""
    return [FIRST * 2**number for number in range(buckets)]


def document(measure: Ruler, name: str, ids: list[int], buckets: int) -> dict[str, Any] | None:
    """The beginnings of a text that end where the buckets do, as requests without context.

    The likelihood of a bucket is the difference of two neighbours': exact, since a model and its cache see a text from
    left to right. A cut comes up to 16 tokens early where the tokenizer would join what it parts; `token`, `byte` and
    `word` say how long the buckets are. None where there is no such cut, or the text is too short.
    """
    ids = measure.encode(measure.tokenizer.decode(ids))
    texts, ends = [], []
    for end in ends_of(buckets):
        if len(ids) < end:
            return None
        for cut in range(end, end - SLACK, -1):
            text = measure.tokenizer.decode(ids[:cut])
            if measure.encode(text) == ids[:cut]:
                break
        else:
            return None
        texts.append(text)
        ends.append(cut)
    lengths = {
        "token": ends,
        "byte": [len(text.encode()) for text in texts],
        "word": [len(text.split()) for text in texts],
    }
    sizes = {
        unit: [now - before for before, now in zip([0, *totals], totals, strict=False)]
        for unit, totals in lengths.items()
    }
    return {"name": name, "contexts": [""] * len(texts), "continuations": texts, **sizes}


def windows(measure: Ruler, texts: Iterable[tuple[str, str]], most: int, length: int) -> Iterator[dict[str, Any]]:
    """Documents of ``length`` tokens from up to ``most`` windows of each (name, text), evenly spaced and apart.

    A window starts at a line's start, where there is one with room after it.
    """
    size, buckets = length + SLACK, (length // FIRST).bit_length()
    for name, text in texts:
        count = min(most, len(measure.encode(text)) // size)
        for number in range(count):
            start, end = (len(text) * part // count for part in (number, number + 1))
            line = text.find("\n", start, end) + 1 if number else 0
            for at in [line, start] if line else [start]:
                ids = measure.encode(text[at : min(end, at + size * MOST_CHARACTERS)])[:size]
                made = document(measure, f"{name} from character {at}", ids, buckets)
                if made is not None:
                    yield made
                    break


def _hub(path: str, field: str, name: str | None = None) -> Iterator[tuple[str, str]]:
    """(name, text) of a hub data set's split "test"."""
    try:
        rows = load_dataset(path, name, split="test")
    except Exception as error:  # of the hub's client, its HTTP library, the file system, or an offline setting
        raise UsageError(
            f"hub: {path!r} could not be loaded ({first_line(error)}); check the network, or use long_text, which "
            "needs none"
        ) from error
    yield from ((f"{path} {number}", row[field]) for number, row in enumerate(rows))


def dataset(
    text_folder: Any = None, hub: dict[str, str] | None = None, count: Any = 50, length: int = 1024, **model: Any
) -> DatasetDict:
    """What lm-eval's task asks for: up to ``count`` documents of ``length`` tokens, as split "test".

    text_folder: whose .txt files to read, as many windows of each as make up the count. hub: a data set on the hub,
    `path` and `name` as `load_dataset` takes them, and `field`, the column of the text; the first ``count`` documents
    of its split "test" that are long enough give a window each. Without either, the first tokens of held-out modules of
    the standard library. length: 64 times a power of two. ``model`` holds the model's arguments, as `ruler` takes them.
    Raises UsageError for a model with fewer positions, texts that are all shorter, a hub that cannot be reached or is
    asked for with a folder, a count below 1, and as `read_folder`.
    """
    count = document_count(count)
    if text_folder is not None and hub is not None:
        raise UsageError(f"text_folder: this task reads {hub['path']} from the hub; long_text reads folders")
    measure = ruler(**model)
    measure.check(length)
    texts: Iterable[tuple[str, str]]
    if text_folder is not None:
        files = read_folder(text_folder)
        texts, most = files, -(-count // len(files))
    elif hub is not None:
        texts, most = _hub(**hub), 1
    else:
        texts, most = stdlib.excerpts(round(CHARACTERS * length)), 1
    rows = [row for row, _ in zip(windows(measure, texts, most, length), range(count), strict=False)]
    if not rows:
        where = f"text_folder={text_folder!r}" if text_folder is not None else f"hub={hub!r}"
        raise UsageError(f"{where}: no text of {length + SLACK} tokens; expected longer texts")
    return DatasetDict({"test": Dataset.from_list(rows)})


def process_results(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, tuple[float, int]]:
    """(log-likelihood in nats, units it is spread over), of each bucket and of the whole, by token, byte and word."""
    totals = [likelihood for likelihood, _ in results]
    scores = {f"{unit}_perplexity": (totals[-1], sum(doc[unit])) for unit in UNITS}
    start = 0
    for number, end in enumerate(ends_of(len(totals))):
        likelihood = totals[number] - (totals[number - 1] if number else 0.0)
        for unit in UNITS:
            scores[f"{unit}_perplexity_{start}_{end - 1}"] = (likelihood, max(doc[unit][number], 1))
        start = end
    return scores
