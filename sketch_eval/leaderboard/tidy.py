"""Rows of a leaderboard to the tidy data of its plots: what `figures.py` and `static.py` both draw."""

from __future__ import annotations

import math
import re

import pandas as pd

DEPTH = r"_depth_\d+$"
MOST_LINES = 64
"""Cells that a plot of a line a cell has room for."""


def choices(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """All (task, metric) of the rows, parts of a metric such as `acc_depth_25` left out, in their order."""
    whole = rows[~rows["metric"].str.contains(DEPTH, regex=True)]
    return [(str(task), str(metric)) for task, metric in whole[["task", "metric"]].drop_duplicates().to_numpy()]


def select(rows: pd.DataFrame, task: str, metric: str) -> pd.DataFrame:
    """The rows of one metric of one task that have a value."""
    return rows[(rows["task"] == task) & (rows["metric"] == metric) & rows["value"].notna()]


def needles(rows: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """The rows at a needle's depth by task and metric: `acc_depth_25` is `acc`, `recall_depth_25` `recall_depth`."""
    found = rows[rows["needle_depth"].notna() & rows["value"].notna()]
    tasks = found["task"].str.replace(DEPTH, "_depth", regex=True)
    metrics = found["metric"].str.replace(DEPTH, "", regex=True)
    groups = {(str(task), str(metric)): group for (task, metric), group in found.groupby([tasks, metrics], sort=False)}
    return {
        key: group
        for key, group in groups.items()
        if group["needle_depth"].nunique() > 1 and group["cap"].notna().any()
    }


def family(cell: str) -> str:
    """A cell's name without the size of its sketch: `count_min 512×4 topk32` is of `count_min topk32`."""
    return re.sub(r"\s*\b\d+[×x]\d+\b", "", cell).strip()


def paired(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `low` and `high`, the interval of the difference to the full cache, laid about its value.

    How hard the documents are is in the full cache's score as well, so this is what cells are to be told apart by. The
    score's own interval stands in where the difference has none.
    """
    points, share = rows["unit"] == "points", rows["difference"] / 100
    full = (rows["value"] - share).where(points, rows["value"] / (1 + share))
    off = {end: rows[f"difference_{end}"] / 100 for end in ("low", "high")}
    ends = {end: (full + change).where(points, full * (1 + change)) for end, change in off.items()}
    known = (ends["low"] - ends["high"]).abs() < math.inf
    return rows.assign(**{end: ends[end].where(known, rows[f"value_{end}"]) for end in ends})


def pareto(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of one metric that none beats at as few bytes, cheapest first: caches that bound, and the full one."""
    able = rows[rows["bound"].astype(bool) | (rows["kind"] == "full")]
    cost = able["value"] * (-1 if higher_is_better(rows) else 1)
    able = able.assign(_cost=cost).sort_values(["total_bytes", "_cost"], kind="stable")
    best = able["_cost"].cummin().shift(fill_value=math.inf)
    return able[able["_cost"] < best].drop(columns="_cost")


def points(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of one metric that were run themselves, with their `family`, `low` and `high`."""
    own = paired(rows[rows["same_as"].fillna("") == ""])
    return own.assign(family=own["cell"].map(family), bound=own["bound"].astype(bool))


def by_cap(rows: pd.DataFrame) -> pd.DataFrame:
    """`family, kind, cap, value, low, high, cells, bound` of one metric, the full cache left out.

    The value is the mean over the family's cells that bound at that cap. low and high are the interval of `paired`
    where that is one cell, else the least and the greatest value of them. Where none bound, `bound` is False.
    """
    return _summary(rows[rows["cap"].notna()], ["cap"])


def by_depth(rows: pd.DataFrame) -> pd.DataFrame:
    """As `by_cap`, with `needle_depth` from 0 (start) to 1 (end), and with what has no cap, for which it is NaN."""
    return _summary(rows, ["cap", "needle_depth"], full=True)


def by_cell(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of `points` of one metric that differ from the full cache by a number, with `shown` and `off`.

    shown is the difference, and where it is far from those of most cells at its cap, the end of the axis: one cell that
    went astray would hide what the others differ by. off says so.
    """
    own = points(rows)
    own = own[(own["kind"] != "full") & own["cap"].notna() & own["difference"].notna()]
    shown = own.groupby("cap")["difference"].transform(_clipped)
    return own.assign(shown=shown, off=shown != own["difference"])


def _clipped(values: pd.Series) -> pd.Series:
    low, high = values.quantile([0.25, 0.75])
    reach = 4 * (high - low)
    return values.clip(low - reach, high + reach) if reach > 0 else values


def heat_map(rows: pd.DataFrame) -> pd.DataFrame:
    """`family, cap, width, depth, value, bound` of the sketches of one metric."""
    sketches = rows[(rows["kind"] == "sketch") & rows["width"].notna() & rows["depth"].notna()]
    sketches = sketches.assign(family=sketches["cell"].map(family), bound=sketches["bound"].astype(bool))
    keys = ["family", "cap", "width", "depth"]
    return sketches.groupby(keys, sort=False, as_index=False).agg(value=("value", "mean"), bound=("bound", "any"))


def _summary(rows: pd.DataFrame, by: list[str], full: bool = False) -> pd.DataFrame:
    rows = paired(rows).assign(family=rows["cell"].map(family), bound=rows["bound"].astype(bool))
    rows = rows if full else rows[rows["kind"] != "full"]
    found = []
    for key, group in rows.groupby(["family", "kind", *by], sort=False, dropna=False):
        cells = group[group["bound"]] if group["bound"].any() else group
        low, high = ("low", "high") if len(cells) == 1 else ("value", "value")
        numbers = (cells["value"].mean(), cells[low].min(), cells[high].max(), len(cells), bool(group["bound"].any()))
        found.append((*key, *numbers))
    return pd.DataFrame(found, columns=["family", "kind", *by, "value", "low", "high", "cells", "bound"])


def offsets(names: list[str]) -> dict[str, float]:
    """By family, how many steps its points stand aside so that they do not hide each other: -8 to 8 at most."""
    return {name: (i - (len(names) - 1) / 2) * min(1, 16 / len(names)) for i, name in enumerate(names)}


def higher_is_better(rows: pd.DataFrame) -> bool:
    """Whether more of the one metric of these rows is better."""
    return bool(rows["higher_is_better"].iloc[0])


def is_log(rows: pd.DataFrame) -> bool:
    """Whether the one metric of these rows wants a log axis: a perplexity over more than a factor of ten."""
    values = rows["value"]
    return not higher_is_better(rows) and bool(values.min() > 0) and bool(values.max() > 10 * values.min())


def title(rows: pd.DataFrame, metric: str) -> str:
    """The metric, and which way is better."""
    return f"{metric} ({'higher' if higher_is_better(rows) else 'lower'} is better)"


def number(value: float | None) -> str:
    """Four digits that matter; nothing for NaN."""
    if value is None or math.isnan(value):
        return ""
    return f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:#.4g}"


def size(count: float) -> str:
    """Bytes in KiB or MiB."""
    return f"{count / 2**20:.3g} MiB" if count >= 2**20 else f"{count / 2**10:,.3g} KiB"


def byte_ticks(rows: pd.DataFrame) -> list[int]:
    """Powers of two among the rows' total bytes, at most eight; the least and the greatest where there are not two."""
    low, high = int(rows["total_bytes"].min()), int(rows["total_bytes"].max())
    powers = range(math.ceil(math.log2(max(1, 0.93 * low))), math.floor(math.log2(max(1, 1.07 * high))) + 1)
    return [2**power for power in powers[:: 1 + len(powers) // 9]] if len(powers) > 1 else sorted({low, high})


def difference_title(rows: pd.DataFrame) -> str:
    """What the axis of a plot of differences to the full cache says, with the unit of the one metric of these rows."""
    unit = "%" if rows["unit"].iloc[0] == "percent" else "points (hundredths)"
    return f"difference to the full cache, {unit}"


def full_value(rows: pd.DataFrame) -> float | None:
    """The full cache's value of the one metric of these rows, if it was measured."""
    values = rows["value"][rows["kind"] == "full"]
    return float(values.iloc[0]) if len(values) else None


def available(rows: pd.DataFrame) -> list[str]:
    """Which of the plots `bytes`, `caps`, `cells` and `sizes` the rows of one metric have data for."""
    if not (rows["kind"] != "full").any():
        return []
    sizes = heat_map(rows)
    maps = sizes["width"].nunique() > 1 and bool(sizes["bound"].any())
    lines = 1 < by_cell(rows)["cell"].nunique() <= MOST_LINES
    return ["bytes", *["caps"] * (by_cap(rows)["cap"].nunique() > 1), *["cells"] * lines, *["sizes"] * maps]
