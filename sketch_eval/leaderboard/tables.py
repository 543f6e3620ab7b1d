"""The tables that two runs of one sweep write alike, byte for byte: leaderboard.md, .csv and .json."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from sketch_eval.errors import UsageError
from sketch_eval.leaderboard.front import NOBODY
from sketch_eval.leaderboard.numbers import change, kib, percent, scored, short, way
from sketch_eval.leaderboard.row import COLUMNS, Row, or_null, task_family
from sketch_eval.sweep.store import write_file

NOTES = (
    "Intervals are 95% over documents, each for itself: of as many as a table has, one in twenty is expected to miss. "
    "Perplexities and means have a studentised bootstrap interval (2000 resamples, seed 0), accuracies Wilson's, and "
    "the difference of two accuracies Newcombe's; differences are paired, of the same documents in both. Hash seeds "
    "are averaged by document, so a perplexity is their geometric mean; the interval is over documents alone, the "
    "spread between the seeds.",
    "A request that a cell's cap does not bind has the full cache's own answer, and is not asked again. A plain run "
    "of `lm_eval` asks the bounded cache, whose arithmetic rounds otherwise.",
    "Documents longer than the model's positions are scored in lm-eval's disjoint windows, each with an empty cache at "
    "its start; the last is filled up with text before it, which is read and not scored again.",
    "Bytes are one sequence's cache, all layers, counted from the tensors; those of the sketch are its table, or the "
    "exact scores that a control keeps instead.",
)
ENTRIES = (
    "Each entry: score [95% interval]; its difference to the full cache, of a perplexity in percent or as a ratio (×) "
    "where it is large, of an accuracy in points (pt, hundredths) [95% interval]; share of requests that were binding, "
    "for which a pair was evicted, hidden from a query, or kept in other numbers than the model's own.",
    "An entry `= full` bound nothing: it is the full cache, and says nothing of the cell. ‡ marks a cell that is the "
    "same computation as one above it, which was run for both.",
    "In the tables “sketches against controls”: a sketch's difference to `window` (what it gains or loses over keeping "
    "the newest tokens) at the same cap, and to the same cell with `exact` scores (what the sketch itself loses), "
    "paired by document.",
    "In the tables “share of the way”: which part of the gap between `window` and `clairvoyant`, a ranking that has "
    "read the text before, a cell closes at the same cap, store and scope, in log-likelihood (of an accuracy in right "
    "answers), paired by document. It is left out where the gap is not there beyond doubt.",
    "In the tables “is another cell better”: a cell that has no more bytes and is surely better, and the difference to "
    "it, paired by document. Surely: by more standard errors than chance gives any of the cells that it is compared "
    "with, at 95%. Of several such cells it is the best one of those that no other undercuts. `not undercut` marks a "
    "cell without such a one, because none is better or because the documents do not tell. What has read the text "
    "before takes no part.",
)


def write(
    folder: Path, rows: list[Row], about: dict[str, Any], runs: list[dict[str, Any]], pictures: Sequence[Path] = ()
) -> list[Path]:
    """Write the three tables.

    Args:
        folder: where to.
        rows: the rows.
        about: what the sweep was: name, description, command, model, versions, commit, tasks, notes.
        runs: for each row, what `reproduce` needs.
        pictures: files in the folder for leaderboard.md to show.
    """
    entries = [
        {**{key: or_null(value) for key, value in asdict(row).items()}, "run": run}
        for row, run in zip(rows, runs, strict=True)
    ]
    texts = {
        "leaderboard.md": markdown(rows, about, pictures),
        "leaderboard.csv": _csv(rows),
        "leaderboard.json": json.dumps({"about": about, "rows": entries}, indent=1, ensure_ascii=False) + "\n",
    }
    for name, text in texts.items():
        write_file(folder / name, text)
    return [folder / name for name in texts]


def read(folder: Path) -> tuple[list[Row], dict[str, Any]]:
    """The rows of a folder's leaderboard.json, and what it says of the sweep.

    Raises:
        UsageError: there is no leaderboard.json, or it is none.
    """
    path = folder / "leaderboard.json"
    if folder.is_file():
        raise UsageError(f"results={str(folder)!r} is a file; give the folder of a leaderboard")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [row_of(entry) for entry in content["rows"]], content["about"]
    except FileNotFoundError as error:
        raise UsageError(
            f"results={str(folder)!r} holds no leaderboard.json; give the folder of a leaderboard"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"results={str(path)!r} is no leaderboard that `sketch-eval leaderboard` wrote") from error


def row_of(entry: dict[str, Any]) -> Row:
    """The row of an entry of leaderboard.json, whose missing numbers are null there."""
    known: dict[str, Any] = {key: math.nan if entry[key] is None else entry[key] for key in COLUMNS if key in entry}
    return Row(**known)


def markdown(rows: list[Row], about: dict[str, Any], pictures: Sequence[Path] = ()) -> str:
    """The rows as a page: pictures, a table for each family of tasks and metric, then the bytes."""
    model = about["model"]
    page = [
        f"# {about['name']}\n",
        *([about["description"].strip() + "\n"] if about["description"] else []),
        f"Made by `{about['command']}` at commit {about['commit']}. Model {model['pretrained']}, fingerprint "
        f"{model['fingerprint'][:12]}…, {model['dtype']}; "
        + ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        + ".\n",
        *(f"- {note}" for note in (*ENTRIES, *about["notes"])),
        "- Documents: " + ", ".join(f"{task} {entry['documents']}" for task, entry in about["tasks"].items()) + ".",
        "- A row's name for `sketch-eval reproduce` is in `leaderboard.csv`, with whatever is left out here. "
        "`sketch-eval page` makes a page to sort and filter, and all the plots, of `leaderboard.json`.\n",
        *(f"![{path.stem}]({path.name})\n" for path in pictures),
    ]
    groups: defaultdict[tuple[str, str], dict[tuple[str, str], None]] = defaultdict(dict)
    for row in rows:
        groups[_family(row)][row.task, row.metric] = None
    places = list(dict.fromkeys(_place(row) for row in sorted(rows, key=_by_cap)))
    names = names_of(rows)

    found = {(row.task, row.metric, *_place(row)): row for row in rows}
    for (group, metric), columns in groups.items():
        page.append(_section(f"{group}: {metric}", list(columns), places, found, entry))
        compared = {key: row for key, row in found.items() if key[:2] in columns and versus(row)}
        if compared and any(about["tasks"][task]["primary"] == one for task, one in columns):
            page.append(
                _section(f"{group}: {metric}, sketches against controls", list(columns), places, compared, versus)
            )
        referred = {key: row for key, row in found.items() if key[:2] in columns and not math.isnan(row.to_reference)}
        if referred:
            page.append(_section(f"{group}: {metric}, against the reference", list(columns), places, referred, choice))
        ways = {
            key: row
            for key, row in found.items()
            if key[:2] in columns and not math.isnan(row.way) and math.isnan(row.needle_depth)
        }
        if ways:
            title = f"{group}: {metric}, share of the way from window to clairvoyant"
            page.append(_section(title, list(columns), places, ways, way_gone))
        told = {key: row for key, row in found.items() if key[:2] in columns and row.undercut_by and not row.same_as}
        if told and any(about["tasks"][task]["primary"] == one for task, one in columns):
            title = f"{group}: {metric}, is another cell of no more bytes better?"
            page.append(_section(title, list(columns), places, told, partial(beaten, names)))
    page.append(_bytes({_place(row): row for row in sorted(rows, key=_by_cap)}))
    return "\n".join(page)


def entry(row: Row) -> str:
    """One row as an entry of a table."""
    value = scored(row.value, row.value_low, row.value_high)
    if row.kind == "full":
        return value
    if not row.bound:
        return f"{short(row.value)} = full"
    off = change(row.unit, row.difference, row.difference_low, row.difference_high)
    return f"{value}{off and '; '}{off}; {percent(row.binding)}{' ‡' if row.same_as else ''}"


def versus(row: Row) -> str:
    """A sketch's differences to `window` and to `exact` as an entry of a table; empty where there are none."""
    if row.kind != "sketch" or row.same_as:
        return ""
    window = change(row.unit, row.to_window, row.to_window_low, row.to_window_high)
    exact = change(row.unit, row.to_exact, row.to_exact_low, row.to_exact_high)
    return "; ".join(f"{name} {off}" for name, off in (("window", window), ("exact", exact)) if off)


