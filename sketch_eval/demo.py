"""`python -m sketch_eval.demo`: the main job on the bundled model and tasks, as one table, in minutes and offline."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from sketch_eval.config import CONTROLS

TASKS = ("recall", "stdlib_text")

CELLS: dict[str, dict[str, Any]] = {
    **{name: CONTROLS[name] for name in ("full", "window", "h2o", "exact")},
    "count_min 512×4": {"width": 512, "depth": 4},
    "count_min 512×4, aggregate": {"width": 512, "depth": 4, "strategy": "aggregate"},
    "count_min 128×2, aggregate": {"width": 128, "depth": 2, "strategy": "aggregate"},
}


HEADER = (
    "cell",
    "recall acc",
    "stdlib byte ppl",
    "Δ ppl",
    "binding",
    "KV KiB",
    "sketch KiB",
    "total KiB",
    "saving",
    "s",
)
NOTES = (
    "recall acc: share of planted facts recalled, ± its standard error; blind guessing gives 0.10.",
    "Δ ppl: perplexity over the full cache's. binding: requests for which a pair was evicted.",
    "KiB: one sequence's cache, all layers. s: seconds for all the documents.",
)


@dataclass
class Row:
    """What one cell measured.

    Attributes:
        recall: share of facts recalled, 0 to 1; blind guessing gives 0.1.
        recall_error: its standard error.
        perplexity: byte perplexity on the held-out text.
        binding: share of requests that the bound bound.
        bytes: the ledger of the cell.
        seconds: wall time of the evaluation.
    """

    recall: float
    recall_error: float
    perplexity: float
    binding: float
    bytes: dict[str, Any]
    seconds: float


def measure(lm: Any, limit: int, task_manager: Any) -> Row:
    """Run the tasks with one cell's model through lm-eval."""
    import lm_eval

    start = time.perf_counter()
    results = lm_eval.simple_evaluate(
        lm, tasks=list(TASKS), limit=limit, task_manager=task_manager, log_samples=False, bootstrap_iters=100
    )
    seconds = time.perf_counter() - start
    scores = results["results"]
    recall = scores["recall"]["acc,none"]
    counts, report = lm.counts.as_dict(), lm.get_model_info()["sketch_eval"]
    return Row(
        recall=recall,
        recall_error=scores["recall"]["acc_stderr,none"],
        perplexity=scores["stdlib_text"]["byte_perplexity,none"],
        binding=counts["binding_requests"] / counts["requests"],
        bytes=report["ledger"],
        seconds=seconds,
    )


def lines(rows: dict[str, Row]) -> list[tuple[str, ...]]:
    """The rows as the table prints them; differences are to the full cache."""
    full, printed = rows["full"], []
    for name, row in rows.items():
        kib = {key: f"{row.bytes[key + '_bytes'] / 1024:,.0f}" for key in ("kv", "sketch", "steady")}
        printed.append(
            (
                name,
                f"{row.recall:.2f} ± {row.recall_error:.2f}",
                f"{row.perplexity:.3f}",
                "" if row is full else f"{row.perplexity / full.perplexity - 1:+.1%}",
                "none = full" if row.binding == 0 else f"{row.binding:.0%}",
                *kib.values(),
                f"{row.bytes['saving']:.0%}",
                f"{row.seconds:.0f}",
            )
        )
    return printed


def markdown(title: str, printed: list[tuple[str, ...]], made_by: str) -> str:
    """The table as a page."""
    grid = [HEADER, ("---",) + ("---:",) * (len(HEADER) - 1), *printed]
    return "\n".join(
        [
            f"# {title}",
            "",
            *("| " + " | ".join(line) + " |" for line in grid),
            "",
            *(f"- {note}" for note in (*NOTES, made_by)),
            "",
        ]
    )


def main(
    limit: Annotated[int, typer.Option(min=2, help="documents of each task")] = 12,
    cap: Annotated[int, typer.Option(min=13, help="max_cache_size of the bounded cells")] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="sequences a pass")] = 8,
    output: Annotated[Path | None, typer.Option(help="also write the table to this Markdown file")] = None,
) -> None:
    """Print what the bundled model loses to each bounded cache."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")  # Before the imports, which read them.
    import transformers
    from lm_eval.tasks import TaskManager

    from sketch_eval.lm import SketchGPT2

    transformers.logging.set_verbosity_error()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    console = Console() if sys.stdout.isatty() else Console(width=150)
    example = f"pretrained=bundled,max_cache_size={cap},width=512,depth=4,strategy=aggregate"
    command = f"lm_eval --model sketch_gpt2 --model_args {example} --tasks {','.join(TASKS)} --limit {limit}"
    console.print(
        f"{len(CELLS)} cells; each is a run of lm-eval, such as\n  {command}", soft_wrap=True, highlight=False
    )
    rows: dict[str, Row] = {}
    # lm-eval's progress bars, many a cell, give way to one line.
    with console.status("loading") as status, contextlib.redirect_stderr(io.StringIO()):
        task_manager = TaskManager()
        for name, changes in CELLS.items():
            status.update(f"{len(rows) + 1} of {len(CELLS)}: {name}")
            lm = SketchGPT2(pretrained="bundled", batch_size=batch_size, **{"max_cache_size": cap, **changes})
            rows[name] = measure(lm, limit, task_manager)
    title, printed = f"Bundled GPT-2, max_cache_size={cap}, {limit} documents a task", lines(rows)
    table = Table(title=title, caption="\n".join(NOTES), caption_justify="left")
    for number, column in enumerate(HEADER):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for line in printed:
        table.add_row(*line)
    console.print(table)
    if output is not None:
        about = lm.get_model_info()["sketch_eval"]
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        made_by = f"Made by `python -m sketch_eval.demo --limit {limit} --cap {cap} --batch-size {batch_size}` with "
        made_by += f"{versions}, at commit {about['commit']}; model {about['model_fingerprint'][:16]}."
        output.write_text(markdown(title, printed, made_by), encoding="utf-8")
        console.print(f"written to {output}")


if __name__ == "__main__":
    typer.run(main)
