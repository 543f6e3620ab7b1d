"""`python -m sketch_eval.tables`: the long-context tasks on the bundled model, each against the control ladder.

Every cell is a run of lm-eval, kept as one JSON file as soon as it is finished; a second run does what is missing, or
what was made from other inputs, and writes the tables again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from sketch_eval.config import CONTROLS
from sketch_eval.report import write

CELLS: dict[str, dict[str, Any]] = {
    **{name: CONTROLS[name] for name in ("full", "window", "streaming", "tova", "h2o", "exact")},
    "count_min": {"width": 512, "depth": 4},
    "count_min, aggregate": {"width": 512, "depth": 4, "strategy": "aggregate"},
}
CAPS = (64, 128, 256)

LENGTHS, DISTANCES, DEPTHS = (256, 512, 1024), (64, 128, 256, 512), (0, 25, 50, 75)
BUCKETS = ("0_63", "64_127", "128_255", "256_511", "512_1023")
PLAN: dict[str, int] = {
    **{f"passkey_{length}": 10 if length == max(LENGTHS) else 5 for length in LENGTHS},  # ten passes a document
    **{f"{kind}_{length}": 20 for kind in ("kv", "needles") for length in LENGTHS},
    **{f"recall_depth_{depth}": 5 for depth in DEPTHS},
    **{f"induction_{distance}": 20 for distance in DISTANCES},
    "long_text": 16,
    "stdlib_text": 8,
    "drift": 10,
    "repeat": 10,
}
"""Documents of each task: all cells together take two cores about a quarter of an hour."""
REAL_PLAN = {"wikitext": 62, "lambada_openai": 300}
REAL_CELLS = ("full", "window", "count_min", "count_min, aggregate")
"""WikiText-2's whole test set takes a cell longer than all the generated tasks together, hence fewer cells."""

Column = tuple[str, str]  # task, metric
TABLES: dict[str, list[Column]] = {
    **{f"{kind}: accuracy": [(f"{kind}_{n}", "acc") for n in LENGTHS] for kind in ("passkey", "kv", "needles")},
    "recall: accuracy": [(f"recall_depth_{depth}", "acc") for depth in DEPTHS],
    "induction: accuracy": [(f"induction_{distance}", "acc") for distance in DISTANCES],
    "induction: token perplexity": [(f"induction_{distance}", "token_perplexity") for distance in DISTANCES],
    "long_text: token perplexity by position": [("long_text", f"token_perplexity_{bucket}") for bucket in BUCKETS],
    "Rolling byte perplexity": [(task, "byte_perplexity") for task in ("stdlib_text", "drift", "repeat")],
    "WikiText-2 test and LAMBADA": [
        ("wikitext", "word_perplexity"), ("lambada_openai", "acc"), ("lambada_openai", "perplexity")
    ],
}  # fmt: skip


class Job(NamedTuple):
    """One run of lm-eval: a cell, its cap, and the documents of each task."""

    suite: str
    cell: str
    cap: int | None
    plan: dict[str, int]
    batch_size: int
    folder: str
    sources: str

    @property
    def path(self) -> Path:
        """Where its result is kept."""
        name = f"{self.suite} {self.cell} {self.cap or ''}".replace(",", "").strip().replace(" ", "-")
        return Path(self.folder) / "cells" / f"{name}.json"


def jobs(plan: dict[str, int], real: bool, folder: str, batch_size: int) -> list[Job]:
    """All runs: the full cache first, then cap by cap; the generated tasks before the real ones."""
    digest = sources()
    suites = {"generated": (plan, tuple(CELLS))} | ({"real": (REAL_PLAN, REAL_CELLS)} if real else {})
    return [
        Job(suite, cell, cap, documents, batch_size, folder, digest)
        for suite, (documents, cells) in suites.items()
        for cap in (None, *CAPS)
        for cell in cells
        if (cell == "full") == (cap is None)
    ]


