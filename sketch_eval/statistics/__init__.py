"""Scores over documents, and their intervals."""

from sketch_eval.statistics.intervals import (
    LEVEL,
    Unit,
    difference,
    interval,
    newcombe,
    ratio_interval,
    resamples,
    share,
    steps,
    unit,
    wilson,
)
from sketch_eval.statistics.scores import AGGREGATIONS, Array, Score, average

__all__ = [
    "AGGREGATIONS",
    "LEVEL",
    "Array",
    "Score",
    "Unit",
    "average",
    "difference",
    "interval",
    "newcombe",
    "ratio_interval",
    "resamples",
    "share",
    "steps",
    "unit",
    "wilson",
]
