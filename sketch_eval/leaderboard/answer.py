"""What a table says at a cap, in a sentence: the first thing on its page."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from sketch_eval.leaderboard.numbers import change, scored, size
from sketch_eval.leaderboard.views import Subject, cells, usable


def answer(rows: pd.DataFrame, subject: Subject, cap: float | None) -> tuple[str, str]:
    """What the table says of a subject at a cap: a sentence, and a smaller one of how far it can be trusted."""
    table = cells(rows, subject)
    full = table[table["kind"] == "full"]
    base = (
        ""
        if full.empty
        else f"The full cache scores {scored(full['value'].iloc[0])}" + (f" in {size(full['total_bytes'].iloc[0])}. ")
    )
    here = usable(table[table["cap"] == cap]).sort_values("lost", kind="stable")
    here = here[here["lost"].notna()]
    documents = _documents(table)
    what = f"{subject.metric.replace('_', ' ')} on {subject.name}"
    if cap is None or here.empty:
        at = "" if cap is None else f" at a cap of {cap:g} pairs"
        return f"No cell loses a pair{at}, so nothing is lost of {what}.", base + documents
    best, rest = here.iloc[0], here.iloc[1:]
    said = f"Held to {cap:g} pairs a layer, `{best['cell']}` does best at {what}: {_lost(best)} to the full cache's in "
    others = []
    plain = rest[rest["cell"] == "window"]
    if len(plain):
        others.append(f"the plain window is at {_lost(plain.iloc[0])} in {size(plain['total_bytes'].iloc[0])}")
    for kind, name in (("sketch", "the best sketch"), ("control", "the best cell without a sketch")):
        rivals = rest[(rest["kind"] == kind) & (rest["cell"] != "window")]
        if best["kind"] != kind and len(rivals):
            rival = rivals.iloc[0]
            others.append(f"{name}, `{rival['cell']}`, at {_lost(rival)} in {size(rival['total_bytes'])}")
    return f"{said}{size(best['total_bytes'])}{'; ' if others else ''}{', and '.join(others)}.", base + _trust(
        best, rest
    ) + documents


def _lost(row: Any) -> str:
    return change(row["unit"], row["difference"], row["difference_low"], row["difference_high"])


def _trust(best: Any, rest: pd.DataFrame) -> str:
    """How the best cell stands to the window, document by document, and how many cells are as good as it."""
    paired = change(best["unit"], best["to_window"], best["to_window_low"], best["to_window_high"])
    said = f"Against the window, paired by document, the best is at {paired}. " if paired else ""
    if math.isnan(best["lost_high"]) or rest.empty:
        return said
    near = int((rest["lost_low"] <= best["lost_high"]).sum())
    return f"{said}Of the {len(rest)} other cells at this cap, {near} have intervals that overlap with its own. "


def _documents(table: pd.DataFrame) -> str:
    if table.empty:
        return ""
    number, tasks = int(table["documents"].max()), int(table["of"].max())
    return f"{number} documents" + (f" in {tasks} tasks, whose mean this is." if tasks > 1 else ".")
