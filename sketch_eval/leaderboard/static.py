"""The plots of a leaderboard as PNG and SVG files: the data of `tidy.py`, drawn by Matplotlib without a screen."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sketch_eval.leaderboard import tidy
from sketch_eval.leaderboard.figures import FRONT, FULL, GOLD, GREY, IDLE, SCALE, UNBOUND, Style, styles

LOOK: dict[str, Any] = {
    "svg.hashsalt": "sketch_eval",  # the ids in an SVG are random otherwise
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e6ea",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.facecolor": "white",
}
DPI = 120


def write(folder: Path, rows: pd.DataFrame, primary: dict[str, str] | None = None) -> list[Path]:
    """Write folder/figures/*.png and *.svg and return their paths; equal rows give equal bytes.

    ``primary`` names the metric that is drawn of each task; without it all are.
    """
    target = folder / "figures"
    target.mkdir(parents=True, exist_ok=True)
    for old in (*target.glob("*.png"), *target.glob("*.svg")):
        old.unlink()  # Of a grid that may have changed.
    paths = []
    with mpl.rc_context(dict[Any, Any](mpl.rcParamsDefault) | LOOK):
        for name, figure in _drawn(rows, primary):
            for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
                path = target / f"{name}.{suffix}"
                figure.savefig(path, metadata=metadata, dpi=DPI, bbox_inches="tight")
                paths.append(path)
    return paths


def pictures(folder: Path, rows: pd.DataFrame, about: dict[str, Any]) -> list[Path]:
    """Draw quality against bytes, and cell by cell, of the first task's first metric: what leaderboard.md shows.

    Args:
        folder: where bytes.png and cells.png go, those that there is data for.
        rows: the rows.
        about: what the sweep was, with its tasks and their primary metrics.
    """
    task, metric = next((task, entry["primary"]) for task, entry in about["tasks"].items())
    chosen, style, paths = tidy.select(rows, task, metric), styles(rows), []
    with mpl.rc_context(dict[Any, Any](mpl.rcParamsDefault) | LOOK):
        for plot in ("bytes", "cells"):
            path = folder / f"{plot}.png"
            path.unlink(missing_ok=True)
            if plot in tidy.available(chosen):
                figure = PLOTS[plot](chosen, task, metric, style)
                figure.savefig(path, metadata={"Software": None}, dpi=DPI, bbox_inches="tight")
                paths.append(path)
    return paths


def _drawn(rows: pd.DataFrame, primary: dict[str, str] | None) -> Iterator[tuple[str, Figure]]:
    """The name and the figure of each plot that there is data for."""
    style = styles(rows)
    for task, metric in tidy.choices(rows):
        chosen = tidy.select(rows, task, metric)
        if primary is None or primary.get(task, metric) == metric:
            name = re.sub(r"[^\w.]+", "_", f"{task}-{metric}")
            for plot in tidy.available(chosen):
                yield f"{plot}-{name}", PLOTS[plot](chosen, task, metric, style)
    for (task, metric), chosen in tidy.needles(rows).items():
        yield re.sub(r"[^\w.-]+", "_", f"depths-{task}-{metric}"), _depths(chosen, task, metric, style)


def _bytes(rows: pd.DataFrame, task: str, metric: str, style: dict[str, Style]) -> Figure:
    figure, axes = _canvas()
    own = tidy.points(rows)
    for name, group in own[own["bound"] & (own["kind"] != "full")].groupby("family", sort=False):
        look = style[str(name)]
        _points(axes, group["total_bytes"], group, look, linestyle="none", label=str(name))
    idle = own[~own["bound"] & (own["kind"] != "full")]
    if len(idle):
        axes.plot(idle["total_bytes"], idle["value"], "o", mfc="none", color=GREY, label=UNBOUND)
    front = tidy.pareto(own)
    axes.plot(front["total_bytes"], front["value"], drawstyle="steps-post", color=GOLD, label=FRONT)
    full = own[own["kind"] == "full"]
    if len(full):
        axes.axhline(full["value"].iloc[0], color=GREY, linestyle="--", label=FULL)
        axes.plot(full["total_bytes"], full["value"], "o", color=GREY)
    ticks = tidy.byte_ticks(rows)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [tidy.size(tick) for tick in ticks])
    axes.set_xlabel("total bytes a sequence")
    return _finish(figure, rows, task, metric)


def _caps(rows: pd.DataFrame, task: str, metric: str, style: dict[str, Style]) -> Figure:
    figure, axes = _canvas()
    data = tidy.by_cap(rows)
    caps = sorted(data["cap"].unique())
    _lines(axes, data, "cap", style, lambda cap, offset: cap * 1.012**offset)
    if (full := tidy.full_value(rows)) is not None:
        axes.axhline(full, color=GREY, linestyle="--", label=FULL)
    axes.set_xscale("log", base=2)
    axes.set_xticks(caps, [f"{cap:g}" for cap in caps])
    axes.set_xlabel("cap, pairs a layer")
    return _finish(figure, rows, task, metric)


def _cells(rows: pd.DataFrame, task: str, metric: str, style: dict[str, Style]) -> Figure:
    data = tidy.by_cell(rows)
    names, caps = list(dict.fromkeys(data["cell"])), sorted(data["cap"].unique())
    figure = Figure(figsize=(2.5 + 2.2 * len(caps), 0.9 + 0.17 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(caps), sharey=True, squeeze=False)[0]
    for cap, axes in zip(caps, panels, strict=True):
        for row in data[data["cap"] == cap].itertuples():
            look, line = style[row.family], names.index(row.cell)
            if row.off:
                beyond = row.difference > row.shown
                axes.plot(row.shown, line, ">" if beyond else "<", markersize=4.5, color=look.colour)
                side = {"xytext": (-5 if beyond else 5, 0), "ha": "right" if beyond else "left", "va": "center"}
                text = f"{row.difference:+,.0f}"
                axes.annotate(text, (row.shown, line), textcoords="offset points", fontsize=7, **side)
            elif row.bound:
                axes.plot([row.difference_low, row.difference_high], [line, line], color=look.colour, linewidth=0.8)
                axes.plot(row.shown, line, marker=look.marker, markersize=4.5, color=look.colour)
            else:
                axes.plot(row.shown, line, "o", mfc="none", color=GREY, markersize=4.5)
        axes.set_title(f"cap {cap:g}", fontsize=9)
        axes.xaxis.set_major_formatter("{x:+g}")
        axes.xaxis.set_major_locator(MaxNLocator(5))
    panels[0].set_yticks(range(len(names)), names, fontsize=8)
    panels[0].invert_yaxis()
    figure.supxlabel(tidy.difference_title(rows), fontsize=9)
    figure.suptitle(f"{task}: {tidy.title(rows, metric)}", fontsize=10)
    return figure


def _depths(rows: pd.DataFrame, task: str, metric: str, style: dict[str, Style]) -> Figure:
    data = tidy.by_depth(rows)
    caps = sorted(data["cap"].dropna().unique())
    full = data[data["kind"] == "full"].sort_values("needle_depth")
    figure = Figure(figsize=(3.4 * len(caps), 3.6))
    panels = figure.subplots(1, len(caps), sharey=True, squeeze=False)[0]
    for cap, axes in zip(caps, panels, strict=True):
        chosen = data[(data["cap"] == cap) & (data["kind"] != "full")]
        _lines(axes, chosen, "needle_depth", style, lambda depth, offset: depth + 0.003 * offset)
        axes.plot(full["needle_depth"], full["value"], color=GREY, linestyle="--", label=FULL)
        axes.set_title(f"cap {cap:g}", fontsize=9)
        axes.set_xticks(sorted(data["needle_depth"].unique()))
        axes.set_xlabel("depth of the fact (0 = start)")
    return _finish(figure, rows, task, metric)


def _sizes(rows: pd.DataFrame, task: str, metric: str, style: dict[str, Style]) -> Figure:
    data = tidy.heat_map(rows)
    names, caps = list(data["family"].unique()), sorted(data["cap"].unique())
    widths, depths = sorted(data["width"].unique()), sorted(data["depth"].unique())
    data = data.assign(shade=np.log10(data["value"]) if tidy.is_log(rows) else data["value"])
    shades = data["shade"][data["bound"]]
    ramp = LinearSegmentedColormap.from_list("ramp", SCALE)
    scale = (ramp if tidy.higher_is_better(rows) else ramp.reversed()).with_extremes(bad=IDLE)
    figure = Figure(figsize=(3.2 * len(caps), 0.7 + 1.4 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), len(caps), sharex=True, sharey=True, squeeze=False)
    for (row, name), (column, cap) in ((r, c) for r in enumerate(names) for c in enumerate(caps)):
        axes = panels[row, column]
        group = data[(data["family"] == name) & (data["cap"] == cap)]
        grid = group[group["bound"]].pivot_table(index="depth", columns="width", values="shade")
        grid = grid.reindex(index=depths, columns=widths)
        axes.imshow(grid, origin="lower", aspect="auto", cmap=scale, vmin=shades.min(), vmax=shades.max())
        for cell in group.itertuples():
            text = tidy.number(cell.value) if cell.bound else "= full"
            axes.text(widths.index(cell.width), depths.index(cell.depth), text, ha="center", va="center", fontsize=8)
        axes.set_title(f"{name}, cap {cap:g}", fontsize=8)
        axes.set_xticks(range(len(widths)), [f"{width:g}" for width in widths])
        axes.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths])
        axes.grid(visible=False)
    figure.supxlabel("width", fontsize=9)
    figure.supylabel("depth", fontsize=9)
    figure.suptitle(f"{task}: {tidy.title(rows, metric)}; grey did not bind", fontsize=10)
    return figure


PLOTS = {"bytes": _bytes, "caps": _caps, "cells": _cells, "sizes": _sizes}


def _canvas() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.5, 4.6))
    return figure, figure.subplots()


def _points(axes: Axes, x: Any, group: pd.DataFrame, look: Style, **more: Any) -> None:
    bars = np.clip([group["value"] - group["low"], group["high"] - group["value"]], 0, None)
    axes.errorbar(
        x, group["value"], yerr=bars, color=look.colour, marker=look.marker, markersize=5, elinewidth=0.7, capsize=1.5,
        **more,
    )  # fmt: skip


def _lines(axes: Axes, data: pd.DataFrame, x: str, style: dict[str, Style], nudge: Any) -> None:
    """A line a family through what bound, and hollow points for what did not."""
    aside = tidy.offsets(list(data["family"].unique()))
    for name, offset in aside.items():
        group = data[(data["family"] == name) & data["bound"]].sort_values(x)
        if len(group):
            where = [nudge(value, offset) for value in group[x]]
            _points(axes, where, group, style[name], linestyle=style[name].line, label=name)
    idle = data[~data["bound"]]
    if len(idle):
        where = [nudge(value, aside[name]) for value, name in zip(idle[x], idle["family"], strict=True)]
        axes.plot(where, idle["value"], "o", mfc="none", color=GREY, label=UNBOUND)


def _finish(figure: Figure, rows: pd.DataFrame, task: str, metric: str) -> Figure:
    """Title, label and scale of the values, and one legend for all panels."""
    legend: dict[str, Any] = {}
    for axes in figure.axes:
        axes.minorticks_off()
        if tidy.is_log(rows):
            axes.set_yscale("log")
        legend |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.axes[0].set_ylabel(tidy.title(rows, metric))
    figure.axes[-1].legend(legend.values(), legend.keys(), loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8)
    figure.suptitle(task, fontsize=10)
    return figure
