"""The points of the plots, out of the cells of `views.cells`: one function for each kind of plot."""

from __future__ import annotations

import math

import pandas as pd

from sketch_eval.leaderboard.numbers import change, kib, scored
from sketch_eval.leaderboard.views import DEPTH, Subject, family, main_caps, method, more_pairs, usable, window_bytes

ASIDE = 0.03
"""Share of a plot's axis by which points of equal bytes stand aside, so that they do not hide each other."""
POINT = "panel name method at x y low high far front label said bytes n".split()


def by_bytes(rows: pd.DataFrame, subject: Subject, table: pd.DataFrame) -> pd.DataFrame:
    """The points of `bytes` and `cells`, a panel a cap: what each cell loses, and its bytes over the window's.

    In a panel stand the cells of its cap that lose pairs, and those of more pairs or no bound in about as many bytes.
    Where no cell has a window's bytes, they are over those of the cheapest cell.
    `x` is in KiB, with points of equal bytes a little apart; `y`, `low` and `high` are what is lost, cut off where few
    cells lie beyond the others, and `far` then says the number; `front` marks those that none beats at as few bytes.
    """
    table = table[(table["same_as"].fillna("") == "") & table["lost"].notna() & (table["kind"] != "full")]
    base, panels = window_bytes(rows), []
    for cap in main_caps(rows):
        own = table[(table["cap"] == cap) & table["bound"].astype(bool)]
        if own.empty:
            continue
        unbounded = table[table["cap"].isna()]
        unbounded = unbounded[unbounded["total_bytes"].between(own["total_bytes"].min(), own["total_bytes"].max())]
        others = pd.concat([more_pairs(table, cap), unbounded])
        others = others[others["bound"].astype(bool)]
        panel = pd.concat([own, others])
        least = base.get(cap, own["total_bytes"].min())
        panel = panel.assign(panel=f"cap {cap:g}", over=(panel["total_bytes"] - least) / 1024)
        panel["label"] = [
            "" if one == cap else "unbounded" if math.isnan(one) else f"cap {one:g}" for one in panel["cap"]
        ]
        panel["x"] = _aside(panel["over"], panel["label"])
        panels.append(_drawn(_clipped(panel)))
    return pd.concat(panels, ignore_index=True) if panels else pd.DataFrame()


def by_total(rows: pd.DataFrame, subject: Subject, table: pd.DataFrame) -> pd.DataFrame:
    """The points of `total`: what each cell that loses pairs loses, at any cap, and its KiB; columns as above."""
    own = table[(table["same_as"].fillna("") == "") & table["lost"].notna() & table["bound"].astype(bool)]
    if own.empty:
        return own
    return _drawn(_clipped(own.assign(x=own["total_bytes"] / 1024, label="", panel="all")))


def by_cap(rows: pd.DataFrame, subject: Subject, table: pd.DataFrame) -> pd.DataFrame:
    """The points of `caps`: the mean over a family's cells of what they lose at each cap, where they lose pairs.

    low and high are the interval where that is one cell, else the least and the greatest of them; `count` is how many.
    """
    table = usable(table)
    table = table[table["cap"].notna() & table["lost"].notna()].assign(family=table["cell"].map(family))
    found = []
    for (line, cap), group in table.groupby(["family", "cap"], sort=False):
        one, first = len(group) == 1, group.iloc[0]
        low, high = (first["lost_low"], first["lost_high"]) if one else (group["lost"].min(), group["lost"].max())
        what = first["cell"] if one else f"{line}, the mean of {len(group)}"
        found.append(
            {"family": line, "method": first["method"], "cap": cap, "y": group["lost"].mean(), "low": low,
             "high": high, "count": len(group), "what": what, "said": change(first["unit"], group["difference"].mean())}
        )  # fmt: skip
    return pd.DataFrame(found)


def by_size(rows: pd.DataFrame, subject: Subject, table: pd.DataFrame) -> pd.DataFrame:
    """The tiles of `sizes`: what sketches lose by `family`, cap, width and depth."""
    table = table[(table["kind"] == "sketch") & table["width"].notna() & table["lost"].notna()]
    table = table.assign(family=table["cell"].map(family), panel=table["cap"].map("cap {:g}".format))
    keys = ["family", "panel", "width", "depth"]
    tiles = table.groupby(keys, sort=False, as_index=False).agg(
        lost=("lost", "mean"), bound=("bound", "any"), unit=("unit", "first")
    )
    tiles["said"] = [f"{lost:.1f}" if bound else "= full" for lost, bound in zip(tiles.lost, tiles.bound, strict=True)]
    return tiles.assign(width=tiles["width"].astype(int), depth=tiles["depth"].astype(int))


