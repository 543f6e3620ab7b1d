"""The front page's picture: loss against bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from board import CAPS, EXACT, FOLDING, OLDEST, SKETCH, TEXTS, Tables, at
from matplotlib.figure import Figure
from PIL import Image

DRAWN = {
    "window": ("#6b7280", "s"),
    "streaming": ("#a16207", "D"),
    "h2o": ("#7c3aed", "v"),
    EXACT: ("#15803d", "^"),
    SKETCH: ("#1d4ed8", "o"),
    FOLDING: ("#ea580c", "o"),
    OLDEST: ("#0d9488", "X"),
    "int8": ("#be185d", "P"),
    "int4": ("#be185d", "p"),
    "int3": ("#be185d", "*"),
    "clairvoyant": ("#111827", "d"),
}
"""The picture's cells, where the tables have them: colour and marker."""

LABELS = {SKETCH: "sketch", FOLDING: "sketch, folding", OLDEST: "window, folding", EXACT: "exact counts"}


def digest(tables: Tables) -> str:
    """SHA-256 of all that the picture shows."""
    shown = [
        (text.title, *key, row["difference"], row["total_bytes"])
        for text in TEXTS
        for key, row in tables.rows[text].items()
        if key[0] in DRAWN
    ]
    return hashlib.sha256(repr(shown).encode()).hexdigest()


def draw(tables: Tables, path: Path) -> None:
    """Loss against bytes: a panel a text, a line a way to bound over its caps."""
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    panels = figure.subplots(1, len(TEXTS), sharey=True)
    for axes, text in zip(panels, TEXTS, strict=True):
        for cell, (colour, marker) in DRAWN.items():
            rows = [row for (name, cap), row in tables.rows[text].items() if name == cell and cap in (0, *CAPS)]
            if rows:
                x, y = [at(row, "total_bytes") / 1024 for row in rows], [at(row, "difference") for row in rows]
                label = LABELS.get(cell, cell)
                axes.plot(x, y, color=colour, marker=marker, markersize=6, linewidth=1.2, label=label)
        full = at(tables.row(text, "full", 0), "total_bytes") / 1024
        axes.plot([full], [0], "o", color="black", markersize=7, label="full cache")
        axes.axhline(0, color="grey", linewidth=0.8, linestyle="--")
        axes.set_xscale("log", base=2)
        ticks = [512, 1024, 2048, 4096, 8192]
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
    panels[-1].legend(list(named.values()), list(named), frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Description": digest(tables), "Software": None})


def drawn(path: Path) -> str:
    """What a picture says that it was made of."""
    with Image.open(path) as picture:
        return str(picture.info.get("Description", ""))
