"""`sketch-eval reproduce`: one row of a leaderboard again, from what the row itself records."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sketch_eval.errors import UsageError
from sketch_eval.grid.grid import Grid
from sketch_eval.leaderboard.row import or_null
from sketch_eval.leaderboard.runs import Sweep
from sketch_eval.sweep.run import Crew, Watcher, sweep

COMPARED = (
    "documents", "value", "value_low", "value_high", "difference", "difference_low", "difference_high",
    "spread_low", "spread_high", "binding", "kv_bytes", "sketch_bytes", "total_bytes",
)  # fmt: skip
CLOSE = 1e-4
"""Relative difference that another machine's arithmetic may make (docs/design.md §5)."""


class NoSuchRow(UsageError):
    """A row is not where it was looked for."""


@dataclass(frozen=True)
class Comparison:
    """A row then and now.

    Attributes:
        recorded: the row's numbers as the leaderboard has them, by column.
        now: the same columns, measured now.
        changed: of what decides a number (versions, fingerprints), (then, now) of what is not as it was.
    """

    recorded: dict[str, Any]
    now: dict[str, Any]
    changed: dict[str, tuple[Any, Any]]

    @property
    def verdict(self) -> str:
        """`equal`, bit for bit; `close`, within 1e-4 of each number; or `different`."""
        if all(self.recorded[key] == self.now[key] for key in COMPARED):
            return "equal"
        return "close" if all(_close(self.recorded[key], self.now[key]) for key in COMPARED) else "different"


HABITUAL = (Path("runs"), Path("results"))
"""Where a row is looked for if nothing else is said: first among what the user ran, then among what is committed."""


def find(row: str, places: Sequence[Path] = ()) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """(file, head of the leaderboard, row) of a row by its name, or the beginning of it, in leaderboard.json files.

    Args:
        row: the name.
        places: files or folders to look in; by default `HABITUAL`, one after the other.

    Raises:
        UsageError: no leaderboard, no such row, several, or one that two leaderboards have other numbers of.
    """
    if not places:
        for place in HABITUAL:
            with suppress(NoSuchRow):
                return find(row, [place])
        places = HABITUAL
    files = [
        path for place in places for path in ([place] if place.is_file() else sorted(place.glob("**/leaderboard.json")))
    ]
    if not files:
        raise NoSuchRow(f"--in {', '.join(map(str, places))}: no leaderboard.json there; give a leaderboard's folder")
    found = []
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            rows = [(file, content["about"], entry) for entry in content["rows"] if entry["row"].startswith(row)]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"in={str(file)!r} is no leaderboard that `sketch-eval leaderboard` wrote") from error
        found += rows
    where = ", ".join(dict.fromkeys(str(file) for file, _, _ in found)) or ", ".join(map(str, files))
    if not found:
        raise NoSuchRow(f"row={row!r}: no such row in {where}; the first column of leaderboard.csv names them")
    if len({entry["row"] for _, _, entry in found}) > 1:
        raise UsageError(f"row={row!r}: several rows begin so in {where}; give more of its name")
    (_, _, first), *others = found
    if any(entry[key] != first[key] for _, _, entry in others for key in COMPARED):
        raise UsageError(f"row={row!r} is in {where}, with other numbers; say which with --in")
    return found[0]


def reproduce(
    entry: dict[str, Any], about: dict[str, Any], recruit: Callable[[Grid], Crew], watcher: Watcher
) -> Comparison:
    """Run a row's cell and the full cache on its task, in a folder of its own, and compare.

    Raises:
        UsageError: the model or the task cannot be had, or a run failed.
    """
    grid = Grid(**entry["run"])
    with TemporaryDirectory() as scratch:
        report = sweep(grid, Path(scratch), recruit, watcher)
        if report.failed:
            raise UsageError("the row could not be run: " + "; ".join(report.failed.values()))
        again = Sweep(Path(scratch))
        # Not by the row's name, which an argument that cells have got since then has made another.
        which = ("cell", "kind", "cap", "metric")
        (row,) = [row for row in again.rows() if all(or_null(getattr(row, key)) == entry[key] for key in which)]
        then, now = _deciders(about, entry["task"]), _deciders(again.description(), entry["task"])
    numbers = {key: None if _unknown(getattr(row, key)) else getattr(row, key) for key in COMPARED}
    changed = {key: (then.get(key), now.get(key)) for key in then | now if then.get(key) != now.get(key)}
    return Comparison({key: entry[key] for key in COMPARED}, numbers, changed)


def _deciders(about: dict[str, Any], task: str) -> dict[str, Any]:
    """What a number depends on beside the row's own settings."""
    model = {f"model {key}": value for key, value in about["model"].items()}
    documents = {
        "documents' fingerprint": about["tasks"][task]["fingerprint"],
        "sources of sketch_eval": about["sources"],
    }
    return model | documents | about["versions"]


def _unknown(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _close(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=CLOSE, abs_tol=CLOSE)
