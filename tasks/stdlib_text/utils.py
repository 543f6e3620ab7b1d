"""The task's data and scores. What lm-eval adds to the arguments of ``dataset`` (its metadata) is not needed."""

from __future__ import annotations

from typing import Any

from datasets import DatasetDict

from sketch_eval.text import datasets


def dataset(**_: Any) -> DatasetDict:
    """The excerpts, as split "test"."""
    return datasets.stdlib_text()


def process_results(doc: dict[str, str], results: list[float]) -> dict[str, tuple[float, int]]:
    """(log-likelihood in nats, words or bytes it is spread over), as lm-eval's own wikitext task counts them."""
    (loglikelihood,) = results
    words, size = len(doc["page"].split()), len(doc["page"].encode())
    return {
        "word_perplexity": (loglikelihood, words),
        "byte_perplexity": (loglikelihood, size),
        "bits_per_byte": (loglikelihood, size),
    }
