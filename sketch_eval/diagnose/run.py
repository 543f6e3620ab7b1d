"""The diagnosis of a grid: a few texts of each of its tasks, through each of its bounded cells."""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd
import torch
from lm_eval.api.instance import Instance

from sketch_eval.attention import enable
from sketch_eval.diagnose.measures import MEASURES, measure
from sketch_eval.diagnose.report import write
from sketch_eval.diagnose.watch import watch
from sketch_eval.errors import UsageError
from sketch_eval.evaluate.work import Job, Worker
from sketch_eval.grid.cells import cell_name
from sketch_eval.grid.grid import Grid
from sketch_eval.sweep.run import Watcher


def diagnose(grid: Grid, folder: Path, texts: int, watcher: Watcher, command: str) -> Path:
    """Measure, and write `diagnosis.csv`, `diagnosis.md` and its pictures into a folder.

    Args:
        grid: the grid; its seeds but the first, and its cells without a bound, are left out.
        folder: where to.
        texts: texts of each task.
        watcher: is told of every cell and task that is done.
        command: the command line, for the page to name.

    Returns:
        The page.

    Raises:
        UsageError: no text of a task is longer than the grid's smallest cap, or as `Worker`.
    """
    cells = [cell for cell in grid.expand() if cell.max_cache_size is not None]
    if pooled := [cell for cell in cells if cell.shared_out]:
        raise UsageError(
            f"scope={pooled[0].scope!r}: heads share a store, of which no head has a diagnosis; leave the cells out"
        )
    if not cells:
        raise UsageError("cells: none has a bound, and there is nothing to diagnose; give a max_cache_size")
    worker = Worker(grid)
    model = worker.lm.transformer
    enable(model)
    least = min(cell.max_cache_size or 0 for cell in cells)
    chosen = {task: longer_texts(worker, task, least)[:texts] for task in worker.tasks}
    for task, given in chosen.items():
        if not given:
            raise UsageError(f"tasks: {task} has no text of more than {least} tokens, so that no cell is ever full")
    jobs = [Job(cell, task) for task in worker.tasks for cell in cells]
    watcher.begin(jobs, {})
    found = []
    for job in jobs:
        start = time.perf_counter()
        for tokens in chosen[job.task]:
            means = worker.lm.centres if job.cell.centred else None
            for number, layer in enumerate(watch(model, job.cell, tokens, means)):
                measures = measure(layer, job.cell)
                which = {"task": job.task, "cap": job.cell.max_cache_size, "cell": cell_name(job.cell), "layer": number}
                found += [
                    which | {"head": head} | {name: values[head] for name, values in measures.items()}
                    for head in range(len(layer.k))
                ]
        watcher.done(job, time.perf_counter() - start, None)
    keys = ["task", "cap", "cell", "layer", "head"]
    frame = pd.DataFrame(found).groupby(keys, sort=False, as_index=False)[list(MEASURES)].mean()
    counted = {task: len(given) for task, given in chosen.items()}
    fixed = worker.about["fixed"]
    made = f"Made by `{command}` at commit {worker.commit}, of model {grid.model.pretrained} (fingerprint "
    return write(folder, frame, f"{made}{fixed['model_fingerprint'][:12]}…).", counted)


def longer_texts(worker: Worker, task: str, least: int) -> list[torch.Tensor]:
    """Texts of a task that are longer than so many tokens, as the model is given them: int64 `[tokens]`.

    Of those that begin alike, such as the candidates of a question and the parts of a text, it is the longest one.
    """
    lm = worker.lm
    instances: list[Instance] = worker.tasks[task].task.instances
    found: dict[tuple[int, ...], list[int]] = {}
    for instance in instances:
        text = "".join(part for part in instance.args if isinstance(part, str))
        ids = [lm.prefix_token_id, *lm.tok_encode(text)][: lm.max_length]
        beginning = tuple(ids[:least])
        if len(ids) > max(least, len(found.get(beginning, ()))):
            found[beginning] = ids
    return [torch.tensor(ids) for ids in found.values()]
