"""`leaderboard.html`: one self-contained page: the answer, a picture, the table. It asks nothing of the network."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
import vl_convert
from markupsafe import Markup

from sketch_eval.leaderboard import plots, views
from sketch_eval.leaderboard.answer import answer
from sketch_eval.leaderboard.front import NOBODY
from sketch_eval.leaderboard.numbers import brief, change, more, percent, scored, short, size, way, whole
from sketch_eval.leaderboard.row import or_null
from sketch_eval.leaderboard.source import commit_address, repository
from sketch_eval.leaderboard.views import Subject
from sketch_eval.sweep.store import write_file

HERE = Path(__file__).parent


class Column(NamedTuple):
    """A column of the table: its key, title, whether it is of numbers, and on which screens it is there at first."""

    key: str
    title: str
    numeric: bool = True
    wide: bool = False
    narrow: bool = False
    note: str = ""


OF_SUBJECT = [
    Column("difference", "Δ full [95%]", wide=True, narrow=True, note="difference to the full cache"),
    Column("to_window", "Δ window [95%]", wide=True, note="difference to the window of the same cap"),
    Column("documents", "n", wide=True, note="documents"),
    Column("value", "score [95%]"),
    Column("to_exact", "Δ exact [95%]", note="difference to the same cell with exact scores"),
    Column("to_reference", "Δ reference [95%]", note="difference to the grid's reference"),
    Column("way", "way to clairvoyant", note="share of the way from window to clairvoyant"),
    Column(
        "undercut",
        "better at no more bytes",
        note="a cell of no more bytes that is surely better, and the difference to it",
    ),
    Column("binding", "binding", note="share of requests that lost a pair"),
    Column("spread", "spread of seeds"),
]
"""What a subject says of each cell."""
OF_CELL = [
    Column("saving", "saving", note="share of the full cache's bytes"),
    Column("kv_bytes", "KV KiB"),
    Column("sketch_bytes", "sketch KiB"),
    Column("width", "width"), Column("depth", "depth"), Column("topk", "topk"),
    *(Column(key, key, False) for key in "importance strategy scope item normalize sinks recent store centred".split()),
    Column("decay", "decay"),
]  # fmt: skip
"""What is the same for all subjects."""
LED = [
    Column("rank", "#", wide=True, narrow=True),
    Column("cell", "cell", False, True, True),
    Column("cap", "cap", wide=True),
    Column("total_bytes", "KiB", wide=True, narrow=True, note="of one sequence, all layers"),
    Column("over", "KiB over window", wide=True, note="bytes beyond the plain window of the same cap"),
]
"""What stands before both."""
MOST_TASKS = 2
"""Tasks beside the chosen one that have a column at first."""


def write(folder: Path, rows: pd.DataFrame, about: dict[str, Any]) -> Path:
    """Write `leaderboard.html`, with the rows of `row.frame` and what `about` says."""
    path = folder / "leaderboard.html"
    folder.mkdir(parents=True, exist_ok=True)
    write_file(path, page(rows, about))
    return path


def page(rows: pd.DataFrame, about: dict[str, Any]) -> str:
    """The page of these rows, as HTML."""
    found = views.subjects(rows, about)
    first = views.opening(found)
    table = views.cells(rows, first)
    cap = views.opening_cap(rows, table)
    address = repository()
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    said, trust, _ = answer(table, first, cap)
    return templates.get_template("page.html").render(
        about=about,
        answer=said.split("`"),
        trust=trust.split("`"),
        commit=commit_address(about, address),
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        data=Markup(_json(data(rows, about, found))),
        js=Markup((HERE / "page.js").read_text(encoding="utf-8")),
        repository=address,
        vega=Markup(_vega()),
    )


def data(rows: pd.DataFrame, about: dict[str, Any], found: list[Subject]) -> dict[str, Any]:
    """What the page's script draws the table and the plots from: columns of values, by cell and subject."""
    cells = rows.drop_duplicates(views.KEY).reset_index(drop=True)
    place = {_key(cell, cap): number for number, (cell, cap) in enumerate(zip(cells.cell, cells.cap, strict=True))}
    first = views.opening(found)
    cap = views.opening_cap(rows, views.cells(rows, first))
    shown = [column for column in OF_SUBJECT if column.key in ("spread", "documents") or rows[column.key].notna().any()]
    shown = [column for column in shown if column.key != "spread" or rows["spread_low"].notna().any()]
    columns = views.columns(found)
    specs: dict[str, int] = {}
    made = [_subject(rows, one, place, shown, specs) for one in found]
    return {
        "cells": _cells(rows, cells),
        "caps": {f"{cap:g}": _beside(rows, first, cap, place) for cap in views.main_caps(rows)},
        "subjects": made,
        "tasks": [
            {"name": one.name, "metric": one.metric, "subject": found.index(one), "first": one in _near(columns, first)}
            for one in columns
        ],
        "columns": [column._asdict() for column in [*LED, *shown, *OF_CELL]],
        "suffixes": _commands(rows)[1],
        "opening": {
            "task": first.name,
            "metric": first.metric,
            "cap": "" if cap is None else whole(cap),
        },
        "specs": [json.loads(text) for text in specs],
        "name": about["name"],
    }


