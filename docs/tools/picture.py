"""The front page's picture: loss against bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from board import CENTRED, FEW, FOLDING, HALF, OLDEST, RIVALS, SKETCH, Row, Tables, Text, at
from matplotlib.figure import Figure
from PIL import Image

DRAWN = {
    f"window{HALF}": ("#6b7280", "s", "window"),
    f"streaming{HALF}": ("#a16207", "s", "first 4 pairs and a window"),
    "h2o store=float16": ("#7c3aed", "v", "exact counts (H2O)"),
    f"{SKETCH}{HALF}": ("#1d4ed8", "o", "sketch"),
    f"{FOLDING}{HALF}": ("#ea580c", "o", "sketch, folding"),
    f"{OLDEST}{HALF}": ("#0d9488", "X", "first 4 and a window, folding"),
    f"streaming{FEW}": ("#be185d", "s", "first 4 and a window, few bits"),
    f"{OLDEST}{FEW}": ("#be185d", "X", "first 4 and a window, folding, few bits"),
    f"{OLDEST}{FEW} centred=True": ("#be185d", "*", "the same, keys less their mean"),
    f"clairvoyant{HALF}": ("#111827", "d", "ranking that has read the text"),
    "int8": ("#4d7c0f", "P", "all pairs in fewer bits"),
    "k8v4": ("#4d7c0f", "P", "all pairs in fewer bits"),
    "int4": ("#4d7c0f", "P", "all pairs in fewer bits"),
    "float16": ("black", "o", "all pairs"),
}
"""The picture's cells, where the tables have them: colour, marker and what they are called."""


def _lines(tables: Tables, text: Text) -> dict[tuple[str, str, str], list[Row]]:
    """The rows of each line of a text's panel, by how it looks, those of fewest bytes first."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    cells = tables.rows[CENTRED[RIVALS.index(text)]] | tables.rows[text]
    for (cell, _), row in sorted(cells.items(), key=lambda one: at(one[1], "total_bytes")):
        if cell in DRAWN:
            found.setdefault(DRAWN[cell], []).append(row)
    return dict(sorted(found.items(), key=lambda one: list(DRAWN.values()).index(one[0])))


def digest(tables: Tables) -> str:
    """SHA-256 of all that the picture shows."""
    shown = [
        (text.title, *looks, row["cap"], row["difference"], row["total_bytes"])
        for text in RIVALS
        for looks, rows in _lines(tables, text).items()
        for row in rows
    ]
    return hashlib.sha256(repr(shown).encode()).hexdigest()


def draw(tables: Tables, path: Path) -> None:
    """Loss against bytes: a panel a text, a line a way to bound over its caps."""
    figure = Figure(figsize=(10.8, 5.0), layout="constrained")
    panels = figure.subplots(1, len(RIVALS), sharey=True)
    for axes, text in zip(panels, RIVALS, strict=True):
        for (colour, marker, label), rows in _lines(tables, text).items():
            x, y = [at(row, "total_bytes") / 1024 for row in rows], [at(row, "difference") for row in rows]
            axes.plot(x, y, color=colour, marker=marker, markersize=6, linewidth=1.2, label=label)
        axes.axhline(0, color="grey", linewidth=0.8, linestyle="--")
        axes.set_xscale("log", base=2)
        axes.set_yscale("function", functions=(lambda y: np.sign(y) * np.abs(y) ** 0.5, lambda y: np.sign(y) * y**2))
        axes.set_yticks([0, 1, 2, 4, 8, 16, 24])
        ticks = [256, 512, 1024, 2048, 4096]
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        axes.set_title(text.title)
        axes.set_xlabel("KiB of one sequence's cache")
        axes.grid(color="#e5e7eb", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("loss of byte perplexity, %")
    named = {str(line.get_label()): line for axes in panels for line in axes.get_lines()}
    named = {label: line for label, line in named.items() if not label.startswith("_")}
    figure.legend(list(named.values()), list(named), frameon=False, fontsize=9, ncols=4, loc="outside lower center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Description": digest(tables), "Software": None})


def drawn(path: Path) -> str:
    """What a picture says that it was made of."""
    with Image.open(path) as picture:
        return str(picture.info.get("Description", ""))
