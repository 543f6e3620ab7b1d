"""One run: a cell on a task, through lm-eval; what is known of it, and what is kept."""

from __future__ import annotations

import copy
import json
import math
import time
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import lm_eval
import torch
from lm_eval.loggers import EvaluationTracker
from lm_eval.loggers.utils import add_env_info, add_tokenizer_info

from sketch_eval import provenance
from sketch_eval.cache import check_cell
from sketch_eval.config import CacheConfig
from sketch_eval.errors import UsageError, first_line
from sketch_eval.evaluate.model import Answers, SweepLM
from sketch_eval.evaluate.records import About, Fixed, Record, TaskAbout
from sketch_eval.evaluate.tasks import LoadedTask, load_tasks
from sketch_eval.grid.cells import cell_arguments, cell_name
from sketch_eval.grid.grid import Grid, Model
from sketch_eval.lm import SketchHF
from sketch_eval.ranking import check_weights
from sketch_eval.statistics import AGGREGATIONS


@dataclass(frozen=True)
class Job:
    """One computation: a cell, as `computation` gives it, on a task."""

    cell: CacheConfig
    task: str

    @property
    def name(self) -> str:
        """For people: the cell, its cap and the task."""
        cap = "" if self.cell.max_cache_size is None else f" cap{self.cell.max_cache_size}"
        seed = f" seed{self.cell.seed}" if self.cell.seed else ""
        return f"{cell_name(self.cell)}{cap}{seed} {self.task}"


def identity(about: About, job: Job) -> dict[str, Any]:
    """Everything that decides a job's numbers; `about` is a worker's. Its `digest` is the key of the run."""
    return {"cell": job.cell.model_dump(), "task": about["tasks"][job.task]["identity"], **about["fixed"]}


@dataclass
class Finished:
    """What a run leaves behind.

    Attributes:
        record: identity, values by document, counts, ledger and times; JSON.
        results: lm-eval's results, in its own form.
        samples: lm-eval's samples.
        answers: of the full cache, its answers by request; empty for other cells.
    """

    record: Record
    results: dict[str, Any]
    samples: list[dict[str, Any]]
    answers: Answers = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write all but the record: by lm-eval's own tracker, in its own layout.

        Raises:
            OSError: the tracker, which only warns, has not written what it should have.
        """
        if self.answers:
            (folder / "answers.json").write_text(json.dumps(self.answers), encoding="utf-8")
        tracker = EvaluationTracker(output_path=str(folder))
        tracker.general_config_tracker.log_experiment_args(
            SketchHF.alias, self.results["config"]["model_args"], "", "", False
        )
        task = self.record["identity"]["task"]["task"]
        tracker.save_results_aggregated(copy.copy(self.results), {task: self.samples})
        tracker.save_results_samples(task, self.samples)
        try:
            (results,), (samples,) = folder.rglob("results_*.json"), folder.rglob("samples_*.jsonl")
            json.loads(results.read_text(encoding="utf-8"))
            with samples.open("rb") as file:
                written = sum(1 for _ in file)
        except ValueError:
            written = -1
        if written != len(self.samples):
            raise OSError(f"{folder} could not be written to: is the disk full?")


class Worker:
    """One model with its tasks, which runs any number of jobs.

    Args:
        grid: the sweep.

    Raises:
        UsageError: torch does not find the grid's device; the model cannot be held to one of its cells, or a task not
            scored with one; or as `load_tasks` and `SketchHF`.
    """

    def __init__(self, grid: Grid) -> None:
        _check_device(grid.model.device)
        self.tasks = load_tasks(grid)
        self.model = grid.model
        _check_foresight(grid, self.tasks)
        # Now: the code is loaded, though the checkout may move on.
        self.commit, self.sources = provenance.commit(), provenance.sources()
        self.lm = SweepLM(**grid.model.arguments(), max_cache_size=None)
        cells = grid.expand()
        for cell in cells:
            check_cell(self.lm.transformer.config, cell)
        if any(cell.fitted for cell in cells):
            check_weights(self.lm.transformer)

    @cached_property
    def about(self) -> About:
        """What decides every number of this worker but the cell, and what the tables need to know of the tasks."""
        info = self.lm.get_model_info()["sketch_eval"]
        fixed: Fixed = {
            "model_fingerprint": info["model_fingerprint"],
            "tokenizer_fingerprint": info["tokenizer_fingerprint"],
            "dtype": info["dtype"],
            "max_length": info["max_length"],
            "versions": info["versions"],
            "device": self.lm.device.type,
            "batch_size": self.model.batch_size,
            "sources": self.sources,
        }
        tasks: dict[str, TaskAbout] = {
            name: {
                "identity": task.identity,
                "metrics": task.metrics,
                "higher_is_better": {metric: task.higher_is_better(metric) for metric in task.metrics},
            }
            for name, task in self.tasks.items()
        }
        return {"fixed": fixed, "tasks": tasks, "commit": self.commit}

    @cached_property
    def _environment(self) -> dict[str, Any]:
        """lm-eval's description of the machine, which takes seconds to make."""
        found: dict[str, Any] = {}
        add_env_info(found)
        add_tokenizer_info(found, self.lm)
        return found

    def run(self, job: Job, answers: Answers) -> Finished:
        """Run a job; `answers` are the full cache's for the task, where it has run.

        Raises:
            ArithmeticError: a score of the tables is not the one that lm-eval reports.
        """
        start, task = time.perf_counter(), self.tasks[job.task]
        self.lm.take(job.cell, {} if job.cell.untouched else answers)
        results = lm_eval.evaluate(
            self.lm,
            {"tasks": {job.task: task.task}, "groups": {}},
            limit=task.options.limit,
            bootstrap_iters=0,
            log_samples=True,
        )
        samples = results.pop("samples")[job.task]
        values = collect(task, samples, results["results"][job.task])
        counts = self.lm.counts.tasks[job.task]
        if not counts.requests:
            raise ArithmeticError(f"{job.task}: no request was counted, so whether any was binding is not known")
        info = self.lm.get_model_info()
        seconds = time.perf_counter() - start
        results |= copy.deepcopy(self._environment) | {
            "config": {
                "model": SketchHF.alias,
                "model_args": spell(self.model, job.cell),
                **info,
                "batch_size": self.model.batch_size,
                "device": str(self.lm.device),
                "limit": task.options.limit,
                "bootstrap_iters": 0,
            },
            "git_hash": self.commit,
            "date": time.time(),
        }
        record: Record = {
            "identity": identity(self.about, job),
            "name": job.name,
            "commit": self.commit,
            "values": values,
            "counts": asdict(counts),
            "ledger": info["sketch_eval"]["ledger"],
            "documents": len({sample["doc_id"] for sample in samples}),
            "times": {
                "seconds": seconds,
                "pass_seconds": self.lm.pass_seconds,
                "tokens": self.lm.tokens,
                "finished": time.time(),
            },
        }
        full = self.lm.answers if job.cell.untouched else {}
        return Finished(record, results, samples, full)