def _near(columns: list[Subject], first: Subject) -> list[Subject]:
    """The other tasks that have a column at first, texts before all others."""
    others = [one for one in columns if one.name != first.name]
    return sorted(others, key=lambda one: "perplexity" not in one.metric)[:MOST_TASKS]


def _cells(rows: pd.DataFrame, cells: pd.DataFrame) -> dict[str, Any]:
    """By column, what is shown of every cell and what it sorts by."""
    base, records = views.window_bytes(rows), cells.to_dict("records")
    over = [record["total_bytes"] - base.get(record["cap"], math.nan) for record in records]
    prefixes = _commands(rows)[0]
    table: dict[str, Any] = {
        "cell": cells["cell"].tolist(),
        "cap": [whole(cap) for cap in cells["cap"]],
        "kind": cells["kind"].tolist(),
        "method": cells["cell"].map(views.method).tolist(),
        "plain": cells["cell"].map(views.is_window).tolist(),
        "over": [["" if math.isnan(one) else more(one), or_null(one)] for one in over],
        "saving": [[f"{record['saving']:.1%}", record["saving"]] for record in records],
        "prefix": [prefixes[_key(record["cell"], record["cap"])] for record in records],
        "seeds": cells["seeds"].tolist(),
    }
    for column in [*LED, *OF_CELL]:
        match column.key:
            case "total_bytes" | "kv_bytes" | "sketch_bytes":
                table[column.key] = [
                    [size(record[column.key]).removesuffix(" KiB"), int(record[column.key])] for record in records
                ]
            case "width" | "depth" | "topk" | "decay":
                table[column.key] = [[whole(record[column.key]), or_null(record[column.key])] for record in records]
            case key if key not in table and key != "rank":
                table[key] = cells[key].tolist()
    return table


def _beside(rows: pd.DataFrame, first: Subject, cap: float, place: dict[str, int]) -> list[int]:
    """Cells that the table shows beside those of a cap: what has no bound, and more pairs in about as many bytes."""
    table = views.cells(rows, first)
    beside = pd.concat([views.more_pairs(table, cap), table[table["cap"].isna()]])
    return [place[_key(cell, one)] for cell, one in zip(beside.cell, beside.cap, strict=True)]


def _subject(
    rows: pd.DataFrame, subject: Subject, place: dict[str, int], shown: list[Column], specs: dict[str, int]
) -> dict[str, Any]:
    """What a subject says of every cell, its answers by cap, and its plots."""
    table = views.cells(rows, subject)
    places = [place[_key(cell, cap)] for cell, cap in zip(table["cell"], table["cap"], strict=True)]
    usable = set(views.usable(table).index)
    found: dict[str, list[Any]] = {name: [None] * len(place) for name in ("mark", "lost", "row", "brief")}
    found |= {column.key: [None] * len(place) for column in shown}
    for number, (at, record) in enumerate(zip(places, table.to_dict("records"), strict=True)):
        found["mark"][at] = _mark(record, number in usable)
        found["lost"][at] = _round(record["lost"]) if record["bound"] else None
        found["row"][at] = record["row"]
        found["brief"][at] = [brief(record["unit"], record["difference"]), _round(record["lost"])]
        if not record["bound"]:
            found["brief"][at] = ["" if record["kind"] == "full" else "= full", None]
        for column in shown:
            found[column.key][at] = _entry(column.key, record)
    return {
        "task": subject.name,
        "metric": subject.metric,
        "parts": len(subject.tasks),
        "up": bool(table["higher_is_better"].iloc[0]),
        "columns": found,
        "answers": {
            f"{cap:g}": _answer(table, subject, cap, places) for cap in views.main_caps(rows)
        } or {"": _answer(table, subject, None, places)},
        "plots": _plots(rows, subject, table, specs),
        "suffix": subject.tasks[0],
    }  # fmt: skip


