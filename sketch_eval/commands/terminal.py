"""What `sketch-eval` shows in a terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from sketch_eval.grid.cells import cell_kind, cell_name
from sketch_eval.leaderboard.numbers import brief, change, short
from sketch_eval.leaderboard.row import task_family
from sketch_eval.statistics import AGGREGATIONS

if TYPE_CHECKING:
    from sketch_eval.commands.reproduce import Comparison
    from sketch_eval.commands.verify import Report
    from sketch_eval.evaluate.records import About
    from sketch_eval.evaluate.work import Job
    from sketch_eval.leaderboard.row import Row
    from sketch_eval.sweep.plan import Line

MAIN = "byte_perplexity"
"""As `leaderboard.views.MAIN`, which is not read here because it waits for pandas."""
BEST = 2
"""Cells of each cap that are shown while a sweep runs."""


class Bar:
    """A sweep's progress: a live bar with the time left, and the best rows so far; without a terminal, a line a run."""

    def __init__(self, console: Console) -> None:
        columns = (
            BarColumn(), TextColumn("{task.fields[count]}"), TimeElapsedColumn(), TextColumn("left:"),
            TimeRemainingColumn(), TextColumn("{task.description}"),
        )  # fmt: skip
        self._console = console
        self._progress = Progress(*columns, console=console)
        self._bar = self._progress.add_task("loading the tasks and the model", total=None, count="")
        self._best = Best()
        self._live = Live(self, console=console, transient=True, refresh_per_second=4)
        self._weights: dict[str, float] = {}
        self._done = self._all = 0

    def __enter__(self) -> Bar:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._live.stop()

    def __rich__(self) -> Group:
        return Group(*([self._best.table()] if self._best else []), self._progress.get_renderable())

    def begin(self, jobs: list[Job], weights: dict[str, float]) -> None:
        """These jobs come next, and are counted on; weights: seconds of each task's full-cache run, where known."""
        self._weights, self._all = weights, self._all + len(jobs)
        total = sum(weights.get(job.task, 1.0) for job in jobs)
        self._progress.reset(self._bar, total=total, count=f"{self._done}/{self._all}", description="")

    def done(self, job: Job, seconds: float, reason: str | None) -> None:
        """A job took so long; reason: why it failed, None where it did not."""
        self._done += 1
        step = self._weights.get(job.task, 1.0)
        self._progress.update(self._bar, advance=step, count=f"{self._done}/{self._all}", description=job.name)
        if reason or not self._console.is_terminal:
            text = f"{self._done}/{self._all} {job.name}: " + (f"FAILED: {reason}" if reason else f"{seconds:.1f} s")
            self._console.print(text, markup=False, soft_wrap=True)

    def scored(self, job: Job, about: About, record: Callable[[], Mapping[str, Any]]) -> None:
        """A job's run is there; record reads it."""
        if self._console.is_terminal:
            self._best.take(job, about, record)


class Best:
    """The best cells so far on the first text of a sweep, or on its first task where it has none."""

    def __init__(self) -> None:
        self._task = self._metric = self._better = ""
        self._full: float | None = None
        self._values: dict[tuple[str, int], list[float]] = {}

    def __bool__(self) -> bool:
        return self._full is not None and bool(self._values)

    def take(self, job: Job, about: About, record: Callable[[], Mapping[str, Any]]) -> None:
        """Read the run's score, if it is of the task that is shown."""
        if not self._task:
            self._choose(about)
        if job.task != self._task:
            return
        run, aggregation = record(), about["tasks"][job.task]["metrics"][self._metric]
        label = next((name for name in run["values"] if name.split(",")[0] == self._metric), None)
        if label is None:
            return
        value = AGGREGATIONS[aggregation](run["values"][label]).value
        if cell_kind(job.cell) == "full":
            self._full = value
        elif run["counts"]["binding_requests"] and job.cell.max_cache_size is not None:
            self._values.setdefault((cell_name(job.cell), job.cell.max_cache_size), []).append(value)

    def _choose(self, about: About) -> None:
        tasks = {task: list(entry["metrics"]) for task, entry in about["tasks"].items()}
        pairs = [(task, metric) for task, metrics in tasks.items() for metric in metrics]
        texts = [pair for pair in pairs if pair[1] == MAIN] or [pair for pair in pairs if "perplexity" in pair[1]]
        self._task, self._metric = (texts or pairs)[0]
        self._better = "more" if about["tasks"][self._task]["higher_is_better"][self._metric] else "less"

    def table(self) -> Table:
        """The best two cells of each cap, over the seeds that are there."""
        assert self._full is not None
        means = {place: sum(values) / len(values) for place, values in self._values.items()}
        points = self._full <= 1 and self._better == "more"
        table = _table(["cap", "the best so far", f"{self._task}\n{self._metric}\nto full"], "")
        for cap in sorted({cap for _, cap in means}):
            here = [(value, cell) for (cell, at), value in means.items() if at == cap]
            for value, cell in sorted(here, reverse=self._better == "more")[:BEST]:
                off = 100 * (value - self._full) if points else 100 * (value / self._full - 1)
                table.add_row(str(cap), cell, brief("points" if points else "percent", off))
        return table


