"""The generated documents and the library's text as the data sets that lm-eval's task files ask for."""

from __future__ import annotations

from datasets import Dataset, DatasetDict

from sketch_eval.errors import UsageError
from sketch_eval.text import recall as generated
from sketch_eval.text import stdlib


def recall(depth: float, documents: int = 50, length: int = 900, needles: int = 1, seed: int = 0) -> DatasetDict:
    """``documents`` recall documents of one depth as the split "test": prompt, choices, and the answer's place in them.

    Raises UsageError for fewer than one document, and for what `recall.recall` refuses.
    """
    if documents < 1:
        raise UsageError(f"documents={documents!r}: expected 1 or more")
    rows = []
    for number in range(documents):
        prompt, answer, candidates, _ = generated.recall(f"{seed} {number}", depth, length, needles)
        rows.append({"prompt": prompt, "choices": list(candidates), "answer": candidates.index(answer)})
    return DatasetDict({"test": Dataset.from_list(rows)})


def stdlib_text() -> DatasetDict:
    """The excerpts of held-out modules as the split "test": module and page (the text)."""
    rows = [{"module": name, "page": text} for name, text in stdlib.excerpts()]
    return DatasetDict({"test": Dataset.from_list(rows)})


def rolling_scores(doc: dict[str, str], results: list[float]) -> dict[str, tuple[float, int]]:
    """(log-likelihood in nats, words or bytes it is spread over), as lm-eval's own wikitext task counts them."""
    (likelihood,) = results
    words, size = len(doc["page"].split()), len(doc["page"].encode())
    return {
        "word_perplexity": (likelihood, words),
        "byte_perplexity": (likelihood, size),
        "bits_per_byte": (likelihood, size),
    }
