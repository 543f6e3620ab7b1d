"""Everything that `sketch-eval leaderboard` writes."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from sketch_eval.errors import UsageError
from sketch_eval.leaderboard import page, static, tables
from sketch_eval.leaderboard.row import Row, frame
from sketch_eval.leaderboard.rows import Sweep
from sketch_eval.sweep.store import write_file


def write(folder: Path, output: Path | None = None) -> tuple[list[Row], Path]:
    """Write the leaderboard of a sweep's folder; returns its rows and the path of its page.

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
    if sweep.missing:
        failed = "".join(f" {name} failed: {reason}." for name, reason in sweep.failures.items())
        about["notes"].insert(0, f"NOT COMPLETE: {len(sweep.missing)} runs are missing; run the sweep again.{failed}")
    target = folder if output is None else output
    target.mkdir(parents=True, exist_ok=True)
    tables.write(target, rows, about, [runs[row.row] for row in rows])
    timings = pd.DataFrame(sweep.timings())
    write_file(target / "timings.csv", timings.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    data = frame(rows)
    static.write(target, data, {task: entry["primary"] for task, entry in about["tasks"].items()})
    return rows, page.write(target, data, about, timings)
