"""The plots of a leaderboard as Plotly figures, from the data of `tidy.py`; `static.py` draws the same data."""

from __future__ import annotations

import html
import math
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sketch_eval.leaderboard.row import sign
from sketch_eval.leaderboard.tidy import (
    available,
    by_cap,
    by_cell,
    by_depth,
    byte_ticks,
    difference_title,
    family,
    full_value,
    heat_map,
    higher_is_better,
    is_log,
    number,
    offsets,
    pareto,
    points,
    size,
    title,
)

UNBOUND = "did not bind (= full cache)"
FULL = "full cache"
FRONT = "Pareto front"
GREY = "#868e99"
IDLE = "#c9cdd3"
SCALE = ["#f6efe0", "#a8d3c4", "#3a9a8c"]
INK = "#10181f"  # on SCALE and IDLE, in either theme
GOLD = "#b8860b"


class Style(NamedTuple):
    """How one family is drawn: the colour, Plotly's and Matplotlib's name of the marker, and of the line."""

    colour: str
    symbol: str
    marker: str
    dash: str
    line: str


# All colours have a contrast of 3 and more on the white page and on the dark one.
_SKETCHES = ["#2f7fd1", "#d9730d", "#2a9d4e", "#c2489f", "#1593a0", "#d64545", "#7c6bd6", "#8a8a2e"]
_CONTROLS = [
    ("#7b8794", "square", "s"), ("#a0764c", "diamond", "D"), ("#7f8c3f", "triangle-up", "^"),
    ("#9273b5", "triangle-down", "v"), ("#4f8f8b", "x", "X"), ("#b0677c", "cross", "P"), ("#5f7fa8", "star", "*"),
]  # fmt: skip
_ROUNDS = [("circle", "o"), ("hexagon", "h"), ("pentagon", "p"), ("octagon", "8")]


