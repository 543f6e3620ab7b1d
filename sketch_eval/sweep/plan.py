"""`sketch-eval plan`: what a sweep will run, what each cell costs in bytes and, by a short probe, in time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows
from transformers import AutoConfig

from sketch_eval import bundled
from sketch_eval.cache import check_cell
from sketch_eval.config import CacheConfig
from sketch_eval.evaluate.model import SweepLM
from sketch_eval.evaluate.tasks import LoadedTask
from sketch_eval.evaluate.work import Worker
from sketch_eval.families import check, shape_of
from sketch_eval.grid.cells import FULL, cell_kind, cell_name, computation
from sketch_eval.grid.grid import Grid, Model
from sketch_eval.ledger import ledger
from sketch_eval.lm import SketchHF
from sketch_eval.sweep.run import seeded

PROBED = 4
"""Requests in a probe: enough for a speed, and few enough for a second or two each on a CPU."""


@dataclass
class Line:
    """One cell of the plan.

    Attributes:
        number: from 1 on, in the grid's order; the full cache is 0.
        name: the cell without its cap.
        cap: its cap; None for the full cache.
        same_as: number of the cell that is the same computation and comes first; None where none does.
        cell: the cell.
        runs: computations it adds for each task: its seeds, or 0.
        kind: `full`, `control` or `sketch`.
        bytes: the ledger, in bytes of one sequence; None where the model's config is not at hand.
        seconds: what all tasks will take; None where it was not probed.
    """

    number: int
    name: str
    cap: int | None
    same_as: int | None
    runs: int
    kind: str
    cell: CacheConfig
    bytes: dict[str, Any] | None
    seconds: float | None = None


def plan(grid: Grid) -> list[Line]:
    """The cells of a grid: nothing is loaded, and nothing asked of the network.

    Raises:
        UsageError: the model is of no known family, has fewer positions than max_length, or cannot be held to a cell.
    """
    model = _model(grid.model)
    seen: dict[CacheConfig, int] = {}
    lines = []
    for number, cell in enumerate([FULL, *grid.expand()]):
        copies = dict.fromkeys(computation(one) for one in seeded(grid, cell))
        first = min((seen[copy] for copy in copies if copy in seen), default=None)
        fresh = [copy for copy in copies if copy not in seen]
        seen |= dict.fromkeys(fresh, number)
        if model is not None:
            check_cell(model[0], cell)
        bytes_ = None if model is None else ledger(cell, *model)
        name, kind = cell_name(cell), cell_kind(cell)
        lines.append(Line(number, name, cell.max_cache_size, first, len(fresh), kind, cell, bytes_))
    return lines


def estimate(lines: list[Line], worker: Worker) -> None:
    """Probe a worker's speed, and write down the time of each line."""
    by_task = {name: passes(worker.lm, task) for name, task in worker.tasks.items()}
    lengths = [length for each in by_task.values() for length in each]
    longest = worker.tasks[max(by_task, key=lambda name: max(by_task[name]))]
    speeds: dict[Any, float] = {}
    for line in lines:
        cell = line.cell
        worker.lm.take(cell, {})
        bound = sum(length for length in lengths if not worker.lm.fits(length))
        sort = (
            cell.max_cache_size,
            cell.strategy,
            cell.visible is None,
            cell.importance,
            cell.scope,
            cell.conservative,
            cell.store,
        )
        if line.runs and bound and sort not in speeds:
            if len(speeds) < 2:  # For nothing: the first passes, full and bounded, load what all others find.
                _probe(worker, longest)
            speeds[sort] = _probe(worker, longest)
        line.seconds = line.runs * bound / speeds[sort] if line.runs and bound else 0.0


def passes(lm: SweepLM, task: LoadedTask) -> list[int]:
    """Tokens of each pass that a task's requests need; of a generated answer the most that it can have.

    Requests that differ in their last token alone share a pass, as ten one-token answers to one question do.
    """
    found, shared = [], set()
    for instance in task.task.instances:
        if instance.request_type == "loglikelihood_rolling":
            tokens = lm.tok_encode(instance.args[0])
            windows = get_rolling_token_windows(tokens, lm.prefix_token_id, lm.max_length, 1)
            found += [min(len(context) + len(target) - 1, lm.max_length) for context, target in windows]
        elif instance.request_type == "loglikelihood":
            shared.add(tuple(lm.tok_encode("".join(instance.args))[:-1]))
        else:
            new = normalize_gen_kwargs(instance.args[1], lm.max_gen_toks)["max_gen_toks"]
            found.append(min(len(lm.tok_encode(instance.args[0])) + new - 1, lm.max_length))
    return found + [min(len(tokens), lm.max_length) for tokens in shared]


def _probe(worker: Worker, task: LoadedTask) -> float:
    """Tokens a second of the worker's cell, over a few of the longest requests of a task."""
    requests: list[Instance] = sorted(task.task.instances, key=lambda one: -len(one.args[0]))[:PROBED]
    worker.lm.take(worker.lm.cell, {})
    getattr(worker.lm, requests[0].request_type)(requests)
    return worker.lm.tokens / worker.lm.pass_seconds


def _model(model: Model) -> tuple[Any, torch.dtype, int] | None:
    """A model's config, dtype and positions, without its weights; None where they are not on this machine."""
    try:
        config = AutoConfig.from_pretrained(
            bundled.resolve(model.pretrained), revision=model.revision, local_files_only=True
        )
    except (OSError, ValueError):
        return None
    check(config, SketchHF.families, model.max_length)
    return config, getattr(torch, model.dtype, torch.float32), model.max_length or shape_of(config).positions
