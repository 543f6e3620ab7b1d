"""Everything that `sketch-eval leaderboard` writes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from sketch_eval.errors import UsageError
from sketch_eval.leaderboard import page, static, tables
from sketch_eval.leaderboard.row import Row, frame
from sketch_eval.leaderboard.rows import Sweep
from sketch_eval.sweep.store import write_file


class Written(NamedTuple):
    """A leaderboard: its rows, the path of its page, all tasks of its sweep, and what of it is missing, in a line."""

    rows: list[Row]
    page: Path
    tasks: list[str]
    missing: str


def write(folder: Path, output: Path | None = None) -> Written:
    """Write the leaderboard of a sweep's folder.

    leaderboard.md, .csv and .json are the same for every run of one sweep, killed in between or not; timings.csv and
    leaderboard.html, which shows the times too, are not.

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
    tables.write(target, rows, about, [runs[row.row] for row in rows])
    timings = pd.DataFrame(sweep.timings())
    write_file(target / "timings.csv", timings.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    data = frame(rows)
    static.write(target, data, {task: entry["primary"] for task, entry in about["tasks"].items()})
    return Written(rows, page.write(target, data, about, timings), list(sweep.about["tasks"]), missing)