def run(job: Job) -> str:
    """Run a job unless its result is there, and was made from the same inputs; returns what was done, in a line."""
    import lm_eval
    import torch
    import transformers

    from sketch_eval.lm import SketchGPT2

    transformers.logging.set_verbosity_error()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    lm = SketchGPT2(pretrained="bundled", batch_size=job.batch_size, **{"max_cache_size": job.cap, **CELLS[job.cell]})
    about = lm.get_model_info()["sketch_eval"]
    inputs = {name: about[name] for name in ("cell", "model_fingerprint", "tokenizer_fingerprint", "dtype", "versions")}
    inputs |= {"plan": job.plan, "sources": job.sources}
    if job.path.exists() and json.loads(job.path.read_text())["inputs"] == inputs:
        return f"{job.path.name}: unchanged"
    start = time.perf_counter()
    values, metrics = {}, wanted()
    for limit, tasks in groupby(sorted(job.plan, key=job.plan.__getitem__), key=job.plan.__getitem__):
        results = lm_eval.simple_evaluate(
            lm, tasks=list(tasks), limit=limit, task_manager=_manager(), bootstrap_iters=0, log_samples=True
        )
        for task, samples in results["samples"].items():
            values[task] = {name: [sample[name] for sample in samples] for name in metrics[task] if name in samples[0]}
    report = {
        "cell": job.cell,
        "cap": job.cap,
        "inputs": inputs,
        "commit": about["commit"],
        "ledger": about["ledger"],
        "counts": lm.counts.as_dict(),
        "seconds": round(time.perf_counter() - start, 1),
        "threads": torch.get_num_threads(),
        "values": values,
    }
    job.path.parent.mkdir(parents=True, exist_ok=True)
    scratch = job.path.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps(report), encoding="utf-8")
    scratch.replace(job.path)
    return f"{job.path.name}: {report['seconds']} s"


@lru_cache(maxsize=1)
def _manager() -> Any:
    """lm-eval's index of all tasks, which takes seconds to make."""
    from lm_eval.tasks import TaskManager

    return TaskManager(metadata={"pretrained": "bundled"})


def wanted() -> dict[str, list[str]]:
    """The metrics of each task that are kept: those of the tables, and accuracy by depth."""
    depths = [f"acc_depth_{depth}" for depth in (*DEPTHS, 100)]
    kept: dict[str, list[str]] = {}
    for columns in TABLES.values():
        for task, metric in columns:
            kept.setdefault(task, list(depths)).append(metric)
    return kept


def sources() -> str:
    """SHA-256 of the code and task files that a score depends on."""
    package = Path(__file__).parent
    tasks = package / "tasks" if (package / "tasks").is_dir() else package.parent / "tasks"
    without = {"demo.py", "tables.py", "report.py", "statistics.py"}
    files = [path for path in package.rglob("*.py") if path.name not in without and path.parent.name != "train"]
    digest = hashlib.sha256()
    for path in sorted([*files, *tasks.rglob("*.yaml"), *tasks.rglob("*.py")]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _start(threads: int) -> None:
    """Set a worker up; a worker's progress bars say nothing that its result does not."""
    import torch

    torch.set_num_threads(threads)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for the life of the worker


def main(
    output: Annotated[Path, typer.Option(help="folder of the tables and the cells")] = Path("results/tasks"),
    tasks: Annotated[str, typer.Option(help="comma-separated; default: all")] = ",".join(PLAN),
    limit: Annotated[int | None, typer.Option(min=1, help="documents of each task; default: the plan's")] = None,
    real: Annotated[bool, typer.Option(help="also WikiText-2 and LAMBADA, which need the hub or its cache")] = False,
    workers: Annotated[int, typer.Option(min=1, help="cells at a time")] = 2,
    batch_size: Annotated[int, typer.Option(min=1, help="sequences a pass")] = 8,
    tables_only: Annotated[
        bool, typer.Option("--tables-only", help="run nothing; tabulate the cells there are")
    ] = False,
) -> None:
    """Run the cells that are missing, then write README.md and tasks.csv."""
    asked = [task.strip() for task in tasks.split(",")]
    if unknown := [task for task in asked if task not in PLAN]:
        raise typer.BadParameter(f"{','.join(unknown)}: expected some of {', '.join(PLAN)}", param_hint="tasks")
    plan = {task: limit or PLAN[task] for task in asked}
    todo = jobs(plan, real, str(output), batch_size)
    if not tables_only:
        _run_all(todo, workers)
    done = [job.path for job in todo if job.path.exists()]
    if not done or todo[0].path not in done:
        raise typer.BadParameter(f"{todo[0].path} is not there: run without it first", param_hint="tables-only")
    arguments = [argument for argument in sys.argv[1:] if argument != "--tables-only"]
    write(output, done, TABLES, " ".join(["python -m sketch_eval.tables", *arguments]))


def _run_all(todo: list[Job], workers: int) -> None:
    """Run the jobs, some at a time, and say so as each is finished."""
    threads = max((os.cpu_count() or 1) // workers, 1)
    os.environ["NUMBA_NUM_THREADS"] = str(threads)
    start = time.perf_counter()
    with ProcessPoolExecutor(workers, get_context("spawn"), _start, (threads,)) as pool:
        for number, done in enumerate(as_completed([pool.submit(run, job) for job in todo]), start=1):
            print(f"{time.perf_counter() - start:6.0f} s  {number} of {len(todo)}  {done.result()}", flush=True)


if __name__ == "__main__":
    typer.run(main)
