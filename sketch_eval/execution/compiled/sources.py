"""The policies and fates that the compiled loop knows, by their names, and what it calls them itself."""

from __future__ import annotations

COUNT_MIN, COUNT_SKETCH, RACE, RACE_QUERIES, EXACT, LAST, FIXED, KNORM, FORESEEN = range(9)
VATP, SNAPKV, EXPECTED, KEYDIFF, FOLD_COST, LEARNED = range(9, 15)

SOURCES = {
    "count_min": COUNT_MIN,
    "count_sketch": COUNT_SKETCH,
    "race": RACE,
    "race_queries": RACE_QUERIES,
    "exact": EXACT,
    "last": LAST,
    "recency": FIXED,
    "random": FIXED,
    "surprisal": FIXED,
    "knorm": KNORM,
    "vatp": VATP,
    "snapkv": SNAPKV,
    "expected": EXPECTED,
    "keydiff": KEYDIFF,
    "fold_cost": FOLD_COST,
    "learned": LEARNED,
    "clairvoyant": FORESEEN,
}
"""Up to RACE_QUERIES they are sketches. FIXED: the tags of a pair are its estimate and never change. From VATP on, the
scores of all held pairs are made anew at each token."""

DROP, FOLD, FOLD_VALUES, FOLD_TURNED, FOLD_NEAR, FOLD_UNWEIGHTED = range(6)

FATES = {
    "topk": DROP,
    "aggregate": FOLD,
    "aggregate_values": FOLD_VALUES,
    "aggregate_turned": FOLD_TURNED,
    "aggregate_near": FOLD_NEAR,
    "aggregate_unweighted": FOLD_UNWEIGHTED,
}
