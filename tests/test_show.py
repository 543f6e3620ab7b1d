"""What the terminal shows: a table of chosen tasks and cells, and a sweep while it runs."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

from sketch_eval.commands import cli
from sketch_eval.commands.show import show
from sketch_eval.commands.terminal import Bar
from sketch_eval.config import CacheConfig
from sketch_eval.errors import UsageError
from sketch_eval.evaluate.work import Job
from sketch_eval.grid.cells import FULL

RESULTS = Path(__file__).parents[1] / "results"


def texts(table: Table) -> dict[str, list[str]]:
    """A table's columns by the first line of their titles."""
    return {str(column.header).split("\n")[0]: [str(cell) for cell in column.cells] for column in table.columns}


def test_the_texts_are_shown_at_a_middle_cap_best_first() -> None:
    shown = texts(show(RESULTS / "tasks"))
    assert list(shown)[:3] == ["cell", "KiB", "stdlib_text"]
    assert shown["cell"][:3] == ["full", "count_min 512×4 aggregate", "exact aggregate"]
    assert shown["KiB"][0] == "8,192"
    assert shown["stdlib_text"][:2] == ["2.270", "+4.1% [+3.3, +5.3]"]
    assert "cap" not in shown


def test_the_cap_shown_first_is_one_at_which_rankings_stand_too() -> None:
    shown = texts(show(RESULTS / "rivals"))
    assert {"h2o store=float16", "snapkv store=float16", "window aggregate scope=head store=float16"} <= set(
        shown["cell"]
    )


def test_tasks_cells_caps_and_the_order_can_be_chosen() -> None:
    table = show(RESULTS / "tasks", ["recall", "kv_*"], cells=["streaming"], caps=["64", "256"], sort="bytes")
    shown = texts(table)
    assert list(shown) == ["cell", "cap", "KiB", "recall", "kv_256", "kv_512", "kv_1024"]
    assert set(shown["cell"]) == {"full", "streaming", "streaming aggregate"}
    sizes = [float(size.replace(",", "")) for size in shown["KiB"][1:]]
    assert sizes == sorted(sizes)
    assert not any("[" in entry for entry in shown["recall"])  # The mean over a group has no interval, and it is said.
    assert "A mean over tasks has no interval" in str(table.caption)
    assert "A mean" not in str(show(RESULTS / "tasks", ["kv_256"]).caption)
    assert "acc ↑" in str(table.columns[3].header)
    top = show(RESULTS / "tasks", caps=["all"], top=3)
    assert len(top.rows) == 4
    assert "29 more with --top 0" in str(top.caption)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere"], "holds no leaderboard.json"),
        ([str(RESULTS / "README.md")], "is a file; give the folder of a leaderboard"),
        ([str(RESULTS / "demo"), "--task", "recal"], "task='recal': give one of stdlib_text, recall, .*did you mean"),
        ([str(RESULTS / "demo"), "--metric", "accuracy"], "metric='accuracy': give one of byte_perplexity, acc"),
        ([str(RESULTS / "demo"), "--cap", "65"], "cap='65': give one of 128, 256, 288, 576, or all"),
        ([str(RESULTS / "demo"), "--cell", "rage"], "cell=rage: no cell at these caps has such a name"),
        ([str(RESULTS / "demo"), "--sort", "speed"], "sort='speed': give one of stdlib_text, cell, cap, bytes"),
    ],
)
def test_what_cannot_be_shown_is_one_line(arguments: list[str], message: str) -> None:
    run = CliRunner().invoke(cli.app, ["show", *arguments])
    assert isinstance(run.exception, UsageError), run.output
    assert re.search(message, str(run.exception))


def swept(console: Console) -> str:
    """What a console has shown of a full cache and three cells, as it stood before the sweep's end."""
    about: Any = {
        "tasks": {
            "kv": {"metrics": {"acc": "mean"}, "higher_is_better": {"acc": True}},
            "text": {"metrics": {"word_perplexity": "mean"}, "higher_is_better": {"word_perplexity": False}},
        }
    }
    names = ("window", 4.0), ("streaming", 3.0), ("random", 5.0)
    cells: dict[str, dict[str, Any]] = {
        "window": {"importance": "recency", "sinks": 0},
        "streaming": {"importance": "recency"},
        "random": {"importance": "random"},
    }
    jobs = [Job(FULL, "text"), *(Job(CacheConfig.parse(max_cache_size=64, **cells[name]), "text") for name, _ in names)]
    bar = Bar(console)
    with bar:
        bar.begin(jobs[:1], {})  # A sweep begins with the full cache's runs, and counts on.
        for job, value in zip(jobs, (2.0, *(value for _, value in names)), strict=True):
            run = {"values": {"word_perplexity": [value]}, "counts": {"binding_requests": 1}}
            if job is jobs[1]:
                bar.begin(jobs[1:], {"text": 2.0})
            bar.done(job, 1.0, None)
            bar.scored(job, about, lambda run=run: run)  # type: ignore[misc]
        bar.scored(Job(FULL, "kv"), about, lambda: pytest.fail("a run that is not shown was read"))
        if console.is_terminal:
            console.print(bar)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_sweep_in_a_terminal_is_one_bar_with_the_best_rows_so_far() -> None:
    text = swept(Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None))
    assert "the best so far" in text
    assert "word_perplexity" in text
    assert re.search(r"64 │ streaming +│ +\+50\.0%", text)
    assert re.search(r"64 │ window +│ +\+100\.0%", text)
    assert "random" not in text.split("the best so far")[-1].split("4/4")[0]
    assert "4/4" in text
    assert "1/4 full text" not in text


def test_a_sweep_without_a_terminal_is_a_line_a_run() -> None:
    lines = swept(Console(file=io.StringIO(), width=100)).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "1/1 full text", "2/4 window cap64 text", "3/4 streaming cap64 text", "4/4 random cap64 text"
    ]  # fmt: skip
