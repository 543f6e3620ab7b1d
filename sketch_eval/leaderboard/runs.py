"""Rows out of finished runs: values, intervals, differences to the full cache, bytes (docs/design.md §7)."""

from __future__ import annotations

import json
import math
import shlex
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sketch_eval.config import CacheConfig
from sketch_eval.errors import UsageError
from sketch_eval.evaluate.work import Job, identity, spell
from sketch_eval.grid.cells import FULL, computation, depends_on
from sketch_eval.grid.grid import Block, Grid, Task
from sketch_eval.leaderboard.columns import (
    NONE,
    bound_share,
    byte_columns,
    cell_columns,
    needle_depth,
    other_columns,
    score_columns,
)
from sketch_eval.leaderboard.compared import Compared
from sketch_eval.leaderboard.front import Entry, undercut
from sketch_eval.leaderboard.row import Row
from sketch_eval.leaderboard.tables import NOTES
from sketch_eval.statistics import AGGREGATIONS, Score, average, unit
from sketch_eval.sweep.run import computations, seeded
from sketch_eval.sweep.store import Store, digest

MOST_NAMES = 4
"""Missing runs that are named."""

ROUNDING = 1e-3
"""Relative difference that a bounded cache's arithmetic may make to a part of a text that it does not bind."""


class Sweep:
    """The finished runs of a sweep's folder.

    Args:
        folder: the folder, as `sketch-eval sweep` left it.

    Raises:
        UsageError: it is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, Store(folder)
        try:
            self.about = self.store.description()
            self.grid = Grid(**self.about["grid"])
        except FileNotFoundError as error:
            kept = (folder / "leaderboard.json").exists()
            there = "the tables, but not the runs that they were made of" if kept else "no sweep"
            raise UsageError(f"results={str(folder)!r} holds {there}; run `sketch-eval sweep` first") from error
        except UsageError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"results={str(folder)!r}: its sweep.json cannot be read ({type(error).__name__}); give a folder "
                "that `sketch-eval sweep` wrote"
            ) from error
        self._records: dict[Job, dict[str, Any] | None] = {}
        self._compared = Compared(self.grid)

    @cached_property
    def failures(self) -> dict[str, str]:
        """Of the missing jobs, those that failed, with the reason."""
        reasons = {job.name: self.store.failure(digest(identity(self.about, job))) for job in self.missing}
        return {name: reason for name, reason in reasons.items() if reason is not None}

    @cached_property
    def missing(self) -> list[Job]:
        """Jobs of the grid that are not on disk."""
        jobs = [Job(cell, task) for cell in computations(self.grid) for task in self.about["tasks"]]
        return [job for job in jobs if self.record(job) is None]

    def missing_line(self) -> str:
        """What is missing, by cell and task as far as a line goes, and why; empty where nothing is."""
        if not self.missing:
            return ""
        names, damaged = [job.name for job in self.missing], self.store.damaged()
        some = ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if (more := len(names) - MOST_NAMES) > 0 else "")
        failed = "".join(f" {name} failed: {reason}." for name, reason in self.failures.items())
        changed = f" Changed since they were written: {', '.join(damaged)}." if damaged else ""
        return f"NOT COMPLETE: {len(names)} runs are missing ({some}); run the sweep again.{changed}{failed}"

    def record(self, job: Job) -> dict[str, Any] | None:
        """A job's record; None where it is not on disk."""
        if job not in self._records:
            path = self.store.find(digest(identity(self.about, job)))
            self._records[job] = None if path is None else self.store.read(path)
        return self._records[job]

    def rows(self) -> list[Row]:
        """Every metric of every task of every cell that is on disk, beside the full cache's.

        Cells that are one computation have a row each; all but the first say whose run they show.
        """
        first: dict[tuple[Any, ...], str] = {}
        compared: defaultdict[tuple[str, str], list[Entry]] = defaultdict(list)
        more_is_better: dict[tuple[str, str], bool] = {}
        rows = []
        for cell, task, jobs, records in self._finished():
            for row, score in self._rows(cell, task, jobs, records):
                shown = first.setdefault((*jobs, row.metric), row.row)
                rows.append(row if shown == row.row else replace(row, same_as=shown))
                if not cell.foresees:
                    more_is_better[task, row.metric] = row.higher_is_better
                    entry = Entry(row.row, tuple(jobs), row.total_bytes, score, asked=row.bound and row.documents > 1)
                    compared[task, row.metric].append(entry)
        columns: dict[str, dict[str, Any]] = {}
        waiting = {job.task for job in self.missing}
        for (task, metric), entries in compared.items():
            if task not in waiting:
                columns |= undercut(entries, more_is_better[task, metric])
        return [replace(row, **columns.get(row.row, {})) for row in rows]

    def timings(self) -> list[dict[str, Any]]:
        """Measured times by row, of the run that it shows: they differ from one run to the next, so they stand apart.

        `tokens_per_second` is of the model's passes and None where there were none (every request was the full
        cache's); `seconds` is the whole run's, `pass_seconds` that of its passes.
        """
        found = []
        for cell, task, _, records in self._finished():
            total = {key: sum(run["times"][key] for run in records) for key in ("seconds", "pass_seconds", "tokens")}
            speed = total["tokens"] / total["pass_seconds"] if total["tokens"] else None
            found += [
                {"row": self.row_name(cell, task, metric), "tokens_per_second": speed} | total
                for metric in self._metrics(task, records[0])
            ]
        return found

    def _finished(self) -> Iterator[tuple[CacheConfig, str, list[Job], list[dict[str, Any]]]]:
        """(cell, task, its computations, their records) of what is on disk, where the full cache's run is."""
        for cell in (FULL, *self.grid.expand()):
            for task in self.about["tasks"]:
                jobs = list(dict.fromkeys(Job(computation(one), task) for one in seeded(self.grid, cell)))
                records = [record for job in jobs if (record := self.record(job)) is not None]
                if len(records) == len(jobs) and self.record(Job(FULL, task)) is not None:
                    yield cell, task, jobs, records

    def _metrics(self, task: str, record: dict[str, Any]) -> dict[str, str]:
        """The metrics of a run that the grid wants tabled, `metric` or `metric,filter`, with their aggregations."""
        wanted = self.about["tasks"][task]["metrics"]
        found = {label: wanted[label.split(",")[0]] for label in record["values"] if label.split(",")[0] in wanted}
        return {label: found[label] for metric in wanted for label in found if label.split(",")[0] == metric}

    def _rows(
        self, cell: CacheConfig, task: str, jobs: list[Job], records: list[dict[str, Any]]
    ) -> Iterator[tuple[Row, Score]]:
        """The metrics of one cell, over its seeds, on one task, with the score that each row is of."""
        full = self.record(Job(FULL, task))
        assert full is not None
        requests = sum(run["counts"]["requests"] for run in records)
        binding = sum(run["counts"]["binding_requests"] for run in records) / max(requests, 1)
        for metric, aggregation in self._metrics(task, full).items():
            base = AGGREGATIONS[aggregation](full["values"][metric])
            if not base.documents:
                continue
            scores = [AGGREGATIONS[aggregation](run["values"][metric]) for run in records]
            each = [score.value for score in scores]
            bound = bound_share(metric, binding, cell)
            score = average(scores)
            if not bound > 0:
                self._check_unbound(metric, jobs, records, full, score, base)
                score = base
            others = {
                one: average([AGGREGATIONS[aggregation](run["values"][metric]) for run in runs])
                for one, runs in (self._others(cell, task) if bound > 0 else {}).items()
            }
            row = Row(
                row=self.row_name(cell, task, metric),
                **cell_columns(cell),
                seeds=" ".join(str(job.cell.seed) for job in jobs) if depends_on(cell, "seed") else "",
                task=task,
                metric=metric,
                higher_is_better=self.about["tasks"][task]["higher_is_better"][metric.split(",")[0]],
                needle_depth=needle_depth(task, metric),
                documents=base.documents,
                unit=unit(score, base),
                **score_columns(score, base),
                **other_columns(score, others),
                spread_low=min(each) if len(each) > 1 else NONE,
                spread_high=max(each) if len(each) > 1 else NONE,
                binding=bound,
                bound=bound > 0,
                same_as="",
                **byte_columns(records[0]["ledger"]),
                command=self._command(cell, task),
            )
            yield row, score

    def _others(self, cell: CacheConfig, task: str) -> dict[str, list[dict[str, Any]]]:
        """The records, one a seed, of what a cell is compared with: those that are on disk and bound something."""
        found = {}
        for which, other in self._compared.of(cell).items():
            jobs = dict.fromkeys(Job(computation(one), task) for one in seeded(self.grid, other))
            records = [record for job in jobs if (record := self.record(job)) is not None]
            if len(records) == len(jobs) and any(record["counts"]["binding_requests"] for record in records):
                found[which] = records
        return found

    def _check_unbound(
        self,
        metric: str,
        jobs: list[Job],
        records: list[dict[str, Any]],
        full: dict[str, Any],
        score: Score,
        base: Score,
    ) -> None:
        """Hold a row that bound nothing to the full cache's: it is shown by that one's number.

        Raises:
            UsageError: a run was answered by the full cache's answers and has other values, or a part of its texts that
                it does not bind has.
        """
        for job, record in zip(jobs, records, strict=True):
            reused = not record["times"]["tokens"]
            if (reused and record["values"][metric] != full["values"][metric]) or (
                record["counts"]["binding_requests"] and not math.isclose(score.value, base.value, rel_tol=ROUNDING)
            ):
                raise UsageError(
                    f"results={str(self.folder)!r}: {job.name} bound nothing in {metric}, but its values are not the "
                    "full cache's: one of the two is not what a sweep wrote; delete both runs and sweep again"
                )

    def runs(self) -> dict[str, dict[str, Any]]:
        """By row, the grid of that row alone: what `reproduce` needs."""
        found: dict[str, dict[str, Any]] = {}
        for cell, task, _, records in self._finished():
            limit, shots = self._options(task)
            alone = Grid(
                model=self.grid.model,
                tasks={task: Task(limit=limit, num_fewshot=shots)},
                cells=(Block(**cell.model_dump(exclude={"seed"})),),
                seeds=self.grid.seeds,
                metadata=self.grid.metadata,
                include_path=self.grid.include_path,
            ).model_dump(mode="json")
            found |= {self.row_name(cell, task, metric): alone for metric in self._metrics(task, records[0])}
        return found

    def description(self) -> dict[str, Any]:
        """What the sweep was, for the head of its tables."""
        fixed, commits = self.about["fixed"], set()
        tasks = {}
        for _, task, _, records in self._finished():
            commits |= {record["commit"] or "unknown" for record in records}
            fingerprint = self.about["tasks"][task]["identity"]["fingerprint"]
            primary = next(iter(self._metrics(task, records[0])), "")
            tasks[task] = {"documents": records[0]["documents"], "fingerprint": fingerprint, "primary": primary}
        model = {"pretrained": self.grid.model.pretrained, "fingerprint": fixed["model_fingerprint"]}
        model |= {"tokenizer_fingerprint": fixed["tokenizer_fingerprint"], "dtype": fixed["dtype"]}
        return {
            "name": self.folder.resolve().name,
            "description": self.grid.description,
            "command": self.about["command"],
            "model": model | {key: fixed[key] for key in ("device", "batch_size", "max_length")},
            "versions": fixed["versions"],
            "sources": fixed["sources"],
            "commit": ", ".join(sorted(commits)),
            "tasks": tasks,
            "notes": list(NOTES),
        }

    def row_name(self, cell: CacheConfig, task: str, metric: str) -> str:
        """Ten hexadecimal digits that stand for a row, whatever the versions it was made with."""
        asked = [cell.model_dump(), self.grid.seeds, self.grid.model.model_dump(mode="json"), task, metric]
        if self.grid.metadata:
            asked.append(self.grid.metadata)
        return digest([*asked, *self._options(task)])[:10]

    def _options(self, task: str) -> tuple[int | None, int | None]:
        """(limit, num_fewshot) of a task."""
        asked = self.about["tasks"][task]["identity"]
        return asked["limit"], asked["num_fewshot"]

    def _command(self, cell: CacheConfig, task: str) -> str:
        """lm-eval's command line for a cell and a task."""
        model, (limit, shots) = self.grid.model, self._options(task)
        options = {"limit": limit, "num_fewshot": shots, "device": model.device, "batch_size": model.batch_size}
        if self.grid.metadata:
            options["metadata"] = json.dumps(self.grid.metadata)
        options["include_path"] = self.grid.include_path
        given = " ".join(
            f"--{option} {shlex.quote(str(value))}" for option, value in options.items() if value is not None
        )
        return f"lm_eval run --model sketch_hf --model_args {shlex.quote(spell(model, cell))} --tasks {task} {given}"
