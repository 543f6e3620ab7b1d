"""What a reader looks at: one metric of one task, or of a group of tasks, cell by cell."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import pandas as pd

from sketch_eval.formats import FORMATS
from sketch_eval.leaderboard.row import task_family
from sketch_eval.policies import POLICIES

DEPTH = r"_depth_\d+$"
MAIN = "byte_perplexity"
"""The metric that a text is shown by where it has it: the one that texts and models of all kinds share."""
KEY = ["cell", "cap"]
KEPT = """row cell cap kind importance unit higher_is_better documents spread_low spread_high binding bound same_as
    undercut_by total_bytes width depth""".split()
ABOUT = 1.05
"""Times as many bytes as another cell's, up to which they are about as many."""
NUMBERS = ["value", "difference", "to_window", "to_exact", "to_reference", "way", "undercut"]
"""Columns of `Row` that have an interval, in columns of the same name with `_low` and `_high`."""


@dataclass(frozen=True)
class Subject:
    """What cells are compared by: a metric of one task, or its mean over a group of tasks that differ in length alone.

    Attributes:
        name: the task's name, or the group's.
        metric: lm-eval's name of the metric.
        tasks: the tasks: one, or all of the group's.
    """

    name: str
    metric: str
    tasks: tuple[str, ...]

    @property
    def grouped(self) -> bool:
        """Whether it is a group."""
        return self.tasks != (self.name,)


def subjects(rows: pd.DataFrame, about: dict[str, Any]) -> list[Subject]:
    """All there is to compare by, each group before its tasks; parts of a metric, such as `acc_depth_25`, left out.

    There are no groups while runs are missing: the mean over the tasks that happen to be finished is another number.
    """
    whole = rows[~rows["metric"].str.contains(DEPTH, regex=True)]
    pairs = [(str(task), str(metric)) for task, metric in whole[["task", "metric"]].drop_duplicates().to_numpy()]
    # The metric that stands for a task comes first.
    pairs = sorted(pairs, key=lambda pair: pair[1] != main_metric(pairs, about, pair[0]))
    complete = not any(note.startswith("NOT COMPLETE") for note in about.get("notes", []))
    groups: dict[tuple[str, str], list[str]] = {}
    for task, metric in pairs:
        groups.setdefault((task_family(task), metric), []).append(task)
    order = {task: place for place, task in enumerate(dict.fromkeys(rows["task"]))}
    found: list[Subject] = []
    for (family, metric), tasks in groups.items():
        if len(tasks) > 1 and complete:
            found.append(Subject(family, metric, tuple(tasks)))
        found += [Subject(task, metric, (task,)) for task in tasks]
    return sorted(found, key=lambda one: min(order[task] for task in groups[task_family(one.tasks[0]), one.metric]))


def main_metric(pairs: list[tuple[str, str]], about: dict[str, Any], task: str) -> str:
    """The metric that stands for a task: its byte perplexity, or the first that the grid asks for."""
    metrics = [metric for one, metric in pairs if one == task]
    primary = about.get("tasks", {}).get(task, {}).get("primary", "")
    return next((metric for metric in (MAIN, primary) if metric in metrics), metrics[0])


def columns(found: list[Subject]) -> list[Subject]:
    """One subject for each group, and for each task of none: what a table of all tasks has a column for."""
    chosen: dict[str, Subject] = {}
    for one in found:
        chosen.setdefault(task_family(one.tasks[0]), one)
    return list(chosen.values())


def opening(found: list[Subject]) -> Subject:
    """What is shown first: a text, by its perplexity, where there is one."""
    wanted = [one for one in found if one.metric == MAIN] or [one for one in found if "perplexity" in one.metric]
    return (wanted or found)[0]


def texts(found: list[Subject]) -> list[Subject]:
    """The columns that are perplexities of texts, those that share a metric first."""
    return sorted((one for one in columns(found) if "perplexity" in one.metric), key=lambda one: one.metric != MAIN)


def main_caps(rows: pd.DataFrame) -> list[float]:
    """The caps at which something else than a window stands, smallest first: those that cells are compared at."""
    bounded = rows[rows["cap"].notna()]
    others = bounded[bounded["cell"].map(method) != "window"]
    return sorted((others if len(others) else bounded)["cap"].unique().tolist())


