"""`sketch-eval show`: a table of chosen tasks and cells of a leaderboard, in a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from sketch_eval.config import nearest
from sketch_eval.errors import UsageError
from sketch_eval.leaderboard import tables, views
from sketch_eval.leaderboard.numbers import change, scored, size, whole
from sketch_eval.leaderboard.row import frame
from sketch_eval.leaderboard.views import Subject

MOST_TASKS = 3
"""Tasks that are shown where none are chosen."""
PLAIN = ("cell", "cap", "bytes")
"""What a table can be sorted by beside its tasks."""


def show(
    folder: Path,
    tasks: Sequence[str] = (),
    metric: str | None = None,
    cells: Sequence[str] = (),
    caps: Sequence[str] = (),
    sort: str | None = None,
    top: int = 0,
) -> Table:
    """The table: a line a cell, best first, a column a task.

    Args:
        folder: a folder with a leaderboard.json.
        tasks: tasks and groups by name, or patterns such as `kv_*`; by default the texts, or the first task.
        metric: which of the tasks' metrics; by default that which stands for each (`views.main_metric`).
        cells: parts of the names of the cells that are wanted; by default all.
        caps: the caps that are wanted, or `all`; by default the one that the page opens on.
        sort: a shown task, or one of PLAIN; by default the first task.
        top: how many cells; 0 is all.

    Raises:
        UsageError: there is no leaderboard, or nothing in it has such a name.
    """
    rows, about = tables.read(folder)
    data = frame(rows)
    chosen = _subjects(views.subjects(data, about), tasks, metric)
    found = {one: views.cells(data, one) for one in chosen}
    first = found[chosen[0]]
    cap = views.opening_cap(data, first)
    wanted = _caps(data, caps, cap)
    places = data.drop_duplicates(views.KEY)
    kept = places[(places["kind"] == "full") | (places["cap"].isin(wanted) | (places["cap"].isna() & (not caps)))]
    if cells:
        named = kept["cell"].map(lambda name: any(part in name for part in cells))
        if not named.any():
            raise UsageError(
                f"cell={', '.join(cells)}: no cell at these caps has such a name; leave --cell out to see all"
            )
        kept = kept[named | (kept["kind"] == "full")]
    if sort is not None and sort not in (*PLAIN, *(one.name for one in chosen)):
        names = ", ".join([*(one.name for one in chosen), *PLAIN])
        raise UsageError(f"sort={sort!r}: give one of {names}{nearest(sort, names.split(', '))}")
    lookup = {
        one: {(row["cell"], str(row["cap"])): row for row in table.to_dict("records")} for one, table in found.items()
    }
    by = next((one for one in chosen if one.name == sort), chosen[0])
    lines = kept.to_dict("records")
    lines.sort(key=lambda line: _order(line, sort, lookup[by].get((line["cell"], str(line["cap"])))))
    shown = lines if not top else lines[: top + 1]
    others = [cap for cap in _caps(data, ["all"], None) if cap not in wanted]
    return _table(folder, shown, len(lines), chosen, lookup, wanted, others)


def _subjects(found: list[Subject], tasks: Sequence[str], metric: str | None) -> list[Subject]:
    """The subjects of the tasks that are asked for, one a task."""
    if metric is not None:
        of_metric = [one for one in found if one.metric == metric]
        if not of_metric:
            known = list(dict.fromkeys(one.metric for one in found))
            raise UsageError(f"metric={metric!r}: give one of {', '.join(known)}{nearest(metric, known)}")
        found = of_metric
    if not tasks:
        return views.texts(found)[:MOST_TASKS] or [views.opening(found)]
    chosen: dict[str, Subject] = {}
    for pattern in tasks:
        names = [one for one in found if fnmatch(one.name, pattern)]
        if not names:
            known = list(dict.fromkeys(one.name for one in found))
            raise UsageError(f"task={pattern!r}: give one of {', '.join(known)}{nearest(pattern, known)}")
        for one in names:
            chosen.setdefault(one.name, one)
    return list(chosen.values())


def _caps(rows: pd.DataFrame, caps: Sequence[str], opening: float | None) -> list[float]:
    known = sorted(rows["cap"].dropna().unique().tolist())
    if not caps:
        return [] if opening is None else [opening]
    if "all" in caps:
        return known
    for cap in caps:
        if cap not in [whole(one) for one in known]:
            raise UsageError(f"cap={cap!r}: give one of {', '.join(map(whole, known))}, or all")
    return [float(cap) for cap in caps]


def _order(line: dict[str, Any], sort: str | None, row: Any) -> tuple[Any, ...]:
    """The full cache first, then what is best; what lost no pair, or was not run, last."""
    if line["kind"] == "full":
        return (0,)
    if sort in ("cell", "cap"):
        return 1, line[sort]
    if sort == "bytes":
        return 1, line["total_bytes"]
    none = row is None or not row["bound"] or math.isnan(row["lost"])
    return 2 if none else 1, 0.0 if none else row["lost"]


def _table(
    folder: Path,
    lines: list[Any],
    number: int,
    chosen: list[Subject],
    lookup: dict[Subject, Any],
    caps: list[float],
    others: list[float],
) -> Table:
    several = len(caps) > 1
    table = Table(caption_justify="left")
    table.add_column("cell", no_wrap=True)
    if several:
        table.add_column("cap", justify="right")
    table.add_column("KiB", justify="right", no_wrap=True)
    for one in chosen:
        rows = lookup[one].values()
        arrow = "↑" if any(row["higher_is_better"] for row in rows) else "↓"
        documents = max((int(row["documents"]) for row in rows), default=0)
        table.add_column(f"{one.name}\n{one.metric} {arrow}\nn = {documents}", justify="right", no_wrap=True)
    for line in lines:
        entries = [_entry(lookup[one].get((line["cell"], str(line["cap"])))) for one in chosen]
        cap = [whole(line["cap"])] if several else []
        table.add_row(line["cell"], *cap, size(line["total_bytes"]).removesuffix(" KiB"), *entries)
    at = f"cap {', '.join(map(whole, caps))}. " if caps else ""
    at += f"Other caps, for --cap: {', '.join(map(whole, others))}. " if others and caps else ""
    left = f"{number - len(lines)} more with --top 0. " if number > len(lines) else ""
    grouped = any(one.grouped for one in chosen)
    means = " A mean over tasks has no interval, since they may share documents." if grouped else ""
    table.caption = (
        f"{folder}: {at}{left}The full cache's score, and the difference to it with its 95% interval. KiB are those of "
        f"one text's whole cache, in the numbers that the model computes in unless a store is named.{means}"
    )
    return table


def _entry(row: Any) -> str:
    if row is None:
        return ""
    if row["kind"] == "full":
        return scored(row["value"])
    if not row["bound"]:
        return "= full"
    ahead = " (reads ahead)" if row["foresees"] else ""
    return change(row["unit"], row["difference"], row["difference_low"], row["difference_high"]) + ahead
