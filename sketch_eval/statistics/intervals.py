"""Intervals for scores over documents, paired where two cells answered the same documents.

Whatever is a ratio of sums over documents, as perplexities and means are, has a studentised bootstrap interval (Efron
and Tibshirani, 1993, §12.5): each resample is measured in its own standard error. At the numbers of documents that
tables have, such an interval covers the truth about as often as it says, and the percentile bootstrap's does not
(benchmarks/interval_coverage.md). Rates, such as accuracies, have Wilson's score interval (1927), and the paired
difference of two rates Newcombe's (1998, method 10), which hold at rates of 0 and 1. So has a share that is the same in
every document, to which a bootstrap would give no width.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sketch_eval.statistics.scores import Array, Score, check_pair

RESAMPLES = 2000
LEVEL = 0.95
FEWEST = 6
"""Documents below which there are too few different resamples, and Student's t serves."""
TELLING = 16
"""Documents that must differ at all, where not all do: of thousands in which a cap binds three, most resamples hold one
or two of the three, and their standard errors say nothing."""

ROUNDING = 1e-12
"""Relative difference that rounding may make of equal numbers."""

Unit = Literal["percent", "points"]

_NONE = (float("nan"), float("nan"))
_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)


def interval(score: Score, seed: int = 0) -> tuple[float, float]:
    """The 95% interval of a score over documents; not numbers where one document says nothing of others.

    Raises:
        ValueError: no document counts.
    """
    totals, weights = score.counted()
    if score.rate or (score.bounded and not np.ptp(totals)):
        return wilson(totals.sum(), len(totals))
    ends = ratio_interval(totals, weights, seed)
    low, high = sorted(float(score.of(end)) for end in ends)
    return (max(low, 0.0), min(high, 1.0)) if score.bounded else (low, high)


def difference(score: Score, base: Score, seed: int = 0) -> tuple[float, float, float]:
    """What a score is over another one, and the ends of its 95% interval, paired by document; in `unit(score, base)`.

    Not numbers where the base is 0 and the unit percent.

    Raises:
        ValueError: the two are not of the same documents or kind, or no document counts.
    """
    check_pair(score, base)
    (mine, weights), (its, _) = score.counted(), base.counted()
    if unit(score, base) == "points":
        alike = (score.rate and base.rate) or not np.ptp(mine - its)
        ends = newcombe(mine, its) if alike else ratio_interval(mine - its, weights, seed)
        return 100 * (score.value - base.value), 100 * max(ends[0], -1.0), 100 * min(ends[1], 1.0)
    if score.kind == "perplexity":
        # Of one weight in both: the log of the ratio of the perplexities is itself a ratio of sums.
        with np.errstate(over="ignore"):
            low, high = (100 * float(np.expm1(end)) for end in ratio_interval(its - mine, weights, seed))
    elif base.value == 0 or not math.isfinite(base.value):
        return float("nan"), *_NONE
    else:
        low, high = (100 * (end - 1) for end in ratio_interval(mine, its, seed))
    return 100 * (score.value / base.value - 1), low, high


def steps(score: Score, base: Score) -> float:
    """By how many standard errors a score is over another one, paired by document, in what the metric sums.

    That is log-likelihoods for a perplexity, so that more is better there too. It is 0 where the two have the same in
    all documents, up to rounding, and infinite where they are off by one and the same in all of several.

    Raises:
        ValueError: the two are not of the same documents or kind, or no document counts.
    """
    check_pair(score, base)
    (mine, weights), (its, _) = score.counted(), base.counted()
    above = mine - its
    if len(above) < 2 or np.abs(above).max() <= ROUNDING * max(np.abs(mine).max(), np.abs(its).max()):
        return 0.0
    ratio, error, _ = _error(above, weights)
    return ratio / error if error > 0 else math.copysign(math.inf, ratio)


def share(score: Score, floor: Score, ceiling: Score, seed: int = 0) -> tuple[float, float, float]:
    """Which share of the way from a floor to a ceiling a score goes, and its 95% interval (docs/design.md §9).

    Measured in what the metric sums, paired by document: log-likelihoods of a perplexity, right answers of an accuracy.
    Not numbers where the ceiling is not above the floor, beyond doubt at 95%, or where one document says nothing.

    Raises:
        ValueError: the three are not of the same documents or kind, or no document counts.
    """
    check_pair(score, floor)
    check_pair(ceiling, floor)
    (mine, weights), (low, _), (high, _) = score.counted(), floor.counted(), ceiling.counted()
    least, _ = ratio_interval(high - low, weights, seed)
    if not least > 0:
        return float("nan"), *_NONE
    ends = ratio_interval(mine - low, high - low, seed)
    if score.bounded and not np.ptp(mine - low):  # Of answers that are all alike there is no telling.
        ends = _NONE
    return float((mine - low).sum() / (high - low).sum()), *ends


