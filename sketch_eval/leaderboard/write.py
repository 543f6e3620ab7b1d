"""Everything that `sketch-eval leaderboard` writes, and the page that `sketch-eval page` makes of its tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from sketch_eval.errors import UsageError
from sketch_eval.leaderboard import page, static, tables
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

    leaderboard.md with its pictures, .csv and .json are the same for every run of one sweep, killed in between or not;
    timings.csv and leaderboard.html, which shows the times too, are not.

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
    pictures = static.pictures(target, data, about)
    tables.write(target, rows, about, [runs[row.row] for row in rows], pictures)
    timings = pd.DataFrame(sweep.timings())
    write_file(target / "timings.csv", timings.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    return Written(rows, _draw(target, data, about, timings), list(sweep.about["tasks"]), missing)


def write_page(folder: Path, output: Path | None = None) -> Path:
    """Write leaderboard.html and figures/ out of a folder's tables alone, and return the path of the page.

    Args:
        folder: a folder with a leaderboard.json, and with a timings.csv if the page is to show times.
        output: where to write, by default there.

    Raises:
        UsageError: there is no leaderboard.json, or it is none.
    """
    path, times = folder / "leaderboard.json", folder / "timings.csv"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        data, about = frame([tables.row_of(entry) for entry in content["rows"]]), content["about"]
    except FileNotFoundError as error:
        raise UsageError(
            f"results={str(folder)!r} holds no leaderboard.json; give the folder of a leaderboard"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"results={str(path)!r} is no leaderboard that `sketch-eval leaderboard` wrote") from error
    target = folder if output is None else output
    target.mkdir(parents=True, exist_ok=True)
    return _draw(target, data, about, pd.read_csv(times) if times.exists() else None)


def _draw(target: Path, data: pd.DataFrame, about: dict[str, Any], timings: pd.DataFrame | None) -> Path:
    static.write(target, data, {task: entry["primary"] for task, entry in about["tasks"].items()})
    return page.write(target, data, about, timings)
