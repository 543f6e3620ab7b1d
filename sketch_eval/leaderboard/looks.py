"""How a method looks in every plot of every table: a colour by its ranking, a marker by its fate and its store."""

from __future__ import annotations

import zlib

from sketch_eval.formats import BITS
from sketch_eval.policies import FATES

COLOURS = {
    "window": "#7b8794", "streaming": "#a0764c", "random": "#8a8a2e", "tova": "#c2489f", "knorm": "#4f8f8b",
    "h2o": "#d64545", "exact": "#d9730d", "count_min": "#2f7fd1", "count_sketch": "#1593a0", "race": "#7c6bd6",
    "race_queries": "#9273b5", "vatp": "#b0677c", "snapkv": "#2a9d4e", "expected": "#5f7fa8", "keydiff": "#6b8f3f",
    "surprisal": "#b8860b", "clairvoyant": "#8d6e63", "learned": "#00897b", "fold_cost": "#ad5fd0",
    "int8": "#6f7d1e", "k8v4": "#a85a2b", "int4": "#c25b86", "int3": "#7d6aa6",
}  # fmt: skip
"""By how a cell ranks; the same in every plot of every table, with a contrast of 3 and more on white and on dark."""
SPARE = ["#2f7fd1", "#d9730d", "#2a9d4e", "#c2489f", "#1593a0", "#d64545", "#7c6bd6", "#8a8a2e"]
"""For the names that have no colour of their own; which of them is theirs is in the name."""
SHAPES = dict(
    zip(FATES, ("circle", "diamond", "triangle-up", "triangle-down", "square", "cross", "wedge", "arrow"), strict=False)
)
"""By what becomes of a victim."""
STORED = ("triangle-right", "triangle-left")
"""Of pairs that are kept in other numbers than the model's own: dropped, and folded."""


def look(method: str) -> tuple[str, str]:
    """The colour and the marker of a method of `views.method`, which are the same everywhere."""
    head, *rest = method.split()
    colour = COLOURS.get(head, SPARE[zlib.crc32(head.encode()) % len(SPARE)])
    fate = next((word for word in rest if word in FATES), next(iter(FATES)))
    if any(word not in FATES for word in rest) or head in BITS:
        return colour, STORED[fate != next(iter(FATES))]
    return colour, SHAPES.get(fate, "stroke")
