"""The tables of `sketch_eval.tables`, out of the cells' JSON files: README.md for reading, tasks.csv for the rest."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sketch_eval.statistics import Score, difference, interval

INTRODUCTION = """\
# The long-context tasks on the bundled model

Made by `{command}`, with {versions}, at commit {commit}. Model {model}…, tokenizer {tokenizer}…, {dtype}.

Cells are those of the README's control ladder; `count_min` is a sketch of 512 × 4 with strategy topk (every stored pair
is visible), `count_min, aggregate` the same with folding; `cap` is max_cache_size, the pairs a layer holds.

Each entry: score [95% interval]; its difference to the full cache in percent, or as a ratio (×) where it is large
[95% interval]; share of requests that were binding (for which a pair was evicted). An entry `= full` bound nothing: it
is the full cache. The intervals are of a bootstrap over documents (2000 resamples, seed 0), the difference's paired:
the same documents of both. Where every document scored the same, an interval has no width: it says that there are few
documents, not that the score is exact. Accuracy is of ten candidates (a blind guess scores 0.10), save for `induction`
(the first choice among all tokens) and LAMBADA. Documents longer than the model's 1024 positions (`stdlib_text`,
`wikitext`) are scored in lm-eval's disjoint windows, with an empty cache at the start of each. The documents are the
first of each task: {limits}.

`tasks.csv` holds the same, accuracy by depth, and the bytes of each cell.
"""


@dataclass
class Row:
    """One metric of one task in one cell; `difference` and its ends are in percent of the full cache's value."""

    task: str
    metric: str
    cell: str
    cap: int | None
    documents: int
    value: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float
    binding: float
    kv_bytes: int
    sketch_bytes: int
    total_bytes: int
    saving: float

    def __str__(self) -> str:
        if self.cap is not None and self.binding == 0:
            return "= full"
        text = f"{self.value:.{3 if self.value < 100 else 1}f} [{_short(self.low)}, {_short(self.high)}]"
        if self.cap is None:
            return text
        changes = (self.difference, self.difference_low, self.difference_high)
        if self.difference >= 1000:
            change, low, high = (f"×{1 + percent / 100:,.0f}" for percent in changes)
        else:
            digits = 0 if abs(self.difference) >= 10 else 1
            change, low, high = (f"{percent:+.{digits}f}" for percent in changes)
            change += "%"
        return f"{text}; {change} [{low}, {high}]; {self.binding:.0%}"


def _short(number: float) -> str:
    return f"{number:.2f}" if number < 100 else f"{number:.0f}"


def score(metric: str, values: list[Any]) -> Score:
    """The score of a metric's values by document, as lm-eval has them; None where a document does not count."""
    known = [value for value in values if value is not None]
    if metric.startswith("acc"):
        return Score.mean(known)
    # LAMBADA's perplexity is of one log-likelihood a document, without a weight.
    return Score.weighted_perplexity([tuple(value) if isinstance(value, list) else (value, 1.0) for value in known])


def rows(reports: list[dict[str, Any]]) -> Iterator[Row]:
    """Every metric of every task of every cell, beside the full cache's."""
    full = {
        (task, metric): values
        for report in reports
        if report["cap"] is None
        for task, metrics in report["values"].items()
        for metric, values in metrics.items()
    }
    for report in reports:
        ledger, counts = report["ledger"], report["counts"]["tasks"]
        memory = {name: ledger[name] for name in ("kv_bytes", "sketch_bytes", "saving")}
        for task, metrics in report["values"].items():
            binding = counts[task]["binding_requests"] / counts[task]["requests"]
            for metric, values in metrics.items():
                mine, base = score(metric, values), score(metric, full[task, metric])
                if not len(mine.totals):
                    continue
                # A bucket of positions is bound where a text that ends with it is longer than the cap, whatever the
                # task's later buckets are.
                bucket = re.search(r"_\d+_(\d+)$", metric)
                bound = binding if bucket is None or not binding else float(int(bucket[1]) >= report["cap"])
                yield Row(
                    task, metric, report["cell"], report["cap"], len(mine.totals), mine.value, *interval(mine),
                    *difference(mine, base), bound,
                    **memory, total_bytes=ledger["steady_bytes"],
                )  # fmt: skip