def _check_foresight(grid: Grid, tasks: dict[str, LoadedTask]) -> None:
    """Refuse cells that have to know a text before it begins, for tasks that generate one."""
    generating = [name for name, task in tasks.items() if task.task.OUTPUT_TYPE == "generate_until"]
    for cell in grid.expand():
        if cell.foresees and generating:
            raise UsageError(
                f"importance={cell.importance!r} has to know the text before it begins, and {generating[0]} generates "
                "one; leave out the cell, or the task"
            )


def _check_device(device: str | None) -> None:
    """Refuse a device that torch cannot use here: HFLM would take another one in silence."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"model.device={device!r}: torch cannot use it here ({first_line(error)}); leave it out or give cpu, or "
            "--gpus 0 with --on ray"
        ) from error


def collect(task: LoadedTask, samples: list[dict[str, Any]], reported: dict[str, Any]) -> dict[str, list[Any]]:
    """Values by document of every metric that a table can show, held to what lm-eval makes of them.

    A metric of a filter other than lm-eval's plain one goes by `metric,filter`.
    """
    able = {metric: getattr(function, "__name__", "") for metric, function in task.task.aggregation().items()}
    values: dict[str, list[Any]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            if able.get(metric) in AGGREGATIONS:
                label = metric if sample["filter"] == "none" else f"{metric},{sample['filter']}"
                value = sample[metric]
                values.setdefault(label, []).append(value.item() if hasattr(value, "item") else value)
    for label, entries in values.items():
        metric, _, kept = label.partition(",")
        if all(entry is None for entry in entries):
            continue
        mine, theirs = AGGREGATIONS[able[metric]](entries).value, reported[f"{metric},{kept or 'none'}"]
        if not math.isfinite(mine):
            raise ArithmeticError(f"{task.name} {label}: {mine!r}, which is no score")
        if not math.isclose(mine, theirs, rel_tol=1e-9, abs_tol=1e-12):
            raise ArithmeticError(f"{task.name} {label}: {mine!r} by document, but lm-eval says {theirs!r}")
    return values


def spell(model: Model, cell: CacheConfig) -> str:
    """The `--model_args` of a cell."""
    given = {key: value for key, value in model.arguments().items() if key not in ("batch_size", "device")}
    return ",".join(f"{key}={value}" for key, value in (given | cell_arguments(cell)).items())
