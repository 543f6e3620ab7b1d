"""Intervals for scores over documents: a seeded bootstrap, paired where two cells answered the same documents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95


Kind = Literal["mean", "perplexity", "bits"]


@dataclass(frozen=True)
class Score:
    """One metric of one run, by document.

    Attributes:
        totals: [documents] what the metric sums: a number a document, or log-likelihoods in nats.
        weights: [documents] what it divides by: ones, or the tokens, bytes or words of each document.
        kind: the score is total/weight (`mean`), exp of minus that (`perplexity`), or minus that in bits (`bits`).
    """

    totals: NDArray[np.float64]
    weights: NDArray[np.float64]
    kind: Kind = "mean"

    @classmethod
    def mean(cls, values: list[Any]) -> Score:
        """The mean of a number a document; a document whose value is None weighs nothing."""
        weights = np.asarray([value is not None for value in values], np.float64)
        return cls(np.asarray([value or 0.0 for value in values], np.float64), weights)

    @classmethod
    def perplexity(cls, values: list[float]) -> Score:
        """The perplexity of one log-likelihood in nats a document."""
        return cls(np.asarray(values, np.float64), np.ones(len(values)), "perplexity")

    @classmethod
    def weighted(cls, pairs: list[tuple[float, float]], kind: Kind = "perplexity") -> Score:
        """Of (log-likelihood in nats, tokens, bytes or words) pairs, one a document."""
        totals, weights = np.asarray(pairs, np.float64).reshape(-1, 2).T
        return cls(totals, weights, kind)

    def of(self, picks: NDArray[np.intp]) -> NDArray[np.float64]:
        """The score of each row of ``picks``, indices of documents."""
        ratio = self.totals[picks].sum(-1) / self.weights[picks].sum(-1)
        if self.kind == "bits":
            return -ratio / np.log(2)
        return np.exp(-ratio) if self.kind == "perplexity" else ratio

    @property
    def documents(self) -> int:
        """How many documents count."""
        return int((self.weights > 0).sum())

    @property
    def value(self) -> float:
        """The score of all documents."""
        return float(self.of(np.arange(len(self.totals))))


AGGREGATIONS: dict[str, Callable[[list[Any]], Score]] = {
    "mean": Score.mean,
    "known_mean": Score.mean,
    "perplexity": Score.perplexity,
    "weighted_perplexity": Score.weighted,
    "bits_per_byte": lambda pairs: Score.weighted(pairs, "bits"),
}
"""lm-eval's aggregations of documents' values, by their function's name, that a score can be made of."""


def average(scores: list[Score]) -> Score:
    """The score of several runs over the same documents (hash seeds): each document's total is the runs' mean.

    Raises:
        ValueError: the runs are not of the same documents or of one kind.
    """
    for score in scores:
        _check_pair(score, scores[0])
    return Score(np.mean([score.totals for score in scores], axis=0), scores[0].weights, scores[0].kind)


@lru_cache(maxsize=1)  # Drawing takes longer than scoring, and a task's cells all want the same.
def resamples(documents: int, seed: int = 0, count: int = RESAMPLES) -> NDArray[np.intp]:
    """[count, documents] indices drawn with replacement, read-only; raises ValueError where there are no documents."""
    if documents < 1:
        raise ValueError("no documents to resample")
    picks = np.random.default_rng(seed).integers(documents, size=(count, documents))
    picks.flags.writeable = False
    return picks


def interval(score: Score, seed: int = 0) -> tuple[float, float]:
    """The 95% percentile interval of a score over documents."""
    return _percentiles(score.of(_picks(score, seed)))


def difference(score: Score, base: Score, seed: int = 0) -> tuple[float, float, float]:
    """(score over base - 1 in percent, and the ends of its 95% interval), each resample of the same documents in both.

    Not a number where the base is 0, and without an interval where it is in more than a hundredth of the resamples, of
    which the others would be no fair sample. Raises ValueError where the two are not of the same documents or kind.
    """
    _check_pair(score, base)
    picks = _picks(score, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = 100 * (score.of(picks) / base.of(picks) - 1)
        all_documents = 100 * (np.float64(score.value) / base.value - 1)
    return float(all_documents) if np.isfinite(all_documents) else float("nan"), *_percentiles(drawn)


def _picks(score: Score, seed: int) -> NDArray[np.intp]:
    """Resamples of the documents that count."""
    counted = np.flatnonzero(score.weights)
    return counted[resamples(len(counted), seed)]


def _check_pair(score: Score, base: Score) -> None:
    if score.kind != base.kind or not np.array_equal(score.weights, base.weights):
        raise ValueError("two scores can be paired only on the same documents and of one kind")


def _percentiles(drawn: NDArray[np.float64]) -> tuple[float, float]:
    """The ends of the middle 95%, or nothing where more than 1% of the draws are no number."""
    known = drawn[np.isfinite(drawn)]
    if known.size < 0.99 * drawn.size or not known.size:
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
