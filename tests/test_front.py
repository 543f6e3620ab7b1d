"""The front of loss against bytes: which cell is surely undercut by which."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sketch_eval.leaderboard.front import NOBODY, Entry, undercut
from sketch_eval.statistics import Score, difference, steps


def entries(seed: int, cells: int, documents: int, rates: bool) -> list[Entry]:
    """Cells that differ by about as much as their documents allow to tell, of few different sizes."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(50, 200, documents).astype(float)
    base = -2.0 * tokens + rng.normal(0, 20, documents)
    found = []
    for number in range(cells):
        if rates:
            score = Score.mean(list((rng.random(documents) < rng.choice([0.2, 0.5, 0.95])).astype(float)))
        else:
            lost = rng.choice([0.0, 0.01, 0.03]) * tokens + rng.normal(0, 1, documents)
            score = Score(base - lost, tokens, "perplexity")
        found.append(Entry(f"row{number}", number, int(rng.integers(1, 4)), score))
    return found


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 7), st.sampled_from([8, 20, 40]), st.booleans())
def test_a_cell_is_undercut_where_one_of_no_more_bytes_is_surely_better(
    seed: int, cells: int, documents: int, rates: bool
) -> None:
    """By comparing each cell with each other one."""
    given_ = entries(seed, cells, documents, rates)
    found = undercut(given_, higher_is_better=rates)
    for mine in given_:
        sure = {}
        for other in given_:
            off, low, high = difference(mine.score, other.score)
            if other is not mine and other.total_bytes <= mine.total_bytes and (high < 0 if rates else low > 0):
                sure[other.row] = (steps(other.score, mine.score), (off, low, high))
        columns = found[mine.row]
        if not sure:
            assert columns == {"undercut_by": NOBODY}
        else:
            ahead, ends = sure[columns["undercut_by"]]
            assert ahead == max(ahead for ahead, _ in sure.values())
            assert (columns["undercut"], columns["undercut_low"], columns["undercut_high"]) == ends


def test_what_is_the_same_computation_or_no_cheaper_undercuts_nobody() -> None:
    good, bad = (Score(np.linspace(-loss, -loss - 1, 20), np.ones(20), "perplexity") for loss in (1.0, 2.0))
    found = undercut([Entry("a", 1, 20, good), Entry("b", 2, 10, bad), Entry("c", 2, 20, bad)], False)
    assert found["a"] == found["b"] == {"undercut_by": NOBODY}
    assert found["c"]["undercut_by"] == "a"
    assert found["c"]["undercut"] == pytest.approx(100 * (math.e - 1))


@pytest.mark.parametrize("higher", [True, False])
def test_of_a_mean_the_metric_says_which_way_is_better(higher: bool) -> None:
    rng = np.random.default_rng(0)
    large, small = (Score.mean(list(rng.normal(centre, 0.1, 30))) for centre in (3.0, 2.0))
    found = undercut([Entry("large", 1, 1, large), Entry("small", 2, 1, small)], higher)
    worse, better = ("small", "large") if higher else ("large", "small")
    assert found[worse]["undercut_by"] == better
    assert found[better] == {"undercut_by": NOBODY}


def test_steps_are_of_the_normal_law() -> None:
    """A mean of 100 documents that is 0.5 over another with a spread of 1 is 5 standard errors over it."""
    noise = np.random.default_rng(1).normal(0, 1, 100)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    base = Score.mean(list(np.full(100, 7.0)))
    assert steps(Score.mean(list(7.5 + noise)), base) == pytest.approx(5)
    assert steps(base, base) == 0
    assert steps(Score.mean(list(np.full(100, 7.5))), base) == math.inf
