"""The plots of a leaderboard, each written once: a Vega-Lite specification that the page draws and that becomes a PNG.

Altair writes the specification, vl-convert draws it without a browser, and the page embeds the same JavaScript that
vl-convert has within it (0.9 MB), so that a picture in leaderboard.md and the one on the page are of one source. All
plots show what is lost: the difference to the full cache with the sign that makes more of it worse.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import altair as alt
import pandas as pd
import vl_convert
from PIL import Image

from sketch_eval.leaderboard import views
from sketch_eval.leaderboard.looks import COLOURS, look
from sketch_eval.leaderboard.points import by_bytes, by_cap, by_depth, by_size, by_total
from sketch_eval.leaderboard.views import Subject

GREY = "#868e99"
RAMP = ["#f6efe0", "#a8d3c4", "#3a9a8c"]
POINTS = alt.Data(name="points")
INK = "#10181f"
"""On RAMP, whatever the page's theme."""
STYLES: dict[str, Any] = {
    "front": {"color": "#111820", "strokeWidth": 1.6, "strokeDash": [5, 3]},
    "full": {"color": GREY, "strokeWidth": 1},
    "note": {"color": "#59636f", "fontSize": 10},
}
"""Of the marks that have no method's colour; the page puts its theme's in their place."""
CONFIG: dict[str, Any] = {
    "style": STYLES, "view": {"stroke": None}, "background": "white",
    "axis": {"gridColor": "#e3e6ea", "labelLimit": 330, "titleFontWeight": 500},
    "legend": {"title": None, "labelLimit": 260, "symbolSize": 70, "symbolOpacity": 1},
    "header": {"titleFontSize": 0, "titlePadding": 0}, "title": {"anchor": "start", "subtitleColor": "#59636f"},
}  # fmt: skip
TICKS = [sign * 2**power for sign in (-1, 1) for power in (0, 2, 4, 6, 8, 10, 12, 14)] + [0]
LOSSES = [0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000, 300000, 1000000]
MOST_CELLS = 80
"""Lines that a plot of a line a cell has room for."""


class Frame(NamedTuple):
    """What a plot is drawn by, beside its points: subjects of which it is the same share a specification.

    Attributes:
        metric: lm-eval's name of it.
        unit: of differences, as `Row.unit`.
        methods: those that have points, in an order that is the same everywhere.
        wide: whether what is lost differs by so much that it wants a log axis.
        ticks: the caps, or the depths of needles, of the points.
    """

    metric: str
    unit: str
    methods: tuple[str, ...]
    wide: bool
    ticks: tuple[float, ...]


def frame(subject: Subject, table: pd.DataFrame, points: pd.DataFrame) -> Frame:
    """The frame of a subject's points."""
    order = {name: place for place, name in enumerate(COLOURS)}
    names = set(points["method"]) - {"full"} if "method" in points else set()
    methods = sorted(names, key=lambda name: (order.get(name.split()[0], len(order)), name))
    ticks = next((points[key] for key in ("needle_depth", "cap") if key in points), pd.Series())
    wide = "y" in points and bool(points["y"].max() > 300)
    unit = table["unit"].iloc[-1]  # The last cell's, for the full cache has none of its own.
    return Frame(subject.metric, unit, tuple(methods), wide, tuple(sorted(ticks.unique().tolist())))


def _scales(methods: tuple[str, ...]) -> tuple[Any, Any]:
    """The colour and the shape by method."""
    looks = [look(method) for method in methods]
    domain = {"domain": list(methods)}
    return (
        alt.Color("method:N", scale=alt.Scale(range=[colour for colour, _ in looks], **domain), title=None),
        alt.Shape("method:N", scale=alt.Scale(range=[shape for _, shape in looks], **domain), title=None),
    )


def _loss_axis(of: Frame, log: bool = False) -> dict[str, Any]:
    """The title, and for losses of several sizes the scale, of an axis of what is lost."""
    title = f"loss of {of.metric}, {'%' if of.unit == 'percent' else 'points (hundredths)'}"
    if log:
        return {"title": title, "scale": alt.Scale(type="symlog", constant=1), "axis": alt.Axis(values=LOSSES)}
    return {"title": title, "scale": alt.Scale(zero=True, nice=True)}


def _tooltips(*fields: tuple[str, str]) -> list[alt.Tooltip]:
    return [alt.Tooltip(field, title=title) for field, title in fields]


TIPS = (
    ("name:N", "cell"), ("at:N", "cap"), ("said:N", "difference to full"), ("bytes:N", "total KiB"),
    ("n:Q", "documents"),
)  # fmt: skip


