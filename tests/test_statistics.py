"""The bootstrap: known values, known intervals, pairing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from lm_eval.api.registry import get_aggregation

from sketch_eval.statistics import AGGREGATIONS, Score, average, difference, interval, resamples


def test_a_mean_is_the_mean_and_its_interval_that_of_the_normal_law():
    values = [0.0, 1.0] * 200
    score = Score.mean(values)
    assert score.value == 0.5
    low, high = interval(score)
    # A coin thrown 400 times: ± 1.96 · 0.5 / 20.
    assert low == pytest.approx(0.5 - 0.049, abs=0.006)
    assert high == pytest.approx(0.5 + 0.049, abs=0.006)


def test_a_perplexity_is_weighted_by_tokens():
    # 10 tokens at 1/2 each and 30 at 1/4 each: exp of the mean over 40 tokens, not over the two documents.
    score = Score.weighted([(-10 * math.log(2), 10), (-30 * math.log(4), 30)])
    assert score.value == pytest.approx(2 ** (10 / 40 + 2 * 30 / 40))
    assert interval(score) == pytest.approx((2.0, 4.0))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        low, high = interval(Score.mean(list(rng.normal(3.0, 1.0, 60))), seed=trial)
        covered += low <= 3.0 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_a_difference_is_paired():
    noise = np.random.default_rng(2).normal(0, 50, 100)
    base = Score.weighted([(-300 + n, 100) for n in noise])
    worse = Score.weighted([(-300 + n - 100 * math.log(1.1), 100) for n in noise])
    # Every document is a tenth worse, however much the documents differ: the paired interval has no width.
    assert difference(worse, base) == pytest.approx((10.0, 10.0, 10.0))
    low, high = interval(base)
    assert high - low > 1


def test_a_difference_to_itself_is_none_and_to_nothing_is_no_number():
    score = Score.mean([0.0] + [1.0] * 9)
    assert difference(score, score) == (0.0, 0.0, 0.0)
    # 1 of 8 documents right: in a third of the resamples the base is 0, and the rest are no fair sample.
    change, low, high = difference(Score.mean([1.0, 1.0] + [0.0] * 6), Score.mean([1.0] + [0.0] * 7))
    assert change == pytest.approx(100)
    assert math.isnan(low)
    assert math.isnan(high)
    for score in (Score.mean([0.0, 0.0]), Score.mean([0.0, 1.0])):
        assert all(math.isnan(number) for number in difference(score, Score.mean([0.0, 0.0])))


def test_the_same_seed_draws_the_same():
    assert (resamples(7, seed=3) == resamples(7, seed=3)).all()
    assert (resamples(7, seed=3) != resamples(7, seed=4)).any()
    assert interval(Score.mean([1.0])) == (1.0, 1.0)


def test_what_cannot_be_paired_or_drawn_is_refused():
    with pytest.raises(ValueError, match="same documents"):
        difference(Score.mean([1.0]), Score.mean([1.0, 2.0]))
    # As many documents count, but not the same.
    with pytest.raises(ValueError, match="same documents"):
        difference(Score.mean([1.0, None, 0.0]), Score.mean([None, 1.0, 0.0]))
    sparse = Score.mean([1.0, None, 0.0, None, None, None])
    assert (sparse.value, sparse.documents) == (0.5, 2)
    assert interval(sparse) == interval(Score.mean([1.0, 0.0])) == (0.0, 1.0)
    with pytest.raises(ValueError, match="of one kind"):
        difference(Score.mean([1.0]), Score.weighted([(1.0, 1.0)]))
    with pytest.raises(ValueError, match="no documents"):
        interval(Score.mean([]))


def test_every_aggregation_is_lm_evals_own():
    """The scores that the tables report are those of lm-eval's functions, on the same values."""
    rng = np.random.default_rng(5)
    pairs = [(float(-n * 2.5), float(n)) for n in rng.integers(5, 50, 40)]
    for name in ("mean", "perplexity", "weighted_perplexity", "bits_per_byte"):
        values = pairs if name.startswith(("weighted", "bits")) else [total / 50 for total, _ in pairs]
        assert AGGREGATIONS[name](values).value == pytest.approx(get_aggregation(name)(values), rel=1e-12), name


def test_seeds_are_averaged_document_by_document():
    runs = [Score.weighted([(-10.0, 10), (-60.0, 20)]), Score.weighted([(-30.0, 10), (-20.0, 20)])]
    both = average(runs)
    assert both.totals.tolist() == [-20.0, -40.0]
    assert both.value == pytest.approx(math.e**2)
    with pytest.raises(ValueError, match="same documents"):
        average([runs[0], Score.weighted([(-1.0, 1)])])