def unit(score: Score, base: Score) -> Unit:
    """Of a difference: `points`, hundredths, for what lies between 0 and 1; else `percent` of the base."""
    return "points" if score.bounded and base.bounded else "percent"


def ratio_interval(above: Array, below: Array, seed: int = 0) -> tuple[float, float]:
    """The 95% interval of Σ above / Σ below over documents; without width where all have the same ratio.

    Args:
        above, below: [documents] what is summed over and under the line.
        seed: of the resamples.

    Raises:
        ValueError: there are no documents.
    """
    count = len(above)
    ratio, error, rest = _error(above, below)
    if count == 1 or not math.isfinite(error):
        return _NONE
    spread = np.abs(rest).max() > ROUNDING * np.abs(above).max()
    if not spread:
        return ratio, ratio
    few = count < FEWEST or np.count_nonzero(above) < min(count, TELLING)
    low, high = _NONE if few else _studentised(rest, below, seed)
    if math.isnan(low):
        high = float(stats.t.ppf((1 + LEVEL) / 2, count - 1))
        low = -high
    return ratio - high * error, ratio - low * error


def _error(above: Array, below: Array) -> tuple[float, float, Array]:
    """Σ above / Σ below, its standard error over documents, and what each document's part is off it."""
    count = len(above)
    if count < 1:
        raise ValueError("no documents to resample")
    ratio = above.sum() / below.sum()
    rest = above - ratio * below
    error = math.sqrt((rest**2).sum() * count / max(count - 1, 1)) / abs(below.sum())
    return float(ratio), error, rest


def _studentised(rest: Array, below: Array, seed: int) -> tuple[float, float]:
    """Quantiles of resampled ratios' distance from the ratio, in standard errors of their own.

    Not numbers where more than a hundredth of the resamples have no such error.
    """
    picks = resamples(len(rest), seed)
    sums = {
        name: values[picks].sum(-1)
        for name, values in {"rest": rest, "below": below, "rr": rest**2, "rb": rest * below, "bb": below**2}.items()
    }
    count = len(rest)
    with np.errstate(divide="ignore", invalid="ignore"):
        off = sums["rest"] / sums["below"]
        squares = (sums["rr"] - 2 * off * sums["rb"] + off**2 * sums["bb"]).clip(min=0)
        distance = off * np.abs(sums["below"]) / np.sqrt(squares * count / (count - 1))
    known = distance[np.isfinite(distance)]
    if known.size < 0.99 * distance.size:
        return _NONE
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def wilson(right: float, count: int) -> tuple[float, float]:
    """Wilson's 95% score interval of a rate of `right` in `count`.

    Raises:
        ValueError: count is 0.
    """
    if count < 1:
        raise ValueError("no documents to resample")
    rate, share = right / count, _Z**2 / count
    middle = (rate + share / 2) / (1 + share)
    reach = _Z / (1 + share) * math.sqrt(rate * (1 - rate) / count + share / count / 4)
    return max(middle - reach, 0.0) if right > 0 else 0.0, min(middle + reach, 1.0) if right < count else 1.0


def newcombe(mine: Array, its: Array) -> tuple[float, float]:
    """The 95% interval of the difference of two rates over the same documents (Newcombe, 1998, method 10).

    Wilson's intervals of the two, put together as if independent but for their correlation.

    Args:
        mine, its: [documents] 0 or 1, or between where runs were averaged, for which it is wide rather than narrow.
    """
    count = len(mine)
    one, other = mine.mean(), its.mean()
    (low, high), (its_low, its_high) = wilson(mine.sum(), count), wilson(its.sum(), count)
    spread = math.sqrt(one * (1 - one) * other * (1 - other))
    together = float((mine * its).mean() - one * other)
    if together > 0:
        together = max(together - 0.5 / count, 0.0)  # His correction for continuity.
    tie = together / spread if spread > 0 else 0.0
    down = (one - low, its_high - other)
    up = (high - one, other - its_low)
    reach = [math.sqrt(max(a**2 - 2 * tie * a * b + b**2, 0.0)) for a, b in (down, up)]
    return max(float(one - other - reach[0]), -1.0), min(float(one - other + reach[1]), 1.0)


@lru_cache(maxsize=1)  # Drawing takes longer than scoring, and a task's cells all want the same.
def resamples(documents: int, seed: int = 0, count: int = RESAMPLES) -> NDArray[np.intp]:
    """[count, documents] indices drawn with replacement, read-only; raises ValueError where there are no documents."""
    if documents < 1:
        raise ValueError("no documents to resample")
    picks = np.random.default_rng(seed).integers(documents, size=(count, documents))
    picks.flags.writeable = False
    return picks
