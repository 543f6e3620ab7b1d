"""Intervals: known values, known intervals, coverage, pairing."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from lm_eval.api.registry import get_aggregation
from numpy.random import Generator
from scipy import stats

from sketch_eval.statistics import (
    AGGREGATIONS,
    Array,
    Score,
    average,
    difference,
    interval,
    newcombe,
    resamples,
    share,
    unit,
    wilson,
)


def test_a_mean_is_the_mean_and_its_interval_that_of_the_normal_law() -> None:
    score = Score.mean([0.0, 1.0] * 200)
    assert (score.value, score.rate) == (0.5, True)
    # A coin thrown 400 times: ± 1.96 · 0.5 / 20.
    assert interval(score) == pytest.approx((0.5 - 0.049, 0.5 + 0.049), abs=0.001)
    measured = Score.mean([2.0, 4.0] * 200)
    assert not measured.rate
    assert interval(measured) == pytest.approx((3 - 0.098, 3 + 0.098), abs=0.006)


def test_a_perplexity_is_weighted_by_tokens() -> None:
    # 10 tokens at 1/2 each and 30 at 1/4 each: exp of the mean over 40 tokens, not over the two documents.
    score = Score.weighted([(-10 * math.log(2), 10), (-30 * math.log(4), 30)])
    assert score.value == pytest.approx(2 ** (10 / 40 + 2 * 30 / 40))
    low, high = interval(score)
    assert low < 2 < 4 < high  # Of two documents little is known.


DRAWS: dict[str, tuple[Callable[[Generator, int], Array], float]] = {
    "normal": (lambda rng, n: rng.normal(0.1, 0.05, n), 0.1),
    "skewed": (lambda rng, n: rng.lognormal(0, 0.6, n), math.exp(0.18)),
}


@pytest.mark.parametrize("law", DRAWS)
@pytest.mark.parametrize("documents", [8, 16, 40])
def test_the_interval_covers_the_truth_as_often_as_it_says(law: str, documents: int) -> None:
    """On differences of log-likelihoods a token; the percentile bootstrap covers 85 to 89% of these at 8 documents."""
    rng, covered = np.random.default_rng(1), 0
    draw, truth = DRAWS[law]
    for _ in range(400):
        change = draw(rng, documents)
        base = rng.normal(-5, 2, documents)
        mine, its = (Score.weighted([(one, 1.0) for one in values]) for values in (base - change, base))
        _, low, high = difference(mine, its)
        covered += low <= 100 * math.expm1(truth) <= high
    assert 0.905 <= covered / 400 <= 0.985


@pytest.mark.parametrize("documents", [6, 10, 40])
def test_the_interval_of_a_rate_covers_it_however_small(documents: int) -> None:
    """Over all rates as often as it says, and never seldom: a percentile bootstrap covers 0.1 of 6 in 45% of cases."""
    found = [wilson(right, documents) for right in range(documents + 1)]
    covered = []
    for rate in np.arange(0.01, 1, 0.01):
        chances = stats.binom.pmf(range(documents + 1), documents, rate)
        covered.append(sum(c for c, (low, high) in zip(chances, found, strict=True) if low <= rate <= high))
    assert 0.94 <= np.mean(covered) <= 0.97
    assert min(covered) > 0.82
    assert covered[9] > 0.92  # of 0.1


@pytest.mark.parametrize(
    ("both", "mine", "its"), [(0.1, 0.0, 0.9), (0.4, 0.05, 0.15), (0.9, 0.02, 0.08), (0.3, 0.1, 0.3)]
)
def test_the_interval_of_a_difference_of_rates_covers_it(both: float, mine: float, its: float) -> None:
    rng, covered = np.random.default_rng(2), 0
    for _ in range(400):
        kind = rng.choice(4, size=10, p=[both, mine, its, max(1 - both - mine - its, 0)])
        one, other = Score.mean(list((kind <= 1) * 1.0)), Score.mean(list(((kind == 0) | (kind == 2)) * 1.0))
        _, low, high = difference(one, other)
        covered += low - 1e-9 <= 100 * (mine - its) <= high + 1e-9
    assert covered / 400 >= 0.92


def test_wilsons_and_newcombes_intervals_are_the_published_ones() -> None:
    for right, count in ((0, 8), (3, 10), (10, 10)):
        known = stats.binomtest(right, count).proportion_ci(method="wilson")
        assert wilson(right, count) == pytest.approx((known.low, known.high))
    # Airway hyper-responsiveness before and after a transplantation: Fagerland, Lydersen and Laake (2014), Table IX.
    before = np.repeat([1.0, 1.0, 0.0, 0.0], [1, 1, 7, 12])
    after = np.repeat([1.0, 0.0, 1.0, 0.0], [1, 1, 7, 12])
    assert newcombe(before, after) == pytest.approx((-0.507, -0.026), abs=5e-4)


def test_no_interval_of_an_accuracy_is_without_width() -> None:
    """All right, all wrong, and every document lost: few documents, not an exact score."""
    right, wrong = Score.mean([1.0] * 8), Score.mean([0.0] * 8)
    assert interval(right) == pytest.approx((0.676, 1.0), abs=1e-3)
    assert interval(wrong) == pytest.approx((0.0, 0.324), abs=1e-3)
    change, low, high = difference(wrong, right)
    assert (change, low) == (-100.0, -100.0)
    assert high < -40
    for same in (right, wrong):
        change, low, high = difference(same, same)
        assert change == 0
        assert low < 0 < high


def test_a_difference_is_paired() -> None:
    noise = np.random.default_rng(2).normal(0, 50, 100)
    base = Score.weighted([(-300 + n, 100) for n in noise])
    worse = Score.weighted([(-300 + n - 100 * math.log(1.1), 100) for n in noise])
    # Every document is a tenth worse, however much the documents differ: the paired interval has no width.
    assert difference(worse, base) == pytest.approx((10.0, 10.0, 10.0))
    assert unit(worse, base) == "percent"
    low, high = interval(base)
    assert high - low > 1


def test_a_share_of_the_way_is_paired_and_measured_in_log_likelihood() -> None:
    """Every document loses 10% with the floor and 1% with the ceiling, whatever it is; the score stands at a third."""
    texts = np.random.default_rng(4).normal(-300, 50, 60)
    floor, ceiling = (Score.weighted([(n - 100 * math.log(loss), 100) for n in texts]) for loss in (1.1, 1.01))
    third = Score(floor.totals + (ceiling.totals - floor.totals) / 3, floor.weights, "perplexity")
    assert share(third, floor, ceiling) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    worse = Score(floor.totals - 1.0, floor.weights, "perplexity")
    assert share(worse, floor, ceiling)[2] < 0
    assert all(math.isnan(end) for end in share(third, ceiling, floor))  # No ceiling above its floor.


def test_the_interval_of_a_share_covers_it_as_often_as_it_says() -> None:
    """Gains of two cells over a window that are noisy and go together, over 40 documents."""
    random, hits, tries = np.random.default_rng(5), 0, 400
    for _ in range(tries):
        gap = random.gamma(4, 1, 40)
        floor = Score(np.full(40, -300.0), np.full(40, 100.0), "perplexity")
        ceiling = Score(floor.totals + gap, floor.weights, "perplexity")
        mine = Score(floor.totals + 0.4 * gap + random.normal(0, 1, 40), floor.weights, "perplexity")
        _, low, high = share(mine, floor, ceiling)
        hits += low <= 0.4 <= high
    assert 0.92 <= hits / tries <= 0.98


def test_differences_of_accuracies_are_points_and_of_other_means_percent() -> None:
    half, all_ = Score.mean([1.0, 0.0] * 10), Score.mean([1.0] * 20)
    assert difference(half, all_)[0] == -50
    assert unit(half, all_) == unit(Score.mean([0.25, 0.5]), Score.mean([0.5, 1.0])) == "points"
    assert difference(Score.mean([0.25, 0.5] * 4), Score.mean([0.5, 1.0] * 4))[0] == pytest.approx(-37.5)
    long, short = Score.mean([30.0, 50.0] * 4), Score.mean([20.0, 20.0] * 4)
    assert (unit(long, short), difference(long, short)[0]) == ("percent", 100)
    more, fewer = (Score.weighted([(-n * scale, 1.0) for n in range(1, 9)], "bits") for scale in (1.1, 1.0))
    assert unit(more, fewer) == "percent"
    assert difference(more, fewer) == pytest.approx((10.0, 10.0, 10.0))
    assert all(math.isnan(number) for number in difference(short, Score.mean([0.0] * 7 + [0.0])))


def test_a_difference_to_itself_is_none() -> None:
    score = Score.weighted([(-float(n), 1.0) for n in range(1, 9)])
    assert difference(score, score) == (0.0, 0.0, 0.0)


def test_one_document_says_nothing_of_others() -> None:
    one = Score.weighted([(-2.0, 1.0)])
    assert one.value == pytest.approx(math.e**2)
    assert all(math.isnan(end) for end in (*interval(one), *difference(one, one)[1:]))


def test_the_same_seed_draws_the_same() -> None:
    assert (resamples(7, seed=3) == resamples(7, seed=3)).all()
    assert (resamples(7, seed=3) != resamples(7, seed=4)).any()


def test_what_cannot_be_paired_or_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="same documents"):
        difference(Score.mean([1.0]), Score.mean([1.0, 2.0]))
    # As many documents count, but not the same.
    with pytest.raises(ValueError, match="same documents"):
        difference(Score.mean([1.0, None, 0.0]), Score.mean([None, 1.0, 0.0]))
    sparse = Score.mean([1.0, None, 0.0, None, None, None])
    assert (sparse.value, sparse.documents) == (0.5, 2)
    assert interval(sparse) == interval(Score.mean([1.0, 0.0]))
    with pytest.raises(ValueError, match="of one kind"):
        difference(Score.mean([1.0]), Score.weighted([(1.0, 1.0)]))
    for empty in (Score.mean([]), Score.weighted([])):
        with pytest.raises(ValueError, match="no documents"):
            interval(empty)


def test_every_aggregation_is_lm_evals_own() -> None:
    """The scores that the tables report are those of lm-eval's functions, on the same values."""
    rng = np.random.default_rng(5)
    pairs = [(float(-n * 2.5), float(n)) for n in rng.integers(5, 50, 40)]
    for name in ("mean", "perplexity", "weighted_perplexity", "bits_per_byte"):
        values = pairs if name.startswith(("weighted", "bits")) else [total / 50 for total, _ in pairs]
        assert AGGREGATIONS[name](values).value == pytest.approx(get_aggregation(name)(values), rel=1e-12), name