def opening_cap(rows: pd.DataFrame, table: pd.DataFrame) -> float | None:
    """The cap that is shown first: the middle one of those at which many cells of a table of `cells` lose pairs.

    Many is half of the most: some caps are there for a few cells alone.
    """
    bound = {cap: int(table["bound"][table["cap"] == cap].sum()) for cap in main_caps(rows)}
    caps = [cap for cap, number in bound.items() if 2 * number >= max(bound.values())]
    return caps[(len(caps) - 1) // 2] if caps else None


def cells(rows: pd.DataFrame, subject: Subject) -> pd.DataFrame:
    """One row a cell and cap, with those columns of `Row` that are read, and `lost`, `method`, `foresees` and `of`.

    undercut_by is the cap and cell of the row that undercuts this one, in words, or `none`.
    lost is the difference to the full cache with the sign that makes more of it worse, and lost_low and lost_high its
    interval; `of` the number of tasks. A group's numbers are the means over its tasks, of cells that have all of them,
    without intervals: those of its tasks are not independent where they share documents.
    """
    own = rows[(rows["metric"] == subject.metric) & rows["task"].isin(subject.tasks) & rows["value"].notna()]
    own = own[[*KEPT, *(f"{name}{end}" for name in NUMBERS for end in ("", "_low", "_high"))]].assign(of=1)
    caps = own["cap"].map(lambda cap: "" if math.isnan(cap) else f"{cap:g} ")
    names = dict(zip(own["row"], caps + own["cell"], strict=True))
    own["undercut_by"] = own["undercut_by"].map(lambda row: names.get(row, row))
    if subject.grouped:
        own = _mean(own, len(subject.tasks))
    turned = own["higher_is_better"].astype(bool)
    lost = own["difference"].where(~turned, -own["difference"])
    low = own["difference_low"].where(~turned, -own["difference_high"])
    high = own["difference_high"].where(~turned, -own["difference_low"])
    return own.assign(
        lost=lost,
        lost_low=low,
        lost_high=high,
        method=own["cell"].map(method),
        foresees=own["importance"].map(foresees),
    ).reset_index(drop=True)


def _mean(own: pd.DataFrame, tasks: int) -> pd.DataFrame:
    """The means over a group's tasks."""
    full = own["value"][own["kind"] == "full"].mean()
    made = []
    for _, group in own.groupby(KEY, sort=False, dropna=False):
        if len(group) < tasks:
            continue
        first, value = group.iloc[0].to_dict(), group["value"].mean()
        points = first["unit"] == "points"
        numbers = dict.fromkeys([f"{name}{end}" for name in NUMBERS for end in ("_low", "_high")], math.nan)
        numbers |= {name: group[name].mean() if points else math.nan for name in ("to_window", "to_exact")}
        numbers |= {"to_reference": group["to_reference"].mean() if points else math.nan}
        numbers |= {"way": math.nan, "undercut": math.nan}
        difference = 100 * (value - full) if points else 100 * (value / full - 1)
        same = "group" if (group["same_as"].fillna("") != "").all() else ""
        made.append(
            first | numbers | {"value": value, "difference": difference, "same_as": same, "row": "", "of": tasks}
            | {"undercut_by": ""}
            | {"binding": group["binding"].mean(), "bound": bool(group["bound"].any())}
            | {"documents": int(group["documents"].sum()), "spread_low": math.nan, "spread_high": math.nan}
        )  # fmt: skip
    return pd.DataFrame(made, columns=own.columns)


@cache
def method(cell: str) -> str:
    """A cell's name without its sizes and options: how it ranks, what becomes of a victim, and how pairs are kept.

    `count_min 512×4 topk32 decay=0.9` is `count_min`, `exact aggregate store=int4` is `exact aggregate int4`.
    """
    head, *rest = cell.split()
    fate = [word for word in rest if re.fullmatch(r"aggregate\w*", word)]
    store = [word.removeprefix("store=") for word in rest if word.startswith("store=")]
    return " ".join([head, *fate, *store])


@cache
def family(cell: str) -> str:
    """A cell's name without the size of its sketch: `count_min 512×4 topk32` is of `count_min topk32`."""
    return re.sub(r"\s*\b\d+[×x]\d+\b", "", cell).strip()


def foresees(importance: str) -> bool:
    """Whether a ranking has to know the text before it is read, so that it is a control and nothing to use."""
    return importance in POLICIES and bool(POLICIES[importance].foresees)


def usable(table: pd.DataFrame) -> pd.DataFrame:
    """The cells of `cells` that can be ranked: that lose pairs, that foresee nothing, and that were run themselves."""
    return table[table["bound"].astype(bool) & ~table["foresees"] & (table["same_as"].fillna("") == "")]


@cache
def is_window(cell: str) -> bool:
    """Whether a cell is the plain window, in any store."""
    return drops_the_oldest(cell) and cell.startswith("window")


@cache
def drops_the_oldest(cell: str) -> bool:
    """Whether a cell is the plain window, or the one behind a text's first pairs, in any store."""
    return method(cell).removesuffix(store(cell)).strip() in ("window", "streaming")


@cache
def store(cell: str) -> str:
    """How a cell keeps pairs, by its name: one of `FORMATS`, or nothing for the model's own numbers."""
    last = method(cell).split()[-1]
    return last if last in FORMATS else ""


def more_pairs(table: pd.DataFrame, cap: float) -> pd.DataFrame:
    """The cells of a table of `cells` with more pairs than a cap, in the range of its cells' bytes or just below."""
    own = table["total_bytes"][table["cap"] == cap]
    return table[(table["cap"] > cap) & table["total_bytes"].between(own.min() / ABOUT, own.max())]


def window_bytes(rows: pd.DataFrame) -> dict[float, float]:
    """By cap, the bytes of the plain window, with which all others are compared, where some cell has as many.

    Such are `window` and `streaming`, in which the first pairs stay. Of several stores it is the one
    with the most bits.
    """
    plain = rows[rows["cell"].map(drops_the_oldest) & rows["cap"].notna()]
    found = plain.groupby("cap")["total_bytes"].max()
    return {float(cap): float(count) for cap, count in found.items()}
