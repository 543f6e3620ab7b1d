"""Perplexity by position: where in a text a bounded cache begins to cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset

from sketch_eval.errors import UsageError
from sketch_eval.text import stdlib
from sketch_eval.text.fitting import Ruler, read_folder, ruler

ENDS = (64, 128, 256, 512, 1024)  # of the buckets, in tokens from the start of the text
SLACK = 16  # tokens that a cut may come early, and that are read beyond the last
UNITS = ("token", "byte", "word")


def document(measure: Ruler, name: str, ids: list[int]) -> dict[str, Any] | None:
    """The beginnings of a text that end where the buckets do, as requests without context.

    The likelihood of a bucket is the difference of two neighbours': exact, since a model and its cache see a text from
    left to right. A cut comes up to 16 tokens early where the tokenizer would join what it parts; `token`, `byte` and
    `word` say how long the buckets are. None where there is no such cut, or the text is too short.
    """
    ids = measure.encode(measure.tokenizer.decode(ids))
    texts, ends = [], []
    for end in ENDS:
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


def windows(measure: Ruler, texts: Iterable[tuple[str, str]], most: int) -> Iterator[dict[str, Any]]:
    """Documents from up to ``most`` windows of each (name, text), evenly spaced and apart from each other."""
    size = ENDS[-1] + SLACK
    for name, text in texts:
        ids = measure.encode(text)
        count = min(most, len(ids) // size)
        for number in range(count):
            start = number * (len(ids) // count)
            made = document(measure, f"{name} from token {start}", ids[start : start + size])
            if made is not None:
                yield made


def dataset(
    text_folder: str | None = None, hub: dict[str, str] | None = None, count: int = 50, **model: Any
) -> DatasetDict:
    """What lm-eval's task asks for: up to ``count`` documents of 1024 tokens, as split "test".

    text_folder: whose .txt files to read, as many windows of each as make up the count. hub: a data set on the hub,
    `path` and `name` as `load_dataset` takes them, and `field`, the column of the text; the first ``count`` documents
    of its split "test" that are long enough give a window each. Without either, the first 1024 tokens of held-out
    modules of the standard library. Raises UsageError for a model with fewer than 1024 positions, texts that are all
    shorter, and as `read_folder`.
    """
    measure = ruler(**{name: model[name] for name in ("pretrained", "tokenizer", "max_length") if name in model})
    measure.check(ENDS[-1])
    texts: Iterable[tuple[str, str]]
    if text_folder is not None:
        files = read_folder(text_folder)
        texts, most = files, -(-count // len(files))
    elif hub is not None:
        rows = load_dataset(hub["path"], hub.get("name"), split="test")
        texts, most = ((f"{hub['path']} {number}", row[hub["field"]]) for number, row in enumerate(rows)), 1
    else:
        texts, most = stdlib.excerpts(), 1
    rows = [row for row, _ in zip(windows(measure, texts, most), range(count), strict=False)]
    if not rows:
        where = f"text_folder={text_folder!r}" if text_folder is not None else f"hub={hub!r}"
        raise UsageError(f"{where}: no text of {ENDS[-1] + SLACK} tokens; expected longer texts")
    return DatasetDict({"test": Dataset.from_list(rows)})


def process_results(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, tuple[float, int]]:
    """(log-likelihood in nats, units it is spread over), of each bucket and of the whole, by token, byte and word."""
    totals = [likelihood for likelihood, _ in results]
    scores = {f"{unit}_perplexity": (totals[-1], sum(doc[unit])) for unit in UNITS}
    start = 0
    for number, end in enumerate(ENDS):
        likelihood = totals[number] - (totals[number - 1] if number else 0.0)
        for unit in UNITS:
            scores[f"{unit}_perplexity_{start}_{end - 1}"] = (likelihood, max(doc[unit][number], 1))
        start = end
    return scores