def _scatter(of: Frame, x: Any, log: bool) -> alt.LayerChart:
    """Points with bars, the full cache's line and the Pareto front."""
    colour, shape = _scales(of.methods)
    axis = _loss_axis(of, log)
    base = alt.Chart(POINTS).encode(x=x)
    y, inside = alt.Y("y:Q", **axis), "datum.far === ''"
    zero = alt.Chart(POINTS).mark_rule(style="full").encode(y=alt.datum(0))
    front = base.transform_filter("datum.front").mark_line(interpolate="step-after", style="front").encode(y=y)
    bars = (
        base.transform_filter(inside)
        .mark_rule(opacity=0.45)
        .encode(y=alt.Y("low:Q", **axis), y2="high:Q", color=colour)
    )
    dots = base.mark_point(filled=True, size=75, opacity=0.95).encode(
        y=y, color=colour, shape=shape, tooltip=_tooltips(*TIPS)
    )
    notes = (
        base.transform_filter("datum.label !== ''")
        .mark_text(style="note", align="left", dx=7)
        .encode(y=y, text="label:N")
    )
    far = base.transform_filter("datum.far !== ''").mark_text(style="note", dy=-11).encode(y=y, text="far:N")
    return alt.layer(zero, front, bars, dots, notes, far)


def bytes_chart(of: Frame) -> alt.LayerChart:
    """What is lost against bytes over the window of the same cap."""
    x = alt.X(
        "x:Q", title="KiB over a window of the cap (where there is none, over the cheapest cell)",
        axis=alt.Axis(values=sorted(TICKS), format="+,d"),
        scale=alt.Scale(type="symlog", constant=1, padding=14, nice=False),
    )  # fmt: skip
    # The axis has a length where the window is alone, too.
    one = alt.Chart(POINTS).mark_point(opacity=0).encode(x=alt.datum(1))
    return alt.layer(_scatter(of, x, log=False), one)


def total_chart(of: Frame) -> alt.LayerChart:
    """What is lost against total bytes, at all caps."""
    x = alt.X(
        "x:Q", title="KiB a sequence", scale=alt.Scale(type="log", base=2, padding=14, nice=False),
        axis=alt.Axis(format=",d"),
    )  # fmt: skip
    return _scatter(of, x, log=of.wide)


def caps_chart(of: Frame) -> alt.LayerChart:
    """What is lost against the cap, a line a family of cells."""
    colour, shape = _scales(of.methods)
    axis = _loss_axis(of, of.wide)
    x = alt.X(
        "cap:Q", title="cap, pairs a layer", scale=alt.Scale(type="log", base=2, padding=14, nice=False),
        axis=alt.Axis(values=list(of.ticks), format="d"),
    )  # fmt: skip
    base, y = alt.Chart(POINTS).encode(x=x, color=colour, detail="family:N"), alt.Y("y:Q", **axis)
    zero = alt.Chart(POINTS).mark_rule(style="full").encode(y=alt.datum(0))
    bars = base.mark_rule(opacity=0.35).encode(y=alt.Y("low:Q", **axis), y2="high:Q")
    lines = base.mark_line(strokeWidth=1.4, opacity=0.8).encode(y=y)
    tips = _tooltips(("what:N", "cells"), ("cap:Q", "cap"), ("said:N", "difference to full"))
    dots = base.mark_point(filled=True, size=55).encode(y=y, shape=shape, tooltip=tips)
    return alt.layer(zero, bars, lines, dots)


def cells_chart(of: Frame) -> alt.LayerChart:
    """What each cell loses, with its interval, the best on top."""
    colour, shape = _scales(of.methods)
    axis = _loss_axis(of)
    x, order = alt.X("y:Q", **axis), alt.EncodingSortField("y", op="min", order="ascending")
    base = alt.Chart(POINTS).encode(y=alt.Y("name:N", title=None, sort=order))
    zero = alt.Chart(POINTS).mark_rule(style="full").encode(x=alt.datum(0))
    bars = base.mark_rule().encode(x=alt.X("low:Q", **axis), x2="high:Q", color=colour)
    dots = base.mark_point(filled=True, size=60).encode(x=x, color=colour, shape=shape, tooltip=_tooltips(*TIPS))
    far = (
        base.transform_filter("datum.far !== ''").mark_text(style="note", align="left", dx=7).encode(x=x, text="far:N")
    )
    return alt.layer(zero, bars, dots, far)


def sizes_chart(of: Frame) -> alt.LayerChart:
    """Heat maps of width × depth; grey tiles lost no pair."""
    scale = alt.Scale(range=RAMP[::-1])
    base = alt.Chart(POINTS).encode(
        x=alt.X("width:O", title="width"), y=alt.Y("depth:O", title="depth", sort="descending")
    )
    tip = _tooltips(("family:N", "cells"), ("width:O", "width"), ("depth:O", "depth"), ("said:N", "lost"))
    tiles = (
        base.transform_filter("datum.bound")
        .mark_rect()
        .encode(color=alt.Color("lost:Q", scale=scale, legend=None), tooltip=tip)
    )
    idle = base.transform_filter("!datum.bound").mark_rect(color="#c9cdd3")
    text = base.mark_text(color=INK, fontSize=11).encode(text="said:N")
    return alt.layer(tiles, idle, text).properties(width=alt.Step(58), height=alt.Step(26))