def _answer(table: pd.DataFrame, subject: Subject, cap: float | None, places: list[int]) -> list[Any]:
    """What is said at a cap, how far to trust it, and the place of the cell with more pairs that it names, if any."""
    said, trust, more = answer(table, subject, cap)
    return [said, trust, None if more is None else places[more]]


def _plots(rows: pd.DataFrame, subject: Subject, table: pd.DataFrame, specs: dict[str, int]) -> dict[str, Any]:
    """By plot, the number of its specification among `specs`, and its points, once where two plots share them."""
    made: dict[str, Any] = {}
    found: dict[Any, tuple[str, pd.DataFrame]] = {}
    for name, (points_of, _) in plots.PLOTS.items():
        shared, points = found.get(points_of) or (None, points_of(rows, subject, table))
        if not plots.available(name, points):
            continue
        found.setdefault(points_of, (name, points))
        drawn = plots.frame(subject, table, points)
        text = json.dumps(plots.specification(name, drawn), sort_keys=True)
        lines = (
            None
            if shared
            else [[_round(value) for value in line] for line in zip(*points.to_dict("list").values(), strict=True)]
        )
        made[name] = {
            "spec": specs.setdefault(text, len(specs)),
            "of": shared,
            "columns": list(points),
            "points": lines,
        }
    return made


def _mark(record: dict[str, Any], usable: bool) -> str:
    if record["kind"] == "full":
        return "full"
    if not record["bound"]:
        return "unbound"
    if record["foresees"]:
        return "ahead"
    return "" if usable else "same"


def _entry(key: str, record: dict[str, Any]) -> list[Any] | None:
    """What is shown of a number, the number, and the ends of its interval where it has one."""
    if key == "documents":
        return [whole(float(record["documents"])), int(record["documents"])]
    if key == "spread":
        low, high = record["spread_low"], record["spread_high"]
        return None if math.isnan(low) else [f"{short(low)} to {short(high)}", _round(high - low)]
    value = record[key]
    if key == "undercut" and record["undercut_by"] == NOBODY:
        return ["none", None, None, None, NOBODY]
    if math.isnan(value) or (key == "difference" and not record["bound"]):
        return None
    if key == "binding":
        return [percent(value), _round(value)]
    low, high = record[f"{key}_low"], record[f"{key}_high"]
    text = {"value": scored, "way": way}.get(key)
    said = text(value, low, high) if text else change(record["unit"], value, low, high)
    ends = [_round(number) for number in (value, low, high)]
    return [said, *ends] if key != "undercut" else [f"{record['undercut_by']}: {said}", *ends, record["undercut_by"]]


@cache
def _vega() -> str:
    """Vega, Vega-Lite and vega-embed, as vl-convert has them."""
    bundle = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # Its default is not in its types.
    return bundle.replace("</script", "<\\/script")


def _commands(rows: pd.DataFrame) -> tuple[dict[str, str], dict[str, str]]:
    """lm-eval's command lines in two parts: by cell, and by task; they share no more than ` --tasks ` between them."""
    cells, tasks = {}, {}
    for cell, cap, task, command in zip(rows["cell"], rows["cap"], rows["task"], rows["command"], strict=True):
        prefix, between, suffix = command.partition(" --tasks ")
        cells[_key(cell, cap)], tasks[task] = prefix, between + suffix
    return cells, tasks


def _key(cell: str, cap: float) -> str:
    return f"{cell} cap {cap}"


def _round(value: Any) -> Any:
    """A number in six digits, None for what is none, and all else as it is."""
    value = value.item() if hasattr(value, "item") else value
    return or_null(float(f"{value:.6g}")) if isinstance(value, float) else value


def _json(value: Any) -> str:
    """JSON that holds no `<`, so that nothing in it can end its script element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
