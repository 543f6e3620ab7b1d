"""Which cell another one of no more bytes undercuts, and how surely."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sketch_eval.leaderboard.front import NOBODY, Entry, undercut
from sketch_eval.statistics import Score, difference, steps

NONE: dict[str, Any] = {"undercut_by": NOBODY}


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
    """By SciPy's paired t-test of each cell with each other one, what a weight is worth spread over the documents."""
    given_ = entries(seed, cells, documents, rates)
    found = undercut(given_, higher_is_better=rates)
    sure: dict[str, list[Entry]] = {}
    for mine in given_:
        cheaper = [other for other in given_ if other is not mine and other.total_bytes <= mine.total_bytes]
        sure[mine.row] = []
        for other in cheaper:
            off = other.score.totals - mine.score.totals
            # A ratio of sums has the standard error of what is left of each document's total beside its weight's part.
            rest = off - off.sum() / mine.score.weights.sum() * mine.score.weights
            error = np.sqrt((rest**2).sum() * documents / (documents - 1)) / mine.score.weights.sum()
            t = off.sum() / mine.score.weights.sum() / error if error else math.copysign(math.inf, off.sum())
            _, low, high = difference(mine.score, other.score)
            if 2 * len(cheaper) * stats.t.sf(t, documents - 1) < 0.05 and (high < 0 if rates else low > 0):
                sure[mine.row].append(other)
    for mine in given_:
        if not sure[mine.row]:
            assert found[mine.row] == NONE
            continue
        last = [other for other in sure[mine.row] if not sure[other.row]] or sure[mine.row]
        (best,) = (other for other in last if other.row == found[mine.row]["undercut_by"])
        assert best.score.totals.sum() == max(other.score.totals.sum() for other in last)
        assert tuple(found[mine.row].values())[1:] == difference(mine.score, best.score)


def test_of_cells_that_are_alike_one_family_in_twenty_is_undercut_by_chance() -> None:
    """Of twenty cells of equal bytes and equal worth; without the correction it is most of the families."""
    rng, wrong = np.random.default_rng(3), 0
    for _ in range(100):
        cells = [Score(rng.normal(-3, 0.1, 30), np.ones(30), "perplexity") for _ in range(20)]
        first = Entry("first", "first", 2, cells[0])
        others = [Entry(f"row{number}", number, 1, score) for number, score in enumerate(cells[1:])]
        wrong += undercut([first, *others], False)["first"] != NONE
    assert wrong <= 8


def test_what_is_the_same_computation_or_no_cheaper_undercuts_nobody() -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, 20)
    good, bad = (Score(np.full(20, -loss) + noise, np.ones(20), "perplexity") for loss in (1.0, 2.0))
    found = undercut([Entry("a", 1, 20, good), Entry("b", 2, 10, bad), Entry("c", 2, 20, bad)], False)
    assert found["a"] == found["b"] == NONE
    assert found["c"]["undercut_by"] == "a"
    assert found["c"]["undercut"] == pytest.approx(100 * (math.e - 1))


def test_what_bound_nothing_is_compared_with_and_not_asked() -> None:
    """A cell that is worse than the full cache and takes more bytes than it is undercut by it."""
    full, worse = (Score.mean(list(np.full(30, value) + np.linspace(0, 0.01, 30))) for value in (0.9, 0.5))
    found = undercut([Entry("full", 0, 100, full, asked=False), Entry("cell", 1, 120, worse)], True)
    assert found == {"cell": {"undercut_by": "full"} | {key: found["cell"][key] for key in list(found["cell"])[1:]}}
    assert found["cell"]["undercut"] == pytest.approx(-40)


def test_the_best_of_those_that_nothing_undercuts_is_named() -> None:
    noise = np.random.default_rng(0).normal(0, 0.001, 30)
    scores = [Score(noise - loss, np.ones(30), "perplexity") for loss in (3.0, 2.0, 1.0)]
    cells = [Entry(name, name, size, score) for name, size, score in zip("abc", (3, 2, 1), scores, strict=True)]
    found = undercut(cells, False)
    assert {name: found[name]["undercut_by"] for name in "abc"} == {"a": "c", "b": "c", "c": NOBODY}


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize("centres", [(3.0, 2.0), (-2.0, -3.0), (0.5, -0.5), (4.0, 0.0)])
def test_of_a_mean_the_metric_says_which_way_is_better(higher: bool, centres: tuple[float, float]) -> None:
    rng = np.random.default_rng(0)
    spread = [np.zeros(30) if not centre else rng.normal(0, 0.1, 30) for centre in centres]
    large, small = (Score.mean(list(centre + off)) for centre, off in zip(centres, spread, strict=True))
    found = undercut([Entry("large", 1, 1, large), Entry("small", 2, 1, small)], higher)
    worse, better = ("small", "large") if higher else ("large", "small")
    assert found[worse]["undercut_by"] == better
    assert found[better] == NONE


def test_steps_are_of_the_normal_law() -> None:
    """A mean of 100 documents that is 0.5 over another with a spread of 1 is 5 standard errors over it."""
    noise = np.random.default_rng(1).normal(0, 1, 100)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    base = Score.mean(list(np.full(100, 7.0)))
    assert steps(Score.mean(list(7.5 + noise)), base) == pytest.approx(5)
    assert steps(base, base) == 0
    assert steps(Score.mean(list(np.full(100, 7.0 * (1 + 1e-15)))), base) == 0
    assert steps(Score.mean(list(np.full(100, 7.5))), base) == math.inf
    assert steps(Score.mean([1.0]), Score.mean([0.0])) == 0  # Of one document there is no telling.
