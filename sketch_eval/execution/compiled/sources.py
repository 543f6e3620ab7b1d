"""The policies and fates that the compiled loop knows, by their names, and what it calls them itself."""

from __future__ import annotations

COUNT_MIN, COUNT_SKETCH, RACE, EXACT, LAST, FIXED, KNORM, FORESEEN = range(8)

SOURCES = {
    "count_min": COUNT_MIN,
    "count_sketch": COUNT_SKETCH,
    "race": RACE,
    "exact": EXACT,
    "last": LAST,
    "recency": FIXED,
    "random": FIXED,
    "knorm": KNORM,
    "clairvoyant": FORESEEN,
}
"""Up to RACE they are sketches. FIXED: the tags of a pair are its estimate and never change."""

DROP, FOLD, FOLD_VALUES, FOLD_TURNED = range(4)

FATES = {"topk": DROP, "aggregate": FOLD, "aggregate_values": FOLD_VALUES, "aggregate_turned": FOLD_TURNED}