def write(folder: Path, paths: Iterable[Path], tables: dict[str, list[tuple[str, str]]], command: str) -> None:
    """Write README.md and tasks.csv into a folder, from the cells' files; tables: title to (task, metric) columns."""
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    found = list(rows(reports))
    with (folder / "tasks.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(asdict(found[0])), lineterminator="\n")
        writer.writeheader()
        for row in found:
            writer.writerow({name: _plain(value) for name, value in asdict(row).items()})
    page = [_introduction(reports, command)]
    by_place = {(row.task, row.metric, row.cell, row.cap): row for row in found}
    cells = sorted({(row.cap or 0, row.cell): (row.cell, row.cap) for row in found}.items())
    order = list(dict.fromkeys(row.cell for row in found))
    places = [place for _, place in sorted(cells, key=lambda entry: (entry[0][0], order.index(entry[0][1])))]
    for title, columns in tables.items():
        shown = [column for column in columns if any(row.task == column[0] for row in found)]
        if shown:
            page.append(_table(title, shown, places, by_place))
    page.append(_ledger(reports))
    (folder / "README.md").write_text("\n".join(page), encoding="utf-8")


def _table(title: str, columns: list[tuple[str, str]], places: list[tuple[str, int | None]], found: Any) -> str:
    """One table: a line for each cell and cap, a column for each task and metric."""
    names = [metric if len({task for task, _ in columns}) == 1 else f"{task} {metric}" for task, metric in columns]
    if len({metric for _, metric in columns}) == 1:
        names = [task for task, _ in columns]
    lines = [f"## {title}\n", _line(["cap", "cell", *names]), _line(["---"] * (len(names) + 2))]
    for cell, cap in places:
        entries = [found.get((*column, cell, cap)) for column in columns]
        if any(entries):
            lines.append(
                _line(["" if cap is None else str(cap), cell, *("" if e is None else str(e) for e in entries)])
            )
    return "\n".join([*lines, ""])


def _ledger(reports: list[dict[str, Any]]) -> str:
    """Bytes of one sequence's cache, all layers."""
    header = ["cap", "cell", "KV KiB", "sketch or scores KiB", "total KiB", "saving"]
    lines = ["## Memory of one sequence\n", _line(header), _line(["---"] * len(header))]
    # Cells of the generated and of the real tasks are the same.
    for place, ledger in {(report["cap"], report["cell"]): report["ledger"] for report in reports}.items():
        kib = [f"{ledger[name] / 1024:,.0f}" for name in ("kv_bytes", "sketch_bytes", "steady_bytes")]
        lines.append(_line([str(place[0] or ""), place[1], *kib, f"{ledger['saving']:.0%}"]))
    return "\n".join([*lines, ""])


def _introduction(reports: list[dict[str, Any]], command: str) -> str:
    """What the run was made of; the cells of one run differ only in the cell and the tasks."""
    inputs = reports[0]["inputs"]
    plan = {task: limit for report in reports for task, limit in report["inputs"]["plan"].items()}
    return INTRODUCTION.format(
        command=command,
        versions=", ".join(f"{name} {version}" for name, version in inputs["versions"].items()),
        commit=reports[0][
            "commit"
        ],  # the first cell's: the workers load the code once, though the checkout may move on
        model=inputs["model_fingerprint"][:12],
        tokenizer=inputs["tokenizer_fingerprint"][:12],
        dtype=inputs["dtype"],
        limits=", ".join(f"{task} {limit}" for task, limit in plan.items()),
    )


def _line(entries: list[str]) -> str:
    return "| " + " | ".join(entries) + " |"


def _plain(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
