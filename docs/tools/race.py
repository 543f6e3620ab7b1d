"""The table of sketches of the queries: what each loses, and what it knows of the attention to come."""

from __future__ import annotations

import csv
from itertools import pairwise
from statistics import fmean

from board import HALF, RACES, Row, Tables, at, ends, kib, percent, require

CAP = 128
LESS = f"{HALF} centred=True"
SHAPES = ("512×4", "32×16", "8×64")


def known(tables: Tables) -> dict[tuple[str, str], float]:
    """By task and cell, the rank correlation with the attention to come, a mean over layers and heads."""
    found: dict[tuple[str, str], list[float]] = {}
    with (tables.results / RACES[0].folder / "diagnosis.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["rank_to_come"]:
                found.setdefault((row["task"], row["cell"]), []).append(float(row["rank_to_come"]))
    return {key: fmean(values) for key, values in found.items()}


def hold(tables: Tables) -> None:
    """Hold what docs/findings.md says below the table to it.

    Raises:
        NotSoError: the tables do not say a sentence, or have no row that could.
    """
    knows = known(tables)

    def rows(cell: str) -> list[Row]:
        return [tables.row(text, cell, CAP) for text in RACES]

    def rank(cell: str) -> list[float]:
        return [knows[text.task, cell] for text in RACES]

    first, best = (f"race_queries {shape}{less}" for shape, less in (("512×4", HALF), ("8×64", LESS)))
    told = {
        "with keys as they are a sketch of 512×4 knows nothing": [abs(one) < 0.05 for one in rank(first)],
        "rows of few counters and keys less their mean know more, step by step": [
            one < other
            for less in (HALF, LESS)
            for shape, next_shape in pairwise(SHAPES)
            for one, other in zip(
                rank(f"race_queries {shape}{less}"), rank(f"race_queries {next_shape}{less}"), strict=True
            )
        ]
        + [
            one < other
            for shape in SHAPES
            for one, other in zip(rank(f"race_queries {shape}{HALF}"), rank(f"race_queries {shape}{LESS}"), strict=True)
        ],
        "it comes to about 0.3 of exact counts' 0.7": [0.27 < one < 0.33 for one in rank(best)]
        + [0.64 < one < 0.7 for one in rank(f"exact{HALF}")],
        "the age of a pair alone has about 0.25 to 0.3": [
            0.25 <= round(one, 2) <= 0.3 for cell in ("window", "streaming") for one in rank(f"{cell}{HALF}")
        ],
        "what knows nothing loses no more than what knows": [
            at(one, "difference") < at(other, "difference") for one, other in zip(rows(first), rows(best), strict=True)
        ],
        "it is better than exact counts on library text and the works": [
            ends(rows(first)[text], "to_exact")[1] < 0 for text in (0, 2)
        ],
        "and not told apart on WikiText-2": [
            ends(rows(first)[1], "to_exact")[0] < 0 < ends(rows(first)[1], "to_exact")[1]
        ],
    }
    require(told, "docs/findings.md")


def every(tables: Tables) -> str:
    """All cells, for docs/findings.md."""
    hold(tables)
    knows = known(tables)
    heads = " | ".join(
        f"[{text.title}](../results/{text.folder}/leaderboard.md) | to exact counts | knows" for text in RACES
    )
    lines = [f"| cell | KiB | {heads} |", f"| --- | ---: |{' --- | --- | ---: |' * len(RACES)}"]
    cells = [cell for cell, cap in tables.rows[RACES[0]] if cap]
    for cell in sorted(cells, key=lambda one: at(tables.row(RACES[0], one, CAP), "difference")):
        shown = []
        for text in RACES:
            row = tables.row(text, cell, CAP)
            counts = percent(row, "to_exact") if row["to_exact"] else ""
            shown += [percent(row, "difference"), counts, f"{knows[text.task, cell]:.2f}"]
        name = cell.replace(HALF, "").replace("centred=True", "centred")
        lines.append(f"| {name} | {kib(tables.row(RACES[0], cell, CAP))} | {' | '.join(shown)} |")
    return "\n".join(lines)
