"""What a leaderboard says in a sentence: which cell of a cap does best, and what does better in about as many bytes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pandas as pd

from sketch_eval.leaderboard import views
from sketch_eval.leaderboard.front import NOBODY
from sketch_eval.leaderboard.numbers import change, scored, size
from sketch_eval.leaderboard.views import Subject


class Answer(NamedTuple):
    """What a table says at a cap, in words.

    Attributes:
        said: which cell does best, how many may be as good, and which does better with more pairs in as many bytes.
        trust: where the others stand, and how far all that can be trusted.
        more: index of the row with more pairs in about as many bytes that scores better, or None.
    """

    said: str
    trust: str
    more: int | None = None


def answer(table: pd.DataFrame, subject: Subject, cap: float | None) -> Answer:
    """What a table of `views.cells` says at a cap."""
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
        return Answer(f"No cell loses a pair{at}, so nothing is lost of {what}.", base + documents)
    best, rest = here.iloc[0], here.iloc[1:]
    alike = _alike(best, rest)
    lost = f"{_lost(best)} to the full cache's in {size(best['total_bytes'])}"
    said = f"Held to {cap:g} pairs a layer, `{best['cell']}`{_best(best, len(alike))} at {what}: {lost}."
    near = views.usable(views.more_pairs(table, cap)).sort_values("lost", kind="stable")
    near = near[near["total_bytes"] <= views.ABOUT * best["total_bytes"]]
    more = near[near["lost"] < best["lost"]]
    trust = _beside(best, rest, alike) + _trust(best, rest)
    undercut = best["undercut_by"]
    if len(more):
        cheap = more.iloc[0]
        surely = " surely" if undercut == _name(cheap) else ""
        said += (
            f" `{cheap['cell']}` has {cheap['cap']:g} pairs in about as many bytes and{surely} scores better: "
            f"{_lost(cheap)} in {size(cheap['total_bytes'])}."
        )
        trust += f"The one of more pairs is the best of {len(near)}. " if len(near) > 1 else ""
    if undercut not in ("", NOBODY) and not (len(more) and undercut == _name(more.iloc[0])):
        trust += f"One of no more bytes is surely better than it, by document: {_told(undercut, cap)}. "
    return Answer(said, base + trust + documents, more.index[0] if len(more) else None)


def _name(row: Any) -> str:
    """What a row is called where another says that it is undercut by it."""
    return f"{row['cap']:g} {row['cell']}"


def _told(name: str, cap: float) -> str:
    """A cell by its `_name`, or by its own where it has no cap, as a sentence on a cap tells it."""
    pairs, _, cell = name.partition(" ")
    if not pairs.isdigit():
        return f"`{name}`, without a bound"
    return f"`{cell}`" if pairs == f"{cap:g}" else f"`{cell}` of {pairs} pairs"


def _best(best: Any, alike: int) -> str:
    """What the best cell does, alone or with others."""
    others = "one other cell" if alike == 1 else f"{alike} other cells"
    if math.isnan(best["lost_low"]):
        return f" and {others} score best" if alike else " scores best"
    return f" and by their intervals perhaps {others} do best" if alike else " does best"


def _alike(best: Any, rest: pd.DataFrame) -> pd.DataFrame:
    """The other cells of the cap that may be as good as the best one; without intervals, those that score the same.

    Those are not among them whose interval lies beyond the best one's, which some cell of the cap undercuts, or which
    are the window of the best one's store where its paired difference to that excludes zero.
    """
    beaten = rest["undercut_by"].isin({_name(best), *map(_name, rest.to_dict("records"))})
    sure = best["to_window_low"] > 0 or best["to_window_high"] < 0
    windows = rest["cell"].map(views.is_window).astype(bool)
    window = windows & sure & (rest["cell"].map(views.store) == views.store(best["cell"]))
    same = rest["lost_low"].isna() & (rest["lost"] == best["lost"])
    return rest[same | ((rest["lost_low"] <= best["lost_high"]) & ~beaten & ~window)]


def _beside(best: Any, rest: pd.DataFrame, alike: pd.DataFrame) -> str:
    """Where the cells stand that a reader looks for beside the best one of the cap."""
    named: dict[str, str] = {}
    windows = rest["cell"].map(views.is_window).astype(bool)
    if len(alike):
        least = alike.sort_values(["total_bytes", "lost"], kind="stable").iloc[0]
        which = "other cell that may be as good" if len(alike) == 1 else "cheapest other cell that may be as good"
        named[least["cell"]] = f"the {which}, `{least['cell']}`, is at {_in(least)}"
    if windows.any():
        plain = rest[windows].sort_values("total_bytes", ascending=False).iloc[0]
        named.setdefault(plain["cell"], f"the plain window is at {_in(plain)}")
    for kind, name in (("sketch", "the best sketch"), ("control", "the best cell without a sketch")):
        rivals = rest[(rest["kind"] == kind) & ~windows]
        if best["kind"] != kind and len(rivals):
            rival = rivals.iloc[0]
            named.setdefault(rival["cell"], f"{name}, `{rival['cell']}`, is at {_in(rival)}")
    *first, last = named.values() or [""]
    told = f"{', '.join(first)} and {last}" if first else last
    return f"{told[0].upper()}{told[1:]}. " if told else ""


def _in(row: Any) -> str:
    return f"{_lost(row)} in {size(row['total_bytes'])}"


def _lost(row: Any) -> str:
    return change(row["unit"], row["difference"], row["difference_low"], row["difference_high"])


def _trust(best: Any, rest: pd.DataFrame) -> str:
    """How the best cell stands to the window, document by document, and how many it was chosen from."""
    paired = change(best["unit"], best["to_window"], best["to_window_low"], best["to_window_high"])
    said = f"Paired by document, `{best['cell']}` is at {paired} to the window. " if paired else ""
    said += "There are no intervals. " if math.isnan(best["lost_low"]) else ""
    lead = f"It is the best of {len(rest) + 1} at this cap, so part of its lead may be luck. "
    return said + (lead if len(rest) else "")


def _documents(table: pd.DataFrame) -> str:
    if table.empty:
        return ""
    number, tasks = int(table["documents"].max()), int(table["of"].max())
    return f"{number} documents" + (f" in {tasks} tasks, whose mean this is." if tasks > 1 else ".")
