"""lm-eval's tasks, loaded once for all cells, and what their tables can show."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager

from sketch_eval import provenance
from sketch_eval.config import nearest
from sketch_eval.errors import UsageError, on_one_line
from sketch_eval.grid.grid import Grid, Task
from sketch_eval.statistics import AGGREGATIONS

FEWSHOT_SEED = 1234  # lm-eval's own default

_PACKAGE = Path(__file__).parents[1]
_OWN = (_PACKAGE / "tasks", _PACKAGE.parent / "tasks")
"""Where this package's tasks are: in a wheel, and in a checkout."""


@dataclass(frozen=True)
class LoadedTask:
    """A task of lm-eval's with its requests built.

    Attributes:
        name: lm-eval's name.
        task: lm-eval's object.
        options: how it is run.
        metrics: aggregation (a key of `AGGREGATIONS`) of each tabled metric, the most telling first.
        code: SHA-256 of the files that the task is made of, beside lm-eval's own code.
    """

    name: str
    task: Any
    options: Task
    metrics: dict[str, str]
    code: str

    def higher_is_better(self, metric: str) -> bool:
        """Whether more of a metric is better."""
        return bool(self.task.higher_is_better().get(metric.split(",")[0], True))

    def forget_answers(self) -> None:
        """Make the requests as good as new: lm-eval appends answers to them."""
        for instance in self.task.instances:
            instance.resps, instance.filtered_resps = [], {}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of every request and document, in order."""
        entries = [(instance.request_type, instance.args, instance.doc) for instance in self.task.instances]
        return sha256(json.dumps(entries, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the task's side of a score."""
        config = self.task.config
        return {
            "task": self.name,
            "version": config.metadata.get("version") if config.metadata else None,
            "limit": self.options.limit,
            "num_fewshot": config.num_fewshot,
            "fingerprint": self.fingerprint,
            "code": self.code,
        }


def load_tasks(grid: Grid) -> dict[str, LoadedTask]:
    """The tasks of a grid, groups taken apart, with their requests.

    Raises:
        UsageError: an unknown task, one whose documents cannot be had, or one without a metric for the tables.
    """
    manager = _index(grid)
    loaded: dict[str, LoadedTask] = {}
    for name, options in grid.tasks.items():
        if name not in manager.all_tasks:
            raise UsageError(
                f"tasks: {name} is no task of lm-eval's or of sketch_eval's{nearest(name, manager.all_tasks)}; "
                "for one of your own, give the grid `include_path: FOLDER`"
            )
        try:
            found = manager.load([name])["tasks"]
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(
                f"tasks: {name} could not be loaded ({type(error).__name__}: {on_one_line(error)})"
            ) from error
        for leaf, metrics in _metrics(name, found, options).items():
            if leaf in loaded:
                raise UsageError(f"tasks: {leaf} is asked for twice, the second time in {name}; name each task once")
            code = _code(manager, leaf if leaf in manager.task_index else name)
            loaded[leaf] = LoadedTask(leaf, found[leaf], options, metrics, code)
    for entry in loaded.values():
        _build(entry)
    return loaded


def _index(grid: Grid) -> TaskManager:
    """An index that has the grid's tasks: one without lm-eval's own where they are not wanted.

    Those are some fourteen thousand, and take ten seconds to index.
    """
    metadata = grid.model.arguments() | grid.metadata
    own = [folder for folder in _OWN if folder.is_dir()][:1]
    theirs = [Path(grid.include_path)] if grid.include_path else []
    few = TaskManager(metadata=metadata, include_path=[*own, *theirs], include_defaults=False)

    def is_whole(name: Any, within: tuple[str, ...] = ()) -> bool:
        """Whether the small index has all of a task: a group, in groups of this name, may name tasks of lm-eval's."""
        if name in few.all_groups and name not in within:
            return all(is_whole(member, (*within, name)) for member in few.task_index[name].cfg["task"])
        return name in few.all_subtasks

    if all(map(is_whole, grid.tasks)):
        return few
    return TaskManager(metadata=metadata, include_path=grid.include_path)


def _metrics(name: str, found: dict[str, Any], options: Task) -> dict[str, dict[str, str]]:
    """The metrics of each task of a group that has any of those asked for; a task alone must have them all."""
    if list(found) == [name] or options.metrics is None:
        return {leaf: choose_metrics(leaf, task, options) for leaf, task in found.items()}
    chosen = {}
    for leaf, task in found.items():
        able = choose_metrics(leaf, task, options.model_copy(update={"metrics": None}))
        if kept := {metric: able[metric] for metric in options.metrics if metric in able}:
            chosen[leaf] = kept
    if not chosen:
        raise UsageError(f"tasks.{name}.metrics: no task of the group has {' or '.join(options.metrics)}")
    return chosen


def _code(manager: TaskManager, name: str) -> str:
    """SHA-256 of the files in a task's folder; of this package's tasks also of the code that makes their texts."""
    folder = Path(manager.task_index[name].yaml_path).parent
    files = [*folder.glob("*.py"), *folder.glob("*.yaml")]
    if set(_OWN).intersection(folder.parents):
        files += (_PACKAGE / "text").glob("*.py")
        return provenance.code(_PACKAGE.parent, files)
    return provenance.code(folder, files)


def choose_metrics(name: str, task: Any, options: Task) -> dict[str, str]:
    """The metrics to table, with their aggregations.

    Raises:
        UsageError: there is none, or one that was asked for is not among them.
    """
    known = {metric: getattr(function, "__name__", "") for metric, function in task.aggregation().items()}
    able = {metric: aggregation for metric, aggregation in known.items() if aggregation in AGGREGATIONS}
    if not able:
        raise UsageError(
            f"tasks: {name} has no metric for the tables: {', '.join(known) or 'none at all'}; a table can show means "
            "and perplexities"
        )
    if options.metrics is None:
        return able
    for metric in options.metrics:
        if metric not in able:
            raise UsageError(
                f"tasks.{name}.metrics: {metric} is no metric of it that a table can show{nearest(metric, able)}; "
                f"expected some of {', '.join(able)}"
            )
    return {metric: able[metric] for metric in options.metrics}


def _build(entry: LoadedTask) -> None:
    """Build the requests once, as lm-eval would for every run, and have it find them built."""
    task, shots = entry.task, entry.options.num_fewshot
    # As simple_evaluate does, where a task that says 0 means it.
    if task.config.num_fewshot == 0 and shots:
        raise UsageError(f"tasks.{entry.name}.num_fewshot={shots}: the task itself says 0; leave it out")
    if shots is not None or task.config.num_fewshot is None:
        task.set_config(key="num_fewshot", value=shots or 0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    try:
        task.build_all_requests(limit=entry.options.limit, rank=0, world_size=1)
    except Exception as error:
        raise UsageError(f"tasks: {entry.name}: no requests could be built ({on_one_line(error)})") from error
    task.build_all_requests = lambda **_: entry.forget_answers()
    for method in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        setattr(task, method, _remembered(getattr(task, method)))


def _remembered(method: Callable[..., Any]) -> Callable[..., Any]:
    """A task's method of a document, called once for each: lm-eval compiles its templates anew for every call."""
    known: dict[tuple[str, str], Any] = {}

    def remembered(doc: Any, *args: Any, **kwargs: Any) -> Any:
        key = (json.dumps(doc, sort_keys=True, default=str), repr((args, sorted(kwargs.items()))))
        if key not in known:
            known[key] = method(doc, *args, **kwargs)
        return known[key]

    return remembered