def test_seeds_are_averaged_document_by_document() -> None:
    runs = [Score.weighted([(-10.0, 10), (-60.0, 20)]), Score.weighted([(-30.0, 10), (-20.0, 20)])]
    both = average(runs)
    assert both.totals.tolist() == [-20.0, -40.0]
    assert both.value == pytest.approx(math.e**2)
    with pytest.raises(ValueError, match="same documents"):
        average([runs[0], Score.weighted([(-1.0, 1)])])


def test_seeds_of_a_rate_are_still_a_rate() -> None:
    both = average([Score.mean([1.0, 0.0, 1.0]), Score.mean([1.0, 1.0, 0.0])])
    assert both.rate
    assert interval(both) == wilson(2.0, 3)
    assert not average([Score.mean([0.5]), Score.mean([1.0])]).rate


def test_three_documents_of_thousands_that_differ_have_an_interval_and_not_an_overflow() -> None:
    """A cap that binds three of LAMBADA's 5153 passages: most resamples hold one or two of the three, or none."""
    logs = np.random.default_rng(1).normal(-9, 3, 5000)
    changed = logs.copy()
    changed[[7, 70, 700]] -= (0.009, 0.444, 0.471)
    change, low, high = difference(Score.perplexity(list(changed)), Score.perplexity(list(logs)))
    assert change == pytest.approx(100 * math.expm1(0.924 / 5000))
    assert -change < low < 0 < change < high < 4 * change


def test_a_share_that_is_the_same_in_every_document_has_an_interval_with_width_and_within_its_bounds() -> None:
    """One far copy of eight in each of eight documents is not known to be one of eight in all others."""
    eighth, most = Score.mean([0.125] * 8), Score.mean([1.0, 1.0, 0.75, 1.0, 0.875, 1.0, 1.0, 0.75])
    low, high = interval(eighth)
    assert low < 0.05 < 0.125 < 0.4 < high
    assert interval(most)[1] <= 1
    change, low, high = difference(eighth, Score.mean([1.0] * 8))
    assert change == -87.5
    assert -100 <= low < -90 < -60 < high < -40