def plan_table(title: str, lines: list[Line]) -> Table:
    """The cells of a plan and their bytes."""
    table = _table(["#", "cell", "cap", "KV KiB", "sketch KiB", "total KiB", "saving", "computed"], title)
    for line in lines:
        sizes = ["", "", "", ""]
        if line.bytes is not None:
            sizes = [f"{line.bytes[key] / 1024:,.1f}" for key in ("kv_bytes", "sketch_bytes", "steady_bytes")]
            sizes.append(f"{line.bytes['saving']:.1%}")
        table.add_row(str(line.number), line.name, _cap(line), *sizes, _computed(line))
    return table


def times_table(lines: list[Line]) -> Table:
    """The cells of a plan and how long they take."""
    table = _table(["#", "cell", "cap", "time"], "")
    for line in lines:
        cost = span(line.seconds) if line.runs and line.seconds is not None else _computed(line)
        table.add_row(str(line.number), line.name, _cap(line), cost)
    return table


def _cap(line: Line) -> str:
    return "" if line.cap is None else str(line.cap)


def _computed(line: Line) -> str:
    """How many computations a line adds, or the line whose computation it is."""
    return f"as #{line.same_as}" if line.same_as is not None and not line.runs else str(line.runs)


def leaderboard_table(rows: list[Row], tasks: list[str]) -> Table:
    """The first metric of each task, a line a cell; tasks that differ in a length or depth alone are averaged.

    Args:
        rows: those of the leaderboard.
        tasks: all tasks of the sweep: the mean over a part of them would not be theirs, so it is left out.
    """
    metrics: dict[str, str] = {}
    for row in rows:
        metrics.setdefault(row.task, row.metric)
    found: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in rows:
        if row.metric == metrics[row.task]:
            cap = "" if math.isnan(row.cap) else f"{row.cap:.0f}"
            found.setdefault((row.cell, cap), {}).setdefault(task_family(row.task), []).append(row)
    shown = {task_family(task): metric for task, metric in metrics.items()}
    parts = Counter(task_family(task) for task in tasks)
    table = _table(["cell", "cap", *(f"{task}\n{metric}" for task, metric in shown.items()), "total\nKiB"], "")
    table.caption = (
        "Each: score, and its difference to the full cache (pt: points, hundredths). Intervals are in the leaderboard."
    )
    full = {
        task: _mean(group) for group_of in found.values() for task, group in group_of.items() if group[0].kind == "full"
    }
    for (cell, cap), groups in found.items():
        whole = {task: group for task, group in groups.items() if len(group) == parts[task]}
        entries = [_entry(whole[task], full.get(task, math.nan)) if task in whole else "" for task in shown]
        table.add_row(cell, cap, *entries, f"{next(iter(groups.values()))[0].total_bytes / 1024:,.0f}")
    return table


def comparison_table(comparison: Comparison) -> Table:
    """A row then and now."""
    table = _table(["", "recorded", "now"], "")
    for key, recorded in comparison.recorded.items():
        table.add_row(key, str(recorded), str(comparison.now[key]))
    return table


def report_table(report: Report) -> Table:
    """What `sketch-eval verify` looked at."""
    table = Table()
    for column in ("check", "", "expected", "found", "verdict"):
        table.add_column(column)
    for check in report.checks:
        table.add_row(*map(escape, (check.kind, check.name, check.expected, check.found, check.verdict)))
    return table


def span(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _mean(rows: list[Row]) -> float:
    return sum(row.value for row in rows) / len(rows)


def _entry(rows: list[Row], full: float) -> str:
    mean, unit = _mean(rows), rows[0].unit
    if rows[0].kind == "full":
        return short(mean)
    if not any(row.bound for row in rows):
        return f"{short(mean)}  = full"
    known = unit == "points" or (full and not math.isnan(full))
    off = 100 * (mean - full) if unit == "points" else 100 * (mean / full - 1) if known else math.nan
    return f"{short(mean)} {change(unit, off):>8}"


def _table(columns: list[str], title: str) -> Table:
    table = Table(title=title or None, caption_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in ("cell", "the best so far", "") else "right", no_wrap=True)
    return table
