"""What `sketch-eval` shows in a terminal."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from sketch_eval.leaderboard.row import task_family

if TYPE_CHECKING:
    from sketch_eval.commands.reproduce import Comparison
    from sketch_eval.commands.verify import Report
    from sketch_eval.evaluate.work import Job
    from sketch_eval.leaderboard.row import Row
    from sketch_eval.sweep.plan import Line


class Bar:
    """A sweep's progress with the time left; where there is no terminal, a line a run."""

    def __init__(self, console: Console) -> None:
        columns = (
            BarColumn(), TextColumn("{task.fields[count]}"), TimeElapsedColumn(), TextColumn("left:"),
            TimeRemainingColumn(), TextColumn("{task.description}"),
        )  # fmt: skip
        self._console = console
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._bar = self._progress.add_task("loading the tasks and the model", total=None, count="")
        self._weights: dict[str, float] = {}
        self._done = self._all = 0

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()

    def begin(self, jobs: list[Job], weights: dict[str, float]) -> None:
        """These jobs come next; weights: seconds of each task's full-cache run, where known."""
        self._weights, self._done, self._all = weights, 0, len(jobs)
        total = sum(weights.get(job.task, 1.0) for job in jobs)
        self._progress.reset(self._bar, total=total, count=f"0/{len(jobs)}", description="")

    def done(self, job: Job, seconds: float, reason: str | None) -> None:
        """A job took so long; reason: why it failed, None where it did not."""
        self._done += 1
        step = self._weights.get(job.task, 1.0)
        self._progress.update(self._bar, advance=step, count=f"{self._done}/{self._all}", description=job.name)
        if reason or not self._console.is_terminal:
            text = f"{self._done}/{self._all} {job.name}: " + (f"FAILED: {reason}" if reason else f"{seconds:.1f} s")
            self._console.print(text, markup=False, soft_wrap=True)


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
    mean = _mean(rows)
    value = f"{mean:.3f}" if abs(mean) < 100 else f"{mean:,.0f}"
    if rows[0].kind == "full":
        return value
    if not any(row.bound for row in rows):
        return f"{value}  = full"
    if rows[0].unit == "points":
        return f"{value} {100 * (mean - full):+6.1f} pt"
    return f"{value} {100 * (mean / full - 1):+6.1f}%" if full and not math.isnan(full) else value


def _table(columns: list[str], title: str) -> Table:
    table = Table(title=title or None, caption_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in ("cell", "") else "right", no_wrap=True)
    return table
