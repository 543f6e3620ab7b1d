"""`sketch-eval sweep`: every run of a grid that is not on disk yet."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from sketch_eval.config import CacheConfig
from sketch_eval.errors import UsageError
from sketch_eval.evaluate.model import Answers
from sketch_eval.evaluate.records import About
from sketch_eval.evaluate.work import Finished, Job, Worker, identity
from sketch_eval.grid.cells import FULL, computation
from sketch_eval.grid.grid import Grid
from sketch_eval.sweep.store import Store, digest

Outcome = Finished | BaseException


class Crew(Protocol):
    """Who runs the jobs: this process, or the workers of a cluster."""

    about: About
    """As `Worker.about`."""

    def execute(self, jobs: list[Job], answers: Callable[[str], Answers]) -> Iterable[tuple[Job, Outcome]]:
        """Run jobs, in any order; `answers` gives the full cache's for a task."""


class Here:
    """A crew of one: this process."""

    def __init__(self, grid: Grid) -> None:
        self._worker = Worker(grid)
        self.about = self._worker.about

    def execute(self, jobs: list[Job], answers: Callable[[str], Answers]) -> Iterator[tuple[Job, Outcome]]:
        for job in jobs:
            try:
                known = {} if job.cell == FULL else answers(job.task)
                outcome: Outcome = self._worker.run(job, known)
            except Exception as error:
                outcome = error
            yield job, outcome


@dataclass
class Report:
    """What a sweep did: the jobs run now, those that were there, and those that failed, with the reasons."""

    ran: list[Job] = field(default_factory=list)
    kept: list[Job] = field(default_factory=list)
    failed: dict[Job, str] = field(default_factory=dict)
    pass_seconds: float = 0.0


class Watcher(Protocol):
    """Who is told how it goes."""

    def begin(self, jobs: list[Job], weights: dict[str, float]) -> None:
        """These jobs come next; weights: seconds of each task's full-cache run, where known."""

    def done(self, job: Job, seconds: float, reason: str | None) -> None:
        """A job took so long; reason: why it failed, None where it did not."""

    def scored(self, job: Job, about: About, record: Callable[[], Mapping[str, Any]]) -> None:
        """A job's run is there, from before or since now; record reads it."""


def seeded(grid: Grid, cell: CacheConfig) -> list[CacheConfig]:
    """A cell once for each of the grid's seeds."""
    return [cell.model_copy(update={"seed": seed}) for seed in grid.seeds]


def computations(grid: Grid) -> list[CacheConfig]:
    """The distinct computations of a grid, the full cache first."""
    cells = (computation(one) for cell in grid.expand() for one in seeded(grid, cell))
    return list(dict.fromkeys([FULL, *cells]))


def sweep(
    grid: Grid, folder: Path, recruit: Callable[[Grid], Crew], watcher: Watcher, wait: bool = False, command: str = ""
) -> Report:
    """Run what is missing of a grid, and keep each run as soon as it is finished.

    Args:
        grid: the sweep.
        folder: where its runs are kept.
        recruit: makes the crew; called after all that can be refused without a model has been.
        watcher: is told of each job.
        wait: whether to wait for another sweep in the folder.
        command: the command line, for the record.

    Raises:
        UsageError: the folder, a task or the model cannot be used, or the disk is full. What is finished stays.
    """
    store = Store(folder)
    named = {key: getattr(grid.model, key) for key in ("pretrained", "revision", "dtype", "tokenizer", "max_length")}
    store.check_model(named)
    store.lock(wait)
    try:
        store.check_model(named)  # Another sweep may have begun meanwhile.
        crew = recruit(grid)
        fixed = crew.about["fixed"]
        model = named | {
            "model_fingerprint": fixed["model_fingerprint"],
            "tokenizer_fingerprint": fixed["tokenizer_fingerprint"],
        }
        store.check_model(model)
        store.describe({"model": model, "grid": grid.model_dump(mode="json"), "command": command, **crew.about})
        return _run(grid, store, crew, watcher)
    finally:
        store.release()


def _run(grid: Grid, store: Store, crew: Crew, watcher: Watcher) -> Report:
    report, tasks = Report(), list(crew.about["tasks"])
    full, *bounded = computations(grid)
    weights: dict[str, float] = {}
    held: dict[str, Answers] = {}

    def key(job: Job) -> str:
        return digest(identity(crew.about, job))

    def answers(task: str) -> Answers:
        """The full cache's, from the disk, as a resumed run would read them."""
        if task not in held:
            path = store.find(key(Job(full, task)), mend=True)
            if path is None:
                raise LookupError("the full cache's run of the task failed")
            kept = json.loads((path / "answers.json").read_text())
            held[task] = {name: answer if isinstance(answer, str) else tuple(answer) for name, answer in kept.items()}
        return held[task]

    phases = [[Job(full, task) for task in tasks], [Job(cell, task) for cell in bounded for task in tasks]]
    for phase in filter(None, phases):
        todo: list[Job] = []
        for job in phase:
            path = store.find(key(job), mend=True)
            if path is None:
                todo.append(job)
            else:
                report.kept.append(job)
                watcher.scored(job, crew.about, partial(store.read, path))
                store.forgive(key(job))
        watcher.begin(todo, weights)
        for job, outcome in crew.execute(todo, answers):
            if isinstance(outcome, Finished):
                try:
                    store.write(job.name, key(job), outcome.record, outcome.write)
                except UsageError:
                    raise
                except (TypeError, ValueError) as error:  # No JSON, so nothing that another run could not be.
                    outcome = error
            if isinstance(outcome, Finished):
                report.ran.append(job)
                report.pass_seconds += outcome.record["times"]["pass_seconds"]
                watcher.done(job, outcome.record["times"]["seconds"], None)
                watcher.scored(job, crew.about, partial(_the_record, outcome))
            else:
                report.failed[job] = _reason(outcome)
                store.fail(job.name, key(job), "".join(traceback.format_exception(outcome)))
                watcher.done(job, 0.0, report.failed[job])
        if phase[0].cell == full:
            found = {job.task: store.find(key(job)) for job in phase}
            weights = {task: store.read(path)["times"]["seconds"] for task, path in found.items() if path is not None}
    return report


def _the_record(outcome: Finished) -> Mapping[str, Any]:
    return outcome.record


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
