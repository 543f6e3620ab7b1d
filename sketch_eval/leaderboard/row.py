"""One row of a leaderboard: one metric of one task in one cell (docs/design.md §7)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row; two runs of one sweep write equal rows.

    What it says of other cells (`to_…`, `way`, `undercut`) is decided by these too, all else by what `reproduce` is
    given.

    Attributes:
        row: its name, ten hexadecimal digits: what `sketch-eval reproduce` takes.
        cell: the cell without its cap, e.g. `count_min 512×4 topk32`, or a control's name; `full` is the baseline.
        kind: `full`, `control` (of the ladder of docs/design.md §4) or `sketch`.
        importance, scope, strategy, topk, cap, width, depth, item, decay, conservative, normalize, sinks, recent,
            store, store_group, centred: the cell; NaN or empty where it has no such thing (a control has no width, the
            full cache no cap, pairs in full numbers no groups).
        seeds: hash seeds that the row is the mean of, e.g. `0 1 2`.
        task: lm-eval's name of the task.
        metric: lm-eval's name of the metric.
        higher_is_better: whether more of the metric is better.
        needle_depth: where the fact stood, 0 (start) to 1 (end); NaN for all other metrics.
        documents: how many were scored.
        value, value_low, value_high: the metric and its 95% interval over documents (`sketch_eval.statistics`).
        unit: of all differences: `points`, hundredths, for an accuracy and all else that lies between 0 and 1;
            `percent` of what is compared with for a perplexity.
        difference, difference_low, difference_high: to the full cache, paired by document.
        to_window, to_window_low, to_window_high: to the control `window` at the same cap and store, likewise: what the
            cell gains or loses over keeping the newest tokens. NaN in the control's own row, where either bound
            nothing, and where the grid has no such control.
        to_exact, to_exact_low, to_exact_high: to the same cell with exact scores, likewise: what a sketch itself loses.
        to_reference, to_reference_low, to_reference_high: to the grid's `reference` at the same cap, or to the cell's
            `twin`, likewise.
        way, way_low, way_high: which share of the way from the `window` of its cap and store to the clairvoyant of its
            cap, store and scope it goes, 0 to 1 and beyond (docs/design.md §9). NaN where the grid has not both, and
            where the second is not better than the first beyond doubt.
        undercut_by: the row of another cell of the sweep that has no more bytes and is surely better on the same task
            and metric (`front.undercut`), the full cache and cells that bound nothing included. `none` where there is
            no such cell, because none is better or because the documents do not tell. Empty where it was not asked:
            of the baseline, of what bound nothing or has read the text before, of one document alone, and while runs
            of the task are missing.
        undercut, undercut_low, undercut_high: the difference to that cell, as the others.
        spread_low, spread_high: least and greatest value among the seeds; NaN with one seed.
        binding: share of requests for which a pair was evicted, hidden or kept in other numbers, 0 to 1.
        bound: whether any was: where not, the row is the full cache's and says nothing of the cell.
        same_as: the row of the cell that is the same computation and was run for this one; empty for one run itself.
        kv_bytes, sketch_bytes, total_bytes: of one sequence, all layers, steady; sketch_bytes are the table's, or of
            the exact scores that a control keeps.
        full_bytes: of the model's own cache at its full length.
        saving: 1 - total_bytes / full_bytes.
        command: a command line of lm-eval that scores the cell on the task, with the first of its seeds.
    """

    row: str
    cell: str
    kind: str
    importance: str
    scope: str
    strategy: str
    topk: float
    cap: float
    width: float
    depth: float
    item: str
    decay: float
    conservative: str
    normalize: str
    sinks: str
    recent: str
    store: str = "float"  # These three as in all tables that were made before there was another.
    store_group: float = math.nan
    centred: str = "False"
    seeds: str
    task: str
    metric: str
    higher_is_better: bool
    unit: str
    needle_depth: float
    documents: int
    value: float
    value_low: float
    value_high: float
    difference: float
    difference_low: float
    difference_high: float
    to_window: float
    to_window_low: float
    to_window_high: float
    to_exact: float
    to_exact_low: float
    to_exact_high: float
    to_reference: float
    to_reference_low: float
    to_reference_high: float
    way: float = math.nan
    way_low: float = math.nan
    way_high: float = math.nan
    undercut_by: str = ""
    undercut: float = math.nan
    undercut_low: float = math.nan
    undercut_high: float = math.nan
    spread_low: float
    spread_high: float
    binding: float
    bound: bool
    same_as: str
    kv_bytes: int
    sketch_bytes: int
    total_bytes: int
    full_bytes: int
    saving: float
    command: str


def task_family(task: str) -> str:
    """A task's name without the length or depth that it ends in.

    `long_text` keeps it: perplexities of texts of several lengths have no mean that says anything.
    """
    return task if task.startswith("long_text") else re.sub(r"(_depth)?_\d+$", "", task)


COLUMNS = [field.name for field in fields(Row)]


def frame(rows: list[Row]) -> pd.DataFrame:
    """The rows as a data frame, one column an attribute, in their order."""
    import pandas as pd  # Late: the command line reads this module before it knows whether there are rows.

    return pd.DataFrame([vars(row) for row in rows], columns=COLUMNS)


def or_null(value: Any) -> Any:
    """A value as JSON has it, which has no word for what is no number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