def by_depth(rows: pd.DataFrame, subject: Subject, table: pd.DataFrame) -> pd.DataFrame:
    """The points of `depths`: the score by where the fact stood, 0 (start) to 1 (end), a line a family."""
    known = rows["needle_depth"].notna() & rows["value"].notna()
    part = rows["metric"].str.replace(DEPTH, "", regex=True) == subject.metric
    own = rows[known & part & rows["task"].isin(subject.tasks) & (rows["same_as"].fillna("") == "")]
    if own["needle_depth"].nunique() < 2 or not main_caps(rows):
        return own.iloc[:0]
    own = own.assign(method=own["cell"].map(method), family=own["cell"].map(family))
    full, panels = own[own["kind"] == "full"], []
    for cap in main_caps(rows):
        here = own[(own["cap"] == cap)]
        lines = here.groupby(["family", "method", "needle_depth"], sort=False, as_index=False).agg(
            y=("value", "mean"), low=("value_low", "min"), high=("value_high", "max"), n=("documents", "max")
        )
        base = full.assign(y=full["value"], family="full", method="full", n=full["documents"])
        panels.append(pd.concat([lines, base]).assign(panel=f"cap {cap:g}"))
    found = pd.concat(panels, ignore_index=True)
    found["said"] = [scored(value) for value in found["y"]]
    return found[["panel", "family", "method", "needle_depth", "y", "n", "said"]]


def _drawn(panel: pd.DataFrame) -> pd.DataFrame:
    """The columns that a plot needs, with what a point says of itself and the Pareto front."""
    said = [
        change(row["unit"], row["difference"], row["difference_low"], row["difference_high"])
        for row in panel.to_dict("records")
    ]
    return panel.assign(
        said=said, bytes=panel["total_bytes"].map(kib), front=_front(panel), n=panel["documents"],
        name=[cell + (f" ({label})" if label else "") for cell, label in zip(panel.cell, panel.label, strict=True)],
        low=panel["low"].where(panel["far"] == ""), high=panel["high"].where(panel["far"] == ""),
        at=panel["cap"].map(lambda cap: "unbounded" if math.isnan(cap) else f"{cap:g}"),
    )[POINT]  # fmt: skip


def _front(panel: pd.DataFrame) -> pd.Series:
    """Which cells none beats at as few bytes; what foresees the text takes no part."""
    able = panel[~panel["foresees"]].sort_values(["total_bytes", "lost"], kind="stable")
    best = able["lost"].cummin().shift(fill_value=math.inf)
    return panel.index.to_series().isin(able.index[able["lost"] < best])


def _clipped(panel: pd.DataFrame) -> pd.DataFrame:
    """`y`, `low`, `high` and `far`: one cell that went astray would hide what the others differ by."""
    panel = panel.reset_index(drop=True)
    lower, upper = panel["lost"].quantile([0.25, 0.75])
    reach = 4 * (upper - lower)
    least, most = (lower - reach, upper + reach) if reach > 0 else (-math.inf, math.inf)
    inside = panel["lost"][panel["lost"].between(least, most)]
    shown = panel["lost"].clip(min(inside.min(), least + reach), inside.max() + 0.12 * (inside.max() - inside.min()))
    off = ~panel["lost"].between(least, most)
    far = [
        f"{'▲' if row['lost'] > most else '▼'} {change(row['unit'], row['difference']).split(' [')[0]}" if out else ""
        for out, row in zip(off, panel.to_dict("records"), strict=True)
    ]
    shown = shown.where(off, panel["lost"])
    # An interval may be far longer than the cells are apart; it then runs to the end of the axis.
    span = shown.max() - shown.min()
    ends = {"low": panel["lost_low"], "high": panel["lost_high"]}
    if span > 0 and len(panel) > 2:
        ends = {name: end.clip(shown.min() - 1.5 * span, shown.max() + 1.5 * span) for name, end in ends.items()}
    return panel.assign(y=shown, far=far, **ends)


def _aside(over: pd.Series, label: pd.Series) -> pd.Series:
    """The numbers with those too near to be told apart a little aside on a symmetric log axis, labelled ones last."""
    log = over.map(lambda value: math.copysign(math.log1p(abs(value)), value))
    step = max(log.max() - log.min(), 1.0) * ASIDE
    group = (log.sort_values(kind="stable").diff() > step / 2).cumsum().reindex(over.index)
    order = pd.DataFrame({"group": group, "log": log, "last": label != ""}).sort_values(["group", "last", "log"])
    together = order.groupby("group")["log"]
    number = together.transform("size")
    moved = together.transform("mean") + (together.cumcount() - (number - 1) / 2) * step * (10 / number).clip(upper=1)
    return moved.reindex(over.index).map(lambda value: math.copysign(math.expm1(abs(value)), value))
