"""How often 95% intervals cover the truth, at the numbers of documents that tables have.

    python benchmarks/interval_coverage.py [--runs FOLDER]

With the folder of a sweep (`runs/tasks-real`), its documents stand for a population too: samples of them are drawn, and
the truth is the difference between a cell and the full cache over all of them.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import stats

from sketch_eval.statistics import Array, newcombe, ratio_interval, resamples, wilson

TRIALS = 2000
Interval = Callable[[Array, Array], tuple[float, float]]


def percentile(above: Array, below: Array) -> tuple[float, float]:
    """The percentile bootstrap of a ratio of sums."""
    picks = resamples(len(above))
    low, high = np.quantile(above[picks].sum(-1) / below[picks].sum(-1), [0.025, 0.975])
    return low, high


def bca(above: Array, below: Array) -> tuple[float, float]:
    """SciPy's bias-corrected and accelerated bootstrap."""
    found = stats.bootstrap(
        (above, below), lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True, vectorized=True, method="BCa",
        n_resamples=1000, rng=0,
    )  # fmt: skip
    return found.confidence_interval.low, found.confidence_interval.high


def student(above: Array, below: Array) -> tuple[float, float]:
    """Student's t with the linearised standard error of a ratio."""
    count, ratio = len(above), above.sum() / below.sum()
    error = math.sqrt(((above - ratio * below) ** 2).sum() * count / (count - 1)) / below.sum()
    reach = stats.t.ppf(0.975, count - 1) * error
    return ratio - reach, ratio + reach


def studentised(above: Array, below: Array) -> tuple[float, float]:
    """What the tables use."""
    return ratio_interval(above, below)


RATIOS: dict[str, Interval] = {
    "percentile": percentile, "BCa": bca, "Student's t": student, "studentised (used)": studentised,
}  # fmt: skip


def laws(runs: Path | None) -> dict[str, tuple[Callable[[np.random.Generator, int], tuple[Array, Array]], float]]:
    """By name: how to draw documents (what is summed above and below the line), and the true ratio."""

    def weighted(rng: np.random.Generator, count: int) -> tuple[Array, Array]:
        weights = rng.lognormal(5, 0.8, count)
        return weights * rng.lognormal(0, 0.6, count), weights

    found = {
        "normal": (lambda rng, n: (rng.normal(0.1, 0.05, n), np.ones(n)), 0.1),
        "skewed (log-normal, σ 0.6)": (lambda rng, n: (rng.lognormal(0, 0.6, n), np.ones(n)), math.exp(0.18)),
        "very skewed (log-normal, σ 1)": (lambda rng, n: (rng.lognormal(0, 1, n), np.ones(n)), math.exp(0.5)),
        "skewed, lengths skewed too": (weighted, math.exp(0.18)),
    }
    if runs is not None:
        above, below = population(runs)

        def drawn(rng: np.random.Generator, count: int) -> tuple[Array, Array]:
            picks = rng.integers(len(above), size=count)
            return above[picks], below[picks]

        found[f"{len(above)} documents of WikiText-2, window of 64"] = (drawn, above.sum() / below.sum())
    return found


def population(runs: Path) -> tuple[Array, Array]:
    """The loss in log-likelihood, and the words, of every document of WikiText-2 in a sweep's runs."""
    records = [json.loads(path.read_text()) for path in sorted(runs.glob("runs/*cap64-wikitext-*/run.json"))]
    (cell,) = (one for one in records if one["name"].startswith("window cap64"))
    (full,) = (json.loads(path.read_text()) for path in runs.glob("runs/full-wikitext-*/run.json"))
    mine, its = (np.array(record["values"]["word_perplexity"]) for record in (cell, full))
    return its[:, 0] - mine[:, 0], its[:, 1]


def ratio_table(runs: Path | None) -> str:
    """Coverage of each interval of a ratio, in percent."""
    lines = [f"| documents' law | n | {' | '.join(RATIOS)} |", f"| --- | ---: |{' ---: |' * len(RATIOS)}"]
    for name, (draw, truth) in laws(runs).items():
        for count in (6, 8, 10, 16, 62):
            rng, covered = np.random.default_rng(0), dict.fromkeys(RATIOS, 0.0)
            trials = [draw(rng, count) for _ in range(TRIALS)]
            for method, interval in RATIOS.items():
                some = trials[: TRIALS // 4] if method == "BCa" else trials  # It takes long.
                hits = sum(low <= truth <= high for low, high in (interval(*trial) for trial in some))
                covered[method] = 100 * hits / len(some)
            lines.append(f"| {name} | {count} | {' | '.join(f'{share:.0f}' for share in covered.values())} |")
    return "\n".join(lines)


def rate_table() -> str:
    """Coverage of intervals of a rate, exactly, and of the difference of two rates, by trials, in percent."""
    lines = ["| what | n | percentile | used |", "| --- | ---: | ---: | ---: |"]
    for rate in (0.02, 0.1, 0.5, 0.97):
        for count in (6, 10, 20, 40):
            chances = stats.binom.pmf(range(count + 1), count, rate)
            documents = [(np.arange(count) < right).astype(float) for right in range(count + 1)]
            ends = [
                [percentile(one, np.ones(count)) for one in documents],
                [wilson(one.sum(), count) for one in documents],
            ]
            shares = [
                100 * sum(c for c, (low, high) in zip(chances, found, strict=True) if low <= rate <= high)
                for found in ends
            ]
            lines.append(f"| a rate of {rate} (Wilson) | {count} | {shares[0]:.0f} | {shares[1]:.0f} |")
    for both, mine, its in ((0.1, 0, 0.9), (0.1, 0.02, 0.85), (0.4, 0.05, 0.15), (0.9, 0.02, 0.08), (0.3, 0.1, 0.3)):
        for count in (6, 10, 20, 40):
            rng, hits = np.random.default_rng(0), [0, 0]
            for _ in range(TRIALS):
                kind = rng.choice(4, size=count, p=[both, mine, its, max(1 - both - mine - its, 0)])
                pair = (kind <= 1).astype(float), ((kind == 0) | (kind == 2)).astype(float)
                ends_ = percentile(pair[0] - pair[1], np.ones(count)), newcombe(*pair)
                for number, (low, high) in enumerate(ends_):
                    hits[number] += low - 1e-9 <= mine - its <= high + 1e-9
            what = f"{both + mine:.2f} against {both + its:.2f}, both right in {both} (Newcombe)"
            lines.append(f"| {what} | {count} | {' | '.join(f'{100 * h / TRIALS:.0f}' for h in hits)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="the folder of a sweep with WikiText-2")
    given = parser.parse_args()
    print(ratio_table(given.runs), rate_table(), sep="\n\n")
