"""`leaderboard.html`: one self-contained page with the table and the plots; it asks nothing of the network."""

from __future__ import annotations

import html
import json
import re
from base64 import b64encode
from pathlib import Path
from typing import Any, NamedTuple

import itables.options
import pandas as pd
from plotly.offline import get_plotlyjs

from sketch_eval.leaderboard import figures, tidy
from sketch_eval.leaderboard.row import or_null, sign
from sketch_eval.sweep.store import write_file

HERE = Path(__file__).parent
NOT_BOUND = "not bound: = full"
CAPTIONS = {
    "bytes": (
        "Quality against bytes",
        "Each point is a cell at one cap; a larger marker is a larger cap. The line is the best that any cell reaches "
        "within so many bytes. Bars are 95% intervals of the difference to the full cache, paired by document (of the "
        "score itself where the difference has none). Cells that are one computation are drawn once.",
    ),
    "caps": (
        "Quality against cap",
        "Where a line stands for sketches of several sizes, it is their mean, and its bars span the least and the "
        "greatest of them; else bars are intervals as above. Points of one cap stand apart only to be seen.",
    ),
    "cells": (
        "Cell by cell",
        "The difference to the full cache with its interval, a panel for each cap. A number with a triangle is of a "
        "cell far beyond the others; hollow points did not bind.",
    ),
    "sizes": (
        "Width and depth of the sketch",
        "One map for each cap; deeper green is better. Grey cells did not bind, so they are the full cache.",
    ),
    "depths": (
        "Accuracy against needle depth",
        "Where in the text the fact stood, for each cap. Lines of several sketches as above.",
    ),
}


class Column(NamedTuple):
    """A column of the table: its key, its title, and whether it sorts by number."""

    key: str
    title: str
    numeric: bool = True


COLUMNS = [
    Column("row", "row", False), Column("cell", "cell", False), Column("cap", "cap"), Column("task", "task", False),
    Column("metric", "metric", False), Column("value", "value [95%]"), Column("difference", "Δ full [95%]"),
    Column("to_window", "Δ window [95%]"), Column("to_exact", "Δ exact [95%]"),
    Column("to_reference", "Δ reference [95%]"),
    Column("binding", "binding requests"), Column("width", "width"), Column("depth", "depth"),
    Column("strategy", "strategy", False), Column("topk", "topk"), Column("importance", "importance", False),
    Column("item", "item", False), Column("kv_bytes", "KV KiB"), Column("sketch_bytes", "sketch KiB"),
    Column("total_bytes", "total KiB"), Column("saving", "saving"), Column("tokens_per_second", "tokens/s"),
    Column("seeds", "seeds", False), Column("spread_low", "spread of seeds"), Column("needle_depth", "needle depth"),
]  # fmt: skip
OPTIONAL = {
    "to_window",
    "to_exact",
    "to_reference",
    "tokens_per_second",
    "spread_low",
    "needle_depth",
    "topk",
    "width",
    "depth",
}
DETAILS = (
    "command row cell cap task metric documents seeds scope decay normalize conservative sinks recent same_as".split()
)
FILTERS = {"task": "Task", "metric": "Metric", "cell": "Cell", "cap": "Cap"}


def write(folder: Path, rows: pd.DataFrame, about: dict[str, Any], timings: pd.DataFrame | None = None) -> Path:
    """Write `leaderboard.html`, with the rows of `row.frame`, what `about` says, and tokens per second by `row`."""
    if timings is not None and {"row", "tokens_per_second"} <= set(timings.columns):
        rows = rows.merge(timings[["row", "tokens_per_second"]].drop_duplicates("row"), on="row", how="left")
    path = folder / "leaderboard.html"
    folder.mkdir(parents=True, exist_ok=True)
    write_file(path, page(rows, about))
    return path


def page(rows: pd.DataFrame, about: dict[str, Any]) -> str:
    """The page of these rows, as HTML."""
    plots = drawn(rows, about)
    bundle = Path(itables.options.dt_bundle)
    parts = {
        "title": html.escape(str(about["name"])),
        "description": html.escape(str(about["description"])),
        "notes": _list(about.get("notes", [])),
        "facts": facts(about),
        "filters": _filters(rows, about),
        "plots": "\n".join(_figure(name, plots[name]) for name in CAPTIONS if plots[name]),
        "choices": _options(plots["bytes"]),
        "data": _json(table(rows) | {"plots": plots, "better": _directions(rows)}),
        "datatables": b64encode(bundle.read_bytes()).decode(),
        "datatables_css": bundle.with_suffix(".css").read_text(encoding="utf-8"),
        "plotly": get_plotlyjs(),
        "css": (HERE / "page.css").read_text(encoding="utf-8"),
        "js": (HERE / "page.js").read_text(encoding="utf-8"),
    }
    # One pass: what a part holds is never taken for a place to fill.
    return re.sub(r"{{(\w+)}}", lambda found: parts[found[1]], (HERE / "page.html").read_text(encoding="utf-8"))


