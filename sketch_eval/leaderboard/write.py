"""Everything that `sketch-eval leaderboard` writes, and the page that `sketch-eval page` makes of its tables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from sketch_eval.errors import UsageError
from sketch_eval.leaderboard import page, plots, tables, views
from sketch_eval.leaderboard.row import Row, frame
from sketch_eval.leaderboard.runs import Sweep
from sketch_eval.sweep.store import write_file


class Written(NamedTuple):
    """A leaderboard: its rows, the path of its page, all tasks of its sweep, and what of it is missing, in a line."""

    rows: list[Row]
    page: Path
    tasks: list[str]
    missing: str


def write(folder: Path, output: Path | None = None) -> Written:
    """Write the leaderboard of a sweep's folder.

    leaderboard.md with its pictures, .csv, .json and .html are the same for every run of one sweep, killed in between
    or not; timings.csv is not.

    Args:
        folder: a folder that `sketch-eval sweep` wrote.
        output: where to write, by default there.

    Raises:
        UsageError: the folder holds no finished run of its grid's full cache.
    """
    sweep = Sweep(folder)
    rows, about, runs = sweep.rows(), sweep.description(), sweep.runs()
    if not rows:
        raise UsageError(f"results={str(folder)!r}: no task's full-cache run is finished there; run the sweep first")
    missing = sweep.missing_line()
    if missing:
        about["notes"].insert(0, missing)
    target = folder if output is None else output
    target.mkdir(parents=True, exist_ok=True)
    data = frame(rows)
    tables.write(target, rows, about, [runs[row.row] for row in rows], pictures(target, data, about))
    timings = pd.DataFrame(sweep.timings())
    write_file(target / "timings.csv", timings.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    return Written(rows, page.write(target, data, about), list(sweep.about["tasks"]), missing)


def write_page(folder: Path, output: Path | None = None, figures: bool = False) -> Path:
    """Write leaderboard.html out of a folder's tables alone, and return its path.

    Args:
        folder: a folder with a leaderboard.json.
        output: where to write, by default there.
        figures: whether to write figures/ as well, every plot as PNG and SVG.

    Raises:
        UsageError: there is no leaderboard.json, or it is none.
    """
    rows, about = tables.read(folder)
    data, target = frame(rows), folder if output is None else output
    if figures:
        draw(target / "figures", data, about)
    return page.write(target, data, about)


def pictures(folder: Path, rows: pd.DataFrame, about: dict[str, Any]) -> list[Path]:
    """Draw bytes.png and cells.png of what the page opens on, where there is data for them; returns their paths."""
    subject, paths = views.opening(views.subjects(rows, about)), []
    for name in ("bytes", "cells"):
        path = folder / f"{name}.png"
        path.unlink(missing_ok=True)
        if (drawn := plots.picture(name, rows, subject)) is not None:
            path.write_bytes(drawn)
            paths.append(path)
    return paths


def draw(folder: Path, rows: pd.DataFrame, about: dict[str, Any]) -> list[Path]:
    """Write every plot of each task or group as PNG and SVG, by its main metric, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.png"), *folder.glob("*.svg")):
        old.unlink()  # Of a grid that may have changed.
    paths = []
    for subject in views.columns(views.subjects(rows, about)):
        called = re.sub(r"[^\w.-]+", "_", subject.name)
        for name in plots.PLOTS:
            for kind in ("png", "svg"):
                if (drawn := plots.picture(name, rows, subject, kind)) is not None:
                    paths.append(folder / f"{name}-{called}.{kind}")
                    paths[-1].write_bytes(drawn)
    return paths
