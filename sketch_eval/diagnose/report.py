"""A diagnosis to read: a table of every cell, and two pictures of its layers and heads."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from sketch_eval.diagnose.measures import MEASURES
from sketch_eval.sweep.store import write_file


def write(folder: Path, frame: pd.DataFrame, made: str, texts: dict[str, int]) -> Path:
    """Write the table, the numbers and the pictures; returns the page.

    Args:
        folder: where to.
        frame: task, cap, cell, layer, head and the measures.
        made: what they were made by.
        texts: how many of each task.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Diagnosis\n",
        made + "\n",
        "Means over layers, heads and texts (" + ", ".join(f"{task} {n}" for task, n in texts.items()) + "); by layer "
        "and head they are in `diagnosis.csv`. Queries are those of the bounded pass, once the cache is full.\n",
        *(f"- `{name}`: {meaning}." for name, meaning in MEASURES.items()),
        "",
    ]
    for task, rows in frame.groupby("task", sort=False):
        name = str(task)
        for kind, figure in (("lost", _lost(rows)), ("ranks", _ranks(rows))):
            figure.savefig(folder / f"{kind}_{name}.png", dpi=110)
        lines += [f"## {name}\n", f"![lost](lost_{name}.png)\n", f"![ranks](ranks_{name}.png)\n", *_table(rows), ""]
    write_file(folder / "diagnosis.csv", frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    write_file(folder / "diagnosis.md", "\n".join(lines))
    return folder / "diagnosis.md"


def _table(rows: pd.DataFrame) -> list[str]:
    """A line a cap and cell."""
    names = list(MEASURES)
    lines = ["| cap | cell | " + " | ".join(names) + " |", "| ---: | --- |" + " ---: |" * len(names)]
    means = rows.groupby(["cap", "cell"], sort=False)[names].mean()
    for (cap, cell), row in means.sort_index(level="cap", sort_remaining=False, kind="stable").iterrows():
        shown = ["" if math.isnan(row[name]) else f"{row[name]:.{0 if 'age' in name else 3}f}" for name in names]
        lines.append(f"| {cap} | {cell} | " + " | ".join(shown) + " |")
    return lines


def _lost(rows: pd.DataFrame) -> Figure:
    """Attention lost by layer and head, a panel a cap and cell, all in the same colours."""
    caps, cells = sorted(rows["cap"].unique()), list(dict.fromkeys(rows["cell"]))
    figure = Figure(figsize=(1.6 + 1.7 * len(caps), 0.9 + 1.3 * len(cells)), layout="constrained")
    panels = figure.subplots(len(cells), len(caps), squeeze=False)
    top, image = rows["lost"].max(), None
    for row, cell in enumerate(cells):
        for column, cap in enumerate(caps):
            axes, own = panels[row][column], rows[(rows["cell"] == cell) & (rows["cap"] == cap)]
            axes.set_xticks([])
            axes.set_yticks([])
            if row == 0:
                axes.set_title(f"cap {cap}", fontsize=9)
            if column == 0:
                axes.set_ylabel(cell, fontsize=7, rotation=0, ha="right", va="center")
            if own.empty:
                axes.set_axis_off()
                continue
            image = axes.imshow(
                own.pivot(index="layer", columns="head", values="lost"), vmin=0, vmax=top, aspect="auto"
            )
    figure.supxlabel("key/value heads, with the layers from the top", fontsize=8)
    figure.colorbar(image, ax=panels, label="attention on pairs no longer held", shrink=0.6)  # type: ignore[arg-type]
    return figure


def _ranks(rows: pd.DataFrame) -> Figure:
    """How well estimates rank what is to come, by layer: a panel a cap, a line a cell."""
    caps = sorted(rows["cap"].unique())
    figure = Figure(figsize=(2.2 + 2.6 * len(caps), 3.6), layout="constrained")
    panels = figure.subplots(1, len(caps), sharey=True, squeeze=False)[0]
    for axes, cap in zip(panels, caps, strict=True):
        for number, (cell, own) in enumerate(rows[rows["cap"] == cap].groupby("cell", sort=False)):
            means = own.groupby("layer")["rank_to_come"].mean()
            axes.plot(means.index, means, marker="osD^v<>Pp*"[number % 10], markersize=4, linewidth=1, label=str(cell))
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.set_title(f"cap {cap}", fontsize=9)
        axes.set_xlabel("layer")
        axes.set_xticks(range(int(rows["layer"].max()) + 1))
    panels[0].set_ylabel("rank correlation with attention to come", fontsize=8)
    panels[-1].legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
