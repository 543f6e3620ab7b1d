"""Intervals for scores over documents: a seeded bootstrap, paired where two cells answered the same documents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Score:
    """One metric of one run, by document.

    Attributes:
        totals: [documents] what the metric sums: a number a document, or log-likelihoods in nats.
        weights: [documents] what it divides by: ones, or the tokens, bytes or words of each document.
        perplexity: whether the score is exp(-total/weight), and not total/weight.
    """

    totals: NDArray[np.float64]
    weights: NDArray[np.float64]
    perplexity: bool = False

    @classmethod
    def mean(cls, values: list[float]) -> Score:
        """The mean of a number a document."""
        return cls(np.asarray(values, np.float64), np.ones(len(values)))

    @classmethod
    def weighted_perplexity(cls, pairs: list[tuple[float, float]]) -> Score:
        """The perplexity of (log-likelihood in nats, tokens, bytes or words) pairs, one a document."""
        totals, weights = np.asarray(pairs, np.float64).reshape(-1, 2).T
        return cls(totals, weights, perplexity=True)

    def of(self, picks: NDArray[np.intp]) -> NDArray[np.float64]:
        """The score of each row of ``picks``, indices of documents."""
        ratio = self.totals[picks].sum(-1) / self.weights[picks].sum(-1)
        return np.exp(-ratio) if self.perplexity else ratio

    @property
    def value(self) -> float:
        """The score of all documents."""
        return float(self.of(np.arange(len(self.totals))))


def resamples(documents: int, seed: int = 0, count: int = RESAMPLES) -> NDArray[np.intp]:
    """[count, documents] indices drawn with replacement; raises ValueError where there are no documents."""
    if documents < 1:
        raise ValueError("no documents to resample")
    return np.random.default_rng(seed).integers(documents, size=(count, documents))


def interval(score: Score, seed: int = 0) -> tuple[float, float]:
    """The 95% percentile interval of a score over documents."""
    return _percentiles(score.of(resamples(len(score.totals), seed)))


def difference(score: Score, base: Score, seed: int = 0) -> tuple[float, float, float]:
    """(score over base - 1 in percent, and the ends of its 95% interval), each resample of the same documents in both.

    Not a number where the base is 0. Raises ValueError where the two are not of the same documents or of one kind.
    """
    if score.perplexity != base.perplexity or not np.array_equal(score.weights, base.weights):
        raise ValueError("two scores can be paired only on the same documents and of one kind")
    picks = resamples(len(score.totals), seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = 100 * (score.of(picks) / base.of(picks) - 1)
        all_documents = 100 * (np.float64(score.value) / base.value - 1)
    return float(all_documents), *_percentiles(drawn)


def _percentiles(drawn: NDArray[np.float64]) -> tuple[float, float]:
    """The ends of the middle 95%; draws that are no number are left out."""
    known = drawn[np.isfinite(drawn)]
    if not known.size:
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