def choice(row: Row) -> str:
    """A row's difference to the grid's reference as an entry of a table."""
    return change(row.unit, row.to_reference, row.to_reference_low, row.to_reference_high)


def way_gone(row: Row) -> str:
    """A row's share of the way from `window` to `clairvoyant` as an entry of a table."""
    return way(row.way, row.way_low, row.way_high)


def beaten(names: dict[str, str], row: Row) -> str:
    """Which cell undercuts a row, by its name, and the row's difference to it, as an entry of a table."""
    if row.undercut_by == NOBODY:
        return "not undercut"
    return f"{names[row.undercut_by]}: {change(row.unit, row.undercut, row.undercut_low, row.undercut_high)}"


def names_of(rows: list[Row]) -> dict[str, str]:
    """By row, its cap and cell in words."""
    return {row.row: " ".join(_place(row)).strip() for row in rows}


def _by_cap(row: Row) -> float:
    return 0.0 if math.isnan(row.cap) else row.cap


def _place(row: Row) -> tuple[str, str]:
    return "" if math.isnan(row.cap) else f"{row.cap:.0f}", row.cell


def _family(row: Row) -> tuple[str, str]:
    """(family, metric) of the table that a row goes into: tasks of several lengths share one, parts of a metric too."""
    part = re.sub(r"(_\d+)+$", "", row.metric)
    return (row.task, part) if part != row.metric else (task_family(row.task), row.metric)