def drawn(rows: pd.DataFrame, about: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Plotly's figures by plot and by `task: metric`, primary metrics first."""
    style = figures.styles(rows)
    found: dict[str, dict[str, Any]] = {name: {} for name in CAPTIONS}
    for task, metric in primary_first(tidy.choices(rows), about):
        for name, figure in figures.plots(tidy.select(rows, task, metric), metric, style).items():
            found[name][f"{task}: {metric}"] = figure.to_plotly_json()
    for (task, metric), group in tidy.needles(rows).items():
        found["depths"][f"{task}: {metric}"] = figures.depths_figure(group, metric, style).to_plotly_json()
    return found


def primary_first(choices: list[tuple[str, str]], about: dict[str, Any]) -> list[tuple[str, str]]:
    """The (task, metric) pairs, each task's primary metric before all others."""
    tasks = about.get("tasks", {})
    return sorted(choices, key=lambda choice: tasks.get(choice[0], {}).get("primary") != choice[1])


def table(rows: pd.DataFrame) -> dict[str, Any]:
    """What the page's table is made of: its columns, and by row the cells, the mark and the details."""
    shown = [
        column
        for column in COLUMNS
        if column.key not in OPTIONAL or (column.key in rows.columns and rows[column.key].notna().any())
    ]
    records = rows.to_dict("records")
    return {
        "columns": [column._asdict() for column in shown],
        "rows": [[_cell(column, record) for column in shown] for record in records],
        "marks": ["full" if record["kind"] == "full" else "" if record["bound"] else "unbound" for record in records],
        "details": [{key: _text(record[key]) for key in DETAILS} for record in records],
    }


def _cell(column: Column, record: dict[str, Any]) -> Any:
    """Text, or what is shown of a number and the number that it sorts by."""
    value = record[column.key]
    if not column.numeric:
        return html.escape(_text(value))
    if column.key in ("difference", "binding") and not record["bound"]:
        return ["baseline" if record["kind"] == "full" else NOT_BOUND if column.key == "binding" else "= full", None]
    if pd.isna(value):
        return ["", None]
    low, high = record.get(f"{column.key}_low"), record.get(f"{column.key}_high")
    match column.key:
        case "value":
            shown = f"{tidy.number(value)} [{tidy.number(low)}, {tidy.number(high)}]"
            if not record["bound"] and record["kind"] != "full":
                return [shown, None]  # else it would rank with the full cache
        case "difference" | "to_window" | "to_exact" | "to_reference":
            shown = f"{value:+.1f}{sign(record['unit'])}"
            shown += "" if pd.isna(low) else f" [{low:+.1f}, {high:+.1f}]"
        case "binding" | "saving" | "needle_depth":
            shown = f"{value:.0%}" if value in (0, 1) or abs(value - 0.5) < 0.49 else f"{value:.1%}"
        case "kv_bytes" | "sketch_bytes" | "total_bytes":
            shown = f"{value / 1024:,.1f}".removesuffix(".0")
        case "spread_low":
            shown, value = (
                f"{tidy.number(value)} to {tidy.number(record['spread_high'])}",
                record["spread_high"] - value,
            )
        case "tokens_per_second":
            shown = f"{value:,.0f}"
        case _:
            shown = _text(value)
    return [shown, float(value)]


def _text(value: Any) -> str:
    """A value as text, whole numbers without a point; nothing for NaN and None."""
    if or_null(value) is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def facts(about: dict[str, Any]) -> str:
    """The terms and descriptions of what was measured, with what, as HTML."""
    said = {
        "Model": ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in about["model"].items()),
        **{
            f"Task {name}": f"{task['documents']} documents, data {task['fingerprint']}, first metric {task['primary']}"
            for name, task in about["tasks"].items()
        },
        "Versions": ", ".join(f"{name} {version}" for name, version in about["versions"].items()),
        "Commit": about.get("commit") or "unknown",
        **({"Sources": about["sources"]} if about.get("sources") else {}),
    }
    lines = [f"<dt>{html.escape(term)}</dt><dd>{html.escape(str(text))}</dd>" for term, text in said.items()]
    lines.append(f"<dt>Made again by</dt><dd><code>{html.escape(about['command'])}</code></dd>")
    return "\n".join(lines)


def _filters(rows: pd.DataFrame, about: dict[str, Any]) -> str:
    """A select for each of FILTERS, set to the first task's primary metric, and a search box."""
    first = dict(zip(("task", "metric"), next(iter(primary_first(tidy.choices(rows), about)), ("", "")), strict=True))
    made = []
    for key, label in FILTERS.items():
        values = rows[key].dropna().drop_duplicates()
        values = values.sort_values() if key == "cap" else values
        options = "".join(_option(value, value == first.get(key)) for value in map(_text, values))
        made.append(f'<label>{label}<select name="{key}"><option value="">all</option>{options}</select></label>')
    made.append('<label class="search">Search<input type="search" name="search" autocomplete="off"></label>')
    return "".join(made)


def _option(value: str, selected: bool = False) -> str:
    text = html.escape(value)
    return f'<option value="{text}"{" selected" if selected else ""}>{text}</option>'


def _options(keys: Any) -> str:
    return "".join(map(_option, keys))


def _figure(name: str, plots: dict[str, Any]) -> str:
    heading, caption = CAPTIONS[name]
    # The other plots share one select; few tasks have needles.
    select = f'<p class="choose"><label>Task and metric <select>{_options(plots)}</select></label></p>'
    own = select if name == "depths" else ""
    return (
        f'<figure data-plot="{name}"><h3>{heading}</h3><figcaption>{caption}</figcaption>{own}'
        f'<div class="plot" role="img" aria-label="{heading}"></div></figure>'
    )


def _list(notes: list[str]) -> str:
    lines = "".join(f"<li>{html.escape(str(note))}</li>" for note in notes)
    return f'<ul class="notes">{lines}</ul>' if notes else ""


def _directions(rows: pd.DataFrame) -> dict[str, bool]:
    """Whether higher is better, by the JSON of [task, metric] as the page's script writes it."""
    pairs = rows[["task", "metric", "higher_is_better"]].drop_duplicates().to_numpy()
    return {
        json.dumps([task, metric], separators=(",", ":"), ensure_ascii=False): bool(up) for task, metric, up in pairs
    }


def _json(data: Any) -> str:
    """JSON that holds no `<`, so that nothing in it can end its script element; NaN becomes null."""
    text = json.dumps(_plain(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _plain(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    if hasattr(data, "item"):
        data = data.item()
    return or_null(data)
