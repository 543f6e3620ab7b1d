"""Scores over documents: what a metric sums and what it divides by, one document at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["mean", "perplexity", "bits"]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """One metric of one run, by document.

    Attributes:
        totals: [documents] what the metric sums: a number a document, or log-likelihoods in nats.
        weights: [documents] what it divides by: ones, or the tokens, bytes or words of each document.
        kind: the score is total/weight (`mean`), exp of minus that (`perplexity`), or minus that in bits (`bits`).
        rate: whether each document is right or wrong, 1 or 0; of several runs, the share of them that are right.
    """

    totals: Array
    weights: Array
    kind: Kind = "mean"
    rate: bool = False

    @classmethod
    def mean(cls, values: list[Any]) -> Score:
        """The mean of a number a document; a document whose value is None weighs nothing."""
        weights = np.asarray([value is not None for value in values], np.float64)
        rate = all(value is None or value in (0, 1) for value in values)
        return cls(np.asarray([value or 0.0 for value in values], np.float64), weights, rate=rate)

    @classmethod
    def perplexity(cls, values: list[float]) -> Score:
        """The perplexity of one log-likelihood in nats a document."""
        return cls(np.asarray(values, np.float64), np.ones(len(values)), "perplexity")

    @classmethod
    def weighted(cls, pairs: list[tuple[float, float]], kind: Kind = "perplexity") -> Score:
        """Of (log-likelihood in nats, tokens, bytes or words) pairs, one a document."""
        totals, weights = np.asarray(pairs, np.float64).reshape(-1, 2).T
        return cls(totals, weights, kind)

    @property
    def documents(self) -> int:
        """How many documents count."""
        return int((self.weights > 0).sum())

    @property
    def value(self) -> float:
        """The score of all documents."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return float(self.of(self.totals.sum() / self.weights.sum()))

    @property
    def bounded(self) -> bool:
        """Whether every document's value is between 0 and 1, as accuracies and overlaps are."""
        return self.kind == "mean" and bool(((self.totals >= 0) & (self.totals <= self.weights)).all())

    def counted(self) -> tuple[Array, Array]:
        """Totals and weights of the documents that count."""
        kept = self.weights > 0
        return self.totals[kept], self.weights[kept]

    def of(self, ratio: Any) -> Any:
        """The score whose total is so much of its weight."""
        if self.kind == "bits":
            return -ratio / math.log(2)
        return np.exp(-ratio) if self.kind == "perplexity" else ratio


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
        check_pair(score, scores[0])
    totals = np.mean([score.totals for score in scores], axis=0)
    return Score(totals, scores[0].weights, scores[0].kind, all(score.rate for score in scores))


def check_pair(score: Score, base: Score) -> None:
    """Raise a ValueError where two scores are not of the same documents and of one kind."""
    if score.kind != base.kind or not np.array_equal(score.weights, base.weights):
        raise ValueError("two scores can be paired only on the same documents and of one kind")
