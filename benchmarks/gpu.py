"""What a bounded cache costs on a GPU: whole passes of a 124M-parameter GPT-2, side by side in one run.

    python benchmarks/gpu.py [--batches 8,16,32,64,128] [--rounds 5] [--only scope=head] [--output FILE]

Scoring texts of 1024 random tokens in bfloat16, every token's logits, through the Triton kernel, against the untouched
model's full-cache pass. Random weights. Passes take turns, and each ends before the next begins; of the rounds the
median counts. What the kernel itself takes of a pass, and what the small operations around it take, is read off torch's
profiler, in one more pass. `benchmarks/gpu_roofline.py` computes the same ratios without a GPU.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from torch.profiler import ProfilerActivity, profile
from transformers import GPT2Config, GPT2LMHeadModel

from sketch_eval.attention import enable
from sketch_eval.cache import SketchCache
from sketch_eval.config import CacheConfig

LENGTH, LAYERS = 1024, 12

WAYS: dict[str, dict[str, Any]] = {
    "exact": {"importance": "exact"},
    "count_min": {},
    "count_min, folding": {"strategy": "aggregate"},
}
CELLS = {
    f"scope={scope}, cap {cap}, {name}": {"max_cache_size": cap, "scope": scope, **fields}
    for scope in ("head", "layer")
    for cap in (64, 256)
    for name, fields in WAYS.items()
}


def make(layers: int = LAYERS) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=layers)).eval().to("cuda", torch.bfloat16)
    enable(model)  # Without a cache the model is the untouched one; tests/test_cache.py holds it to that.
    return model


@torch.no_grad()
def score(model: GPT2LMHeadModel, tokens: torch.Tensor, fields: dict[str, Any] | None) -> None:
    """One pass over all the tokens, with the full cache where there is no cell."""
    cache = None if fields is None else SketchCache(model.config, CacheConfig.parse(**fields), execution="triton")
    model(tokens, past_key_values=cache, use_cache=cache is not None)


def seconds(run: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def compile_one(fields: dict[str, Any]) -> None:
    """Fill Triton's cache on disk: a kernel takes some ten seconds, of one core."""
    score(make(1), torch.zeros(1, 64, dtype=torch.long, device="cuda"), fields)


def shares(run: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds a layer that a pass's kernel takes, and that all else takes on the GPU."""
    with profile(activities=[ProfilerActivity.CUDA]) as taken:
        run()
        torch.cuda.synchronize()
    events = [(event.key, event.self_device_time_total / 1000 / LAYERS) for event in taken.key_averages()]
    kernel = sum(ms for key, ms in events if key == "scan")
    return kernel, sum(ms for _, ms in events) - kernel


def main(
    batches: Annotated[str, typer.Option(help="texts at once, with commas between")] = "8,16,32,64,128",
    rounds: Annotated[int, typer.Option(help="times that each pass is timed")] = 5,
    only: Annotated[str, typer.Option(help="only the cells that have this in their names")] = "",
    output: Annotated[Path | None, typer.Option(help="also write the tables to this file")] = None,
) -> None:
    """Print the tables."""
    if not torch.cuda.is_available():
        raise typer.BadParameter("torch sees no CUDA device here; benchmarks/gpu_roofline.py computes without one")
    cells = {name: fields for name, fields in CELLS.items() if only in name}
    if not cells:
        raise typer.BadParameter(f"only={only!r}: no cell has this in its name; they are {', '.join(CELLS)}")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(len(cells), os.cpu_count() or 1), mp_context=context) as pool:
        list(pool.map(compile_one, cells.values()))
    model, sizes = make(), [int(each) for each in batches.split(",")]
    ways = {"full cache": None, **cells}
    table: dict[str, list[float]] = {name: [] for name in ways}
    spread = []
    details = ["| cell | batch | kernel, ms a layer | all else, ms a layer | peak memory, GiB |"]
    details += ["| --- | ---: | ---: | ---: | ---: |"]
    for batch in sizes:
        tokens = torch.randint(0, model.config.vocab_size, (batch, LENGTH), device="cuda")
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(1 + rounds):
            for name, fields in ways.items():
                taken[name].append(seconds(partial(score, model, tokens, fields)))
        for name, times in taken.items():
            table[name].append(median(times[1:]))
            print(f"batch {batch}, {name}: {1000 * table[name][-1]:.1f} ms", flush=True)  # Should its time be over.
        spread.append(f"{1000 * min(taken['full cache'][1:]):.1f} to {1000 * max(taken['full cache'][1:]):.1f}")
        for name, fields in ways.items():
            torch.cuda.reset_peak_memory_stats()
            kernel, rest = shares(partial(score, model, tokens, fields))
            peak = torch.cuda.max_memory_allocated() / 2**30
            details.append(f"| {name} | {batch} | {kernel:.2f} | {rest:.2f} | {peak:.2f} |")
    full = table["full cache"]
    rows = ["| pass | " + " | ".join(f"batch {batch}" for batch in sizes) + " |", "| --- |" + " ---: |" * len(sizes)]
    rows += ["| full cache, ms | " + " | ".join(f"{1000 * each:.1f}" for each in full) + " |"]
    rows += ["| its spread, ms | " + " | ".join(spread) + " |"]
    for name in cells:
        ratios = (f"{mine / whole:.2f}" for mine, whole in zip(table[name], full, strict=True))
        rows.append(f"| {name}, × full cache | " + " | ".join(ratios) + " |")
    import triton

    where = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Triton {triton.__version__}, "
    where += f"Python {platform.python_version()}. {rounds} rounds."
    text = [where, "", *rows, "", *details]
    print("\n".join(text))
    if output is not None:
        output.write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
