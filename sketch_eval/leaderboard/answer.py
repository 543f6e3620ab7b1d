"""What a leaderboard says in a sentence: which cell of a cap does best, and what does better in about as many bytes."""

from __future__ import annotations

from typing import Any

import pandas as pd

from sketch_eval.leaderboard import views
from sketch_eval.leaderboard.numbers import change, scored, size
from sketch_eval.leaderboard.views import Subject


def answer(table: pd.DataFrame, subject: Subject, cap: float | None) -> tuple[str, str]:
    """What the table of a subject says at a cap: a sentence, and a smaller one of how far it can be trusted."""
    full = table[table["kind"] == "full"]
    base = (
        ""
        if full.empty
        else f"The full cache scores {scored(full['value'].iloc[0])}" + (f" in {size(full['total_bytes'].iloc[0])}. ")
    )
    here = views.usable(table[table["cap"] == cap]).sort_values("lost", kind="stable")
    here = here[here["lost"].notna()]
    documents = _documents(table)
    what = f"{subject.metric.replace('_', ' ')} on {subject.name}"
    if cap is None or here.empty:
        at = "" if cap is None else f" at a cap of {cap:g} pairs"
        return f"No cell loses a pair{at}, so nothing is lost of {what}.", base + documents
    best, rest = here.iloc[0], here.iloc[1:]
    said = f"Held to {cap:g} pairs a layer, `{best['cell']}` does best at {what}: {_lost(best)} to the full cache's in "
    others = []
    windows = rest["cell"].map(views.is_window).astype(bool)
    plain = rest[windows].sort_values("total_bytes", ascending=False)
    if len(plain):
        others.append(("the plain window", plain.iloc[0]))
    for kind, name in (("sketch", "the best sketch"), ("control", "the best cell without a sketch")):
        rivals = rest[(rest["kind"] == kind) & ~windows]
        if best["kind"] != kind and len(rivals):
            others.append((f"{name}, `{rivals['cell'].iloc[0]}`,", rivals.iloc[0]))
    told = [f"{name} is at {_lost(other)} in {size(other['total_bytes'])}" for name, other in others]
    said += f"{size(best['total_bytes'])}{'; ' if told else ''}{', and '.join(told)}."
    more = views.usable(views.more_pairs(table, cap)).sort_values("lost", kind="stable")
    more = more[more["total_bytes"] <= views.ABOUT * best["total_bytes"]]
    trust = _trust(best, rest)
    if len(more) and more["lost"].iloc[0] < best["lost"]:
        cheap = more.iloc[0]
        said += (
            f" `{cheap['cell']}` has {cheap['cap']:g} pairs in about as many bytes and scores better: "
            f"{_lost(cheap)} in {size(cheap['total_bytes'])}."
        )
        trust += f"The one of more pairs is the best of {len(more)}. " if len(more) > 1 else ""
    return said, base + trust + documents


def _lost(row: Any) -> str:
    return change(row["unit"], row["difference"], row["difference_low"], row["difference_high"])


def _trust(best: Any, rest: pd.DataFrame) -> str:
    """How the best cell stands to the window, document by document, and how many it was chosen from."""
    paired = change(best["unit"], best["to_window"], best["to_window_low"], best["to_window_high"])
    said = f"Paired by document, `{best['cell']}` is at {paired} to the window. " if paired else ""
    return (
        f"{said}It is the best of {len(rest) + 1} at this cap, so part of its lead may be luck. " if len(rest) else said
    )


def _documents(table: pd.DataFrame) -> str:
    if table.empty:
        return ""
    number, tasks = int(table["documents"].max()), int(table["of"].max())
    return f"{number} documents" + (f" in {tasks} tasks, whose mean this is." if tasks > 1 else ".")