def depths_chart(of: Frame) -> alt.LayerChart:
    """The score against where the fact stood."""
    colour, shape = _scales(of.methods)
    x = alt.X(
        "needle_depth:Q", title="where the fact stood (0% is the start)", scale=alt.Scale(padding=14),
        axis=alt.Axis(values=list(of.ticks), format=".0%"),
    )  # fmt: skip
    y = alt.Y("y:Q", title=of.metric, scale=alt.Scale(zero=True))
    base, own = alt.Chart(POINTS).encode(x=x, y=y, detail="family:N"), "datum.method !== 'full'"
    tips = _tooltips(("family:N", "cells"), ("needle_depth:Q", "depth"), ("said:N", "score"), ("n:Q", "documents"))
    full = base.transform_filter("datum.method === 'full'").mark_line(style="front")
    lines = base.transform_filter(own).mark_line(strokeWidth=1.4, opacity=0.8).encode(color=colour)
    dots = base.transform_filter(own).mark_point(filled=True, size=55).encode(color=colour, shape=shape, tooltip=tips)
    return alt.layer(full, lines, dots)


Points = Callable[[pd.DataFrame, Subject, pd.DataFrame], pd.DataFrame]
Chart = Callable[[Frame], alt.LayerChart]
PLOTS: dict[str, tuple[Points, Chart]] = {
    "bytes": (by_bytes, bytes_chart),
    "cells": (by_bytes, cells_chart),
    "caps": (by_cap, caps_chart),
    "total": (by_total, total_chart),
    "sizes": (by_size, sizes_chart),
    "depths": (by_depth, depths_chart),
}
"""By name, what makes a plot's points and what draws them."""


def available(name: str, points: pd.DataFrame) -> bool:
    """Whether there is enough to draw a plot of."""
    if points.empty:
        return False
    match name:
        case "caps":
            return points["cap"].nunique() > 1
        case "cells":
            return 1 < points.groupby("panel").size().max() <= MOST_CELLS
        case "sizes":
            return points["width"].nunique() > 1 and bool(points["bound"].any())
        case "total":
            return points["at"].nunique() > 1
    return True


@cache
def specification(name: str, of: Frame) -> dict[str, Any]:
    """The plot of one cap in Vega-Lite, without its points, which it looks for in the data set `points`."""
    chart = PLOTS[name][1](of)
    if name == "sizes":
        chart = chart.facet(row=alt.Row("family:N", title=None))
    return dict(chart.to_dict(validate=False))


def _panels(name: str, of: Frame, points: pd.DataFrame) -> Any:
    """A plot with a panel for each cap."""
    chart = PLOTS[name][1](of)
    if name == "sizes":
        return chart.facet(row=alt.Row("family:N", title=None), column=alt.Column("panel:N", title=None))
    if "panel" not in points or points["panel"].nunique() == 1:
        return chart if name == "cells" else chart.properties(width=520, height=330)
    sized = chart.properties(width=210) if name == "cells" else chart.properties(width=250, height=300)
    column = alt.Column("panel:N", title=None, sort=list(dict.fromkeys(points["panel"])))
    return sized.facet(column=column).resolve_scale(x="independent" if name == "bytes" else "shared")


def _title(name: str, subject: Subject, table: pd.DataFrame, points: pd.DataFrame) -> alt.Title:
    """What the panels have in common."""
    notes = [f"n = {int(table['documents'].max())} documents at each point"]
    if name not in ("sizes", "depths"):
        notes.append("bars are 95% intervals, paired by document")
    if "far" in points and (number := int((points["far"] != "").sum())):
        notes.append(f"{number} beyond the axis, each a ▲ with its number")
    if name in ("bytes", "total"):
        notes.append("dashed: the best for as many bytes")
    return alt.Title(f"{subject.name}: {subject.metric}", subtitle="; ".join(notes))


def picture(name: str, rows: pd.DataFrame, subject: Subject, kind: str = "png") -> bytes | None:
    """A plot as a PNG or SVG file; None where there is not enough to draw it of. Equal rows give equal bytes."""
    table = views.cells(rows, subject)
    points = PLOTS[name][0](rows, subject, table)
    if name == "cells" and len(points):
        points = points[points["label"] == ""]  # One of about as many bytes would be in one panel alone.
    if not available(name, points):
        return None
    chart = _panels(name, frame(subject, table, points), points).properties(title=_title(name, subject, table, points))
    spec = chart.to_dict(validate=False) | {"datasets": {"points": records(points)}, "config": CONFIG}
    if kind == "svg":
        return vl_convert.vegalite_to_svg(spec).encode()
    return small(vl_convert.vegalite_to_png(spec, scale=1.5))


def small(png: bytes) -> bytes:
    """The same picture in 64 colours, which is all that the plots have, and a tenth of the bytes."""
    shrunk = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(64).save(shrunk, "PNG", optimize=True)
    return shrunk.getvalue()


def records(points: pd.DataFrame) -> list[dict[str, Any]]:
    """Points as JSON has them."""
    return [
        {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in record.items()}
        for record in points.to_dict("records")
    ]
