"""The columns of a row: of the cell, of its score and of its differences to other cells, and of its bytes."""

from __future__ import annotations

import math
import re
from typing import Any

from sketch_eval.config import CacheConfig
from sketch_eval.grid.cells import cell_kind, cell_name, depends_on
from sketch_eval.statistics import Score, difference, interval, share

NONE = math.nan
OTHERS = ("window", "exact", "reference")
"""What each row says its difference to, beside the full cache: `Row.to_window` and so on."""
CEILING = "clairvoyant"
"""What `Row.way` leads to."""


def cell_columns(cell: CacheConfig) -> dict[str, Any]:
    """The columns that say what the cell is."""
    full, shown = cell.max_cache_size is None, {"cell": cell_name(cell), "kind": cell_kind(cell)}
    words = {
        field: "" if full else str(getattr(cell, field)) for field in ("importance", "scope", "strategy", "normalize")
    }
    words |= {field: "" if full else str(getattr(cell, field)) for field in ("sinks", "recent")}
    words |= {field: str(getattr(cell, field)) if depends_on(cell, field) else "" for field in ("item", "conservative")}
    numbers = {
        field: float(getattr(cell, field)) if depends_on(cell, field) else NONE for field in ("width", "depth", "decay")
    }
    return shown | words | numbers | {
        "topk": NONE if cell.topk is None else float(cell.topk),
        "store": cell.store,
        "store_group": float(cell.store_group) if cell.quantised else NONE,
        "centred": str(cell.centred),
        "cap": NONE if cell.max_cache_size is None else float(cell.max_cache_size),
    }  # fmt: skip


def score_columns(score: Score, base: Score) -> dict[str, Any]:
    """The columns of the value and of its difference to the full cache, which is none where it is the full cache's."""
    low, high = interval(score)
    change, change_low, change_high = (0.0, 0.0, 0.0) if score is base else difference(score, base)
    value = {"value": score.value, "value_low": low, "value_high": high}
    return value | {"difference": change, "difference_low": change_low, "difference_high": change_high}


def other_columns(score: Score, others: dict[str, Score]) -> dict[str, Any]:
    """The columns of the differences to other cells of the same cap, and of the way from one to another."""
    found: dict[str, Any] = {}
    for which in OTHERS:
        ends = difference(score, others[which]) if which in others else (NONE, NONE, NONE)
        found |= zip((f"to_{which}", f"to_{which}_low", f"to_{which}_high"), ends, strict=True)
    if "window" in others and CEILING in others:
        found |= zip(("way", "way_low", "way_high"), share(score, others["window"], others[CEILING]), strict=True)
    return found


def byte_columns(ledger: dict[str, Any]) -> dict[str, Any]:
    """The columns of the memory ledger (docs/design.md §6)."""
    kept = {name: ledger[name] for name in ("kv_bytes", "sketch_bytes", "full_bytes", "saving")}
    return kept | {"total_bytes": ledger["steady_bytes"]}


def bound_share(metric: str, binding: float, cell: CacheConfig) -> float:
    """Share of binding requests for a metric: what comes after a bucket of positions does not bind it.

    Every document with such buckets reaches all of them, so a bucket is bound in all or in none.
    """
    bucket, cap = re.search(r"_\d+_(\d+)$", metric), cell.max_cache_size
    if bucket is None or cap is None or not binding or cell.store != "float":
        return binding
    # The query at position C still sees all, and at position k one too many for topk=k.
    return float(int(bucket[1]) > cap or (cell.visible is not None and int(bucket[1]) >= cell.visible))


def needle_depth(task: str, metric: str) -> float:
    """Where the fact stood that a metric asks for, 0 to 1; not a number for other metrics."""
    found = re.fullmatch(r"acc_depth_(\d+)", metric) or (re.search(r"_depth_(\d+)$", task) if metric == "acc" else None)
    return int(found[1]) / 100 if found else NONE