def styles(rows: pd.DataFrame) -> dict[str, Style]:
    """A style for each family, the same in every plot: sketches have circles and solid lines, controls have not."""
    names = {
        kind: list(dict.fromkeys(map(family, rows["cell"][rows["kind"] == kind]))) for kind in ("sketch", "control")
    }
    found = {}
    # Every round through the colours takes other symbols, so that dozens of families can be told apart.
    for i, name in enumerate(names["sketch"]):
        symbol, marker = _ROUNDS[i // len(_SKETCHES) % len(_ROUNDS)]
        found[name] = Style(_SKETCHES[i % len(_SKETCHES)], symbol, marker, "solid", "-")
    for i, name in enumerate(names["control"]):
        _, symbol, marker = _CONTROLS[(i + i // len(_CONTROLS)) % len(_CONTROLS)]
        found[name] = Style(_CONTROLS[i % len(_CONTROLS)][0], symbol, marker, "dot", ":")
    return found


def plots(rows: pd.DataFrame, metric: str, style: dict[str, Style]) -> dict[str, go.Figure]:
    """The figures that one metric of one task has data for, of `bytes`, `caps`, `cells` and `sizes`."""
    draw = {"bytes": bytes_figure, "caps": caps_figure, "cells": cells_figure, "sizes": sizes_figure}
    return {name: draw[name](rows, metric, style) for name in available(rows)}


def bytes_figure(rows: pd.DataFrame, metric: str, style: dict[str, Style]) -> go.Figure:
    """Quality against total bytes, with the Pareto front."""
    figure, own, ticks = go.Figure(), points(rows), byte_ticks(rows)
    ends = [own["total_bytes"].min() * 0.93, own["total_bytes"].max() * 1.07]
    caps = sorted(own["cap"].dropna().unique())
    hover = "%{customdata}<extra></extra>"
    for name, group in own[own["bound"] & (own["kind"] != "full")].groupby("family", sort=False):
        sizes = [6 + 3 * min(caps.index(cap), 3) if cap in caps else 8 for cap in group["cap"]]
        look = {"color": style[name].colour, "symbol": style[name].symbol}
        figure.add_scatter(
            x=group["total_bytes"].tolist(), y=group["value"].tolist(), error_y=_bars(group), mode="markers",
            marker={**look, "size": sizes, "line_width": 0, "opacity": 0.9}, name=html.escape(str(name)),
            customdata=_hover(group), hovertemplate=hover,
        )  # fmt: skip
    idle = own[~own["bound"] & (own["kind"] != "full")]
    if len(idle):
        figure.add_scatter(
            x=idle["total_bytes"].tolist(), y=idle["value"].tolist(), mode="markers", marker=_HOLLOW, name=UNBOUND,
            customdata=_hover(idle), hovertemplate=hover,
        )  # fmt: skip
    front = pareto(own)
    figure.add_scatter(
        x=front["total_bytes"].tolist(), y=front["value"].tolist(), mode="lines", hoverinfo="skip", name=FRONT,
        line={"shape": "hv", "color": GOLD, "width": 2},
    )  # fmt: skip
    full = own[own["kind"] == "full"]
    if len(full):
        _baseline(figure, ends, full["value"].iloc[0])
        figure.add_scatter(
            x=full["total_bytes"].tolist(), y=full["value"].tolist(), mode="markers",
            marker={"color": GREY, "symbol": "circle", "size": 11}, name=FULL, legendgroup=FULL, showlegend=False,
            customdata=_hover(full), hovertemplate=hover,
        )  # fmt: skip
    figure.update_xaxes(
        type="log", range=[math.log10(end) for end in ends], tickvals=ticks, ticktext=[size(tick) for tick in ticks],
        title="total bytes a sequence",
    )  # fmt: skip
    return _finish(figure, rows, title(rows, metric), height=600)


def caps_figure(rows: pd.DataFrame, metric: str, style: dict[str, Style]) -> go.Figure:
    """Quality against cap, a line a family."""
    figure, data = go.Figure(), by_cap(rows)
    caps = sorted(data["cap"].unique())
    _lines(figure, data, "cap", style, lambda cap, offset: cap * 1.012**offset)
    if (full := full_value(rows)) is not None:
        _baseline(figure, [caps[0] * 0.9, caps[-1] * 1.1], full)
    figure.update_xaxes(type="log", tickvals=caps, ticktext=[f"{cap:g}" for cap in caps], title="cap, pairs a layer")
    return _finish(figure, rows, title(rows, metric), height=480)


def cells_figure(rows: pd.DataFrame, metric: str, style: dict[str, Style]) -> go.Figure:
    """Each cell's difference to the full cache, a line a cell and a panel a cap."""
    data = by_cell(rows)
    names, caps = list(dict.fromkeys(map(html.escape, data["cell"]))), sorted(data["cap"].unique())
    titles = [f"cap {cap:g}" for cap in caps]
    figure = make_subplots(cols=len(caps), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=titles)
    for column, cap in enumerate(caps, 1):
        panel = data[data["cap"] == cap]
        for (bound, off), group in panel.groupby(["bound", "off"]):
            looks = [style[name] for name in group["family"]]
            own = {"color": [look.colour for look in looks], "symbol": [look.symbol for look in looks], "size": 8}
            sides = ["left" if more else "right" for more in group["difference"] > group["shown"]]
            if off:
                own["symbol"] = ["triangle-right" if side == "left" else "triangle-left" for side in sides]
            bars = {"color": GREY, **_bars(group, "difference", "difference_low", "difference_high")}
            figure.add_scatter(
                x=group["shown"].tolist(), y=[html.escape(cell) for cell in group["cell"]],
                mode="markers+text" if off else "markers", marker=own if bound else _HOLLOW, showlegend=False,
                error_x=bars if bound and not off else None,
                text=[f"{change:+,.0f}" for change in group["difference"]] if off else None,
                textposition=[f"middle {side}" for side in sides],
                customdata=_hover(group), hovertemplate="%{customdata}<extra></extra>", row=1, col=column,
            )  # fmt: skip
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=names[::-1], automargin=True)
    figure.update_xaxes(nticks=6, automargin=True)
    label = f"{html.escape(title(rows, metric))}: {difference_title(rows)}"
    figure.update_xaxes(title=label, col=(len(caps) + 1) // 2)
    figure.update_annotations(font_size=12)
    return figure.update_layout(
        template={}, height=100 + 19 * len(names), margin=_MARGIN, hovermode="closest",
        meta={"min_width": 260 + 200 * len(caps)},
    )  # fmt: skip


def depths_figure(rows: pd.DataFrame, metric: str, style: dict[str, Style]) -> go.Figure:
    """Accuracy against needle depth, a panel a cap."""
    data = by_depth(rows)
    caps = sorted(data["cap"].dropna().unique())
    full = data[data["kind"] == "full"].sort_values("needle_depth")
    figure = make_subplots(
        rows=len(caps), shared_xaxes=True, vertical_spacing=0.22 / max(3, len(caps)),
        subplot_titles=[f"cap {cap:g}" for cap in caps],
    )  # fmt: skip
    for panel, cap in enumerate(caps, 1):
        chosen = data[(data["cap"] == cap) & (data["kind"] != "full")]
        _lines(figure, chosen, "needle_depth", style, lambda depth, offset: depth + 0.003 * offset, panel)
        if len(full):
            _baseline(figure, full["needle_depth"].tolist(), full["value"].tolist(), panel)
    figure.update_xaxes(tickformat=".0%", tickvals=sorted(data["needle_depth"].unique()))
    figure.update_xaxes(title="depth of the fact (0% = start)", row=len(caps))
    figure.update_xaxes(showticklabels=True).update_yaxes(matches="y")
    return _finish(figure, rows, title(rows, metric), height=120 + 230 * len(caps))


def sizes_figure(rows: pd.DataFrame, metric: str, style: dict[str, Style]) -> go.Figure:
    """Heat maps of width × depth, a column a cap and a row a family."""
    data = heat_map(rows)
    names, caps = list(data["family"].unique()), sorted(data["cap"].unique())
    figure = make_subplots(
        rows=len(names), cols=len(caps), shared_xaxes=True, shared_yaxes=True,
        horizontal_spacing=0.02, vertical_spacing=0.24 / (len(names) + 1),
        subplot_titles=[html.escape(f"{name}, cap {cap:g}") for name in names for cap in caps],
    )  # fmt: skip
    for row, name in enumerate(names, 1):
        for column, cap in enumerate(caps, 1):
            for bound, group in data[(data["family"] == name) & (data["cap"] == cap)].groupby("bound"):
                figure.add_heatmap(**_tiles(group, bool(bound), is_log(rows)), row=row, col=column)
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=_labels(data["width"]), showgrid=False)
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=_labels(data["depth"]), showgrid=False)
    figure.update_xaxes(title="width", row=len(names))
    figure.update_yaxes(title="depth", col=1)
    figure.update_annotations(font_size=12)
    bound = {"colorscale": SCALE, "reversescale": not higher_is_better(rows), "showscale": False}
    idle = {"colorscale": [IDLE, IDLE], "showscale": False}
    figure.update_layout(
        coloraxis=bound, coloraxis2=idle, template={}, height=100 + 150 * len(names), margin=_MARGIN,
        meta={"min_width": 60 + 190 * len(caps)},
    )  # fmt: skip
    return figure.update_xaxes(automargin=True).update_yaxes(automargin=True)


_MARGIN = {"l": 10, "r": 10, "t": 40, "b": 10}
_HOLLOW = {"color": GREY, "symbol": "circle-open", "size": 9}


def _labels(numbers: pd.Series) -> list[str]:
    return [f"{value:g}" for value in sorted(numbers.unique())]


def _tiles(group: pd.DataFrame, bound: bool, log: bool) -> dict[str, Any]:
    values = group["value"].tolist()
    return {
        "x": [f"{width:g}" for width in group["width"]],
        "y": [f"{depth:g}" for depth in group["depth"]],
        "z": [math.log10(value) for value in values] if log else values,
        "text": [number(value) for value in values] if bound else ["= full"] * len(values),
        "texttemplate": "%{text}",
        "textfont": {"color": INK},
        "hovertemplate": "%{x}×%{y}: %{text}<extra></extra>" if bound else f"%{{x}}×%{{y}}: {UNBOUND}<extra></extra>",
        "xgap": 2,
        "ygap": 2,
        "coloraxis": "coloraxis" if bound else "coloraxis2",
    }


def _bars(group: pd.DataFrame, value: str = "value", low: str = "low", high: str = "high") -> dict[str, Any]:
    above, below = group[high] - group[value], group[value] - group[low]
    return {
        "type": "data",
        "symmetric": False,
        "array": above.tolist(),
        "arrayminus": below.tolist(),
        "thickness": 0.8,
        "width": 2,
    }


def _hover(rows: pd.DataFrame) -> list[str]:
    return [
        f"<b>{html.escape(row.cell)}</b>{'' if math.isnan(row.cap) else f', cap {row.cap:g}'}<br>"
        f"{number(row.value)} [{number(row.value_low)}, {number(row.value_high)}]<br>"
        + (
            f"{row.difference:+.1f}{sign(row.unit)} to full<br>"
            if row.bound
            else ""
            if row.kind == "full"
            else f"{UNBOUND}<br>"
        )
        + f"{size(row.total_bytes)}, row {html.escape(row.row)}"
        for row in rows.itertuples()
    ]


def _baseline(figure: go.Figure, x: list[float], y: Any, panel: int | None = None) -> None:
    figure.add_scatter(
        x=x, y=y if isinstance(y, list) else [y] * len(x), mode="lines", name=FULL, legendgroup=FULL,
        line={"color": GREY, "dash": "dash", "width": 1.5}, hovertemplate=f"{FULL} %{{y:.4g}}<extra></extra>",
        showlegend=panel in (None, 1), **({"row": panel, "col": 1} if panel else {}),
    )  # fmt: skip


def _lines(figure: go.Figure, data: pd.DataFrame, x: str, style: dict[str, Style], nudge: Any, panel: int = 0) -> None:
    """A line a family through what bound, and hollow points for what did not."""
    where = {"row": panel, "col": 1} if panel else {}
    aside = offsets(list(data["family"].unique()))
    for name, offset in aside.items():
        group = data[(data["family"] == name) & data["bound"]].sort_values(x)
        look = style[name]
        what = [
            f"{html.escape(name)}, {row.cells} cells" if row.cells > 1 else html.escape(name)
            for row in group.itertuples()
        ]
        figure.add_scatter(
            x=[nudge(value, offset) for value in group[x]], y=group["value"].tolist(),
            error_y=_bars(group), mode="lines+markers", line={"color": look.colour, "dash": look.dash, "width": 2},
            marker={"symbol": look.symbol, "size": 8}, name=html.escape(name), legendgroup=name,
            showlegend=bool(len(group)) and not any(trace.name == html.escape(name) for trace in figure.data),
            customdata=what, hovertemplate="<b>%{customdata}</b><br>%{y:.4g}<extra></extra>", **where,
        )  # fmt: skip
    idle = data[~data["bound"]]
    if len(idle):
        figure.add_scatter(
            x=[nudge(value, aside[name]) for value, name in zip(idle[x], idle["family"], strict=True)],
            y=idle["value"].tolist(), mode="markers", marker=_HOLLOW, name=UNBOUND, legendgroup=UNBOUND,
            showlegend=not any(trace.name == UNBOUND for trace in figure.data),
            customdata=[html.escape(name) for name in idle["family"]],
            hovertemplate=f"<b>%{{customdata}}</b><br>{UNBOUND}<extra></extra>", **where,
        )  # fmt: skip


def _finish(figure: go.Figure, rows: pd.DataFrame, label: str, height: int) -> go.Figure:
    figure.update_yaxes(title=html.escape(label), type="log" if is_log(rows) else "linear", automargin=True)
    figure.update_xaxes(automargin=True)
    return figure.update_layout(template={}, height=height, margin=_MARGIN, hovermode="closest")