def _section(
    title: str,
    columns: list[tuple[str, str]],
    places: list[tuple[str, str]],
    found: dict[Any, Row],
    spell: Callable[[Row], str],
) -> str:
    """A table: a line a cap and cell, a column a task or metric."""
    names = [task if len({one for one, _ in columns}) > 1 else metric for task, metric in columns]
    lines = [f"## {title}\n", _line(["cap", "cell", *names]), _line(["---:", "---", *["---"] * len(names)])]
    for cap, cell in places:
        shown = [found.get((*column, cap, cell)) for column in columns]
        if any(shown):
            cells = ["" if row is None else spell(row) for row in shown]
            lines.append(_line([cap, cell, *cells]))
    return "\n".join([*lines, ""])


def _bytes(rows: dict[tuple[str, str], Row]) -> str:
    """Bytes of one sequence's cache, all layers."""
    header = ["cap", "cell", "KV KiB", "sketch KiB", "total KiB", "saving"]
    lines = ["## Memory of one sequence\n", _line(header), _line(["---:", "---", *["---:"] * 4])]
    for (cap, cell), row in rows.items():
        sizes = map(kib, (row.kv_bytes, row.sketch_bytes, row.total_bytes))
        lines.append(_line([cap, cell, *sizes, f"{row.saving:.1%}"]))
    return "\n".join([*lines, ""])


def _csv(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _cell(key, value) for key, value in asdict(row).items()})
    return text.getvalue()


def _cell(key: str, value: Any) -> Any:
    """A value as CSV; whole numbers that are floats only so as to be missing are whole again."""
    if or_null(value) is None:
        return ""
    return int(value) if key in ("cap", "topk", "width", "depth") else value


def _line(entries: list[str]) -> str:
    return "| " + " | ".join(entries) + " |"
