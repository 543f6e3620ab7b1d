"""What a bounded cache costs in time: whole passes of a 124M-parameter GPT-2, side by side in one run.

    python benchmarks/speed.py [--rounds 5] [--sequences 2] [--skip-decode] [--only scope=head] [--output FILE]

Scoring with the scan, against the untouched model's full-cache pass and against token-by-token decoding with the same
bounded cache. Random weights, sequences of 1024 random tokens, float32, the CPU. Each scan is timed between two full
passes and divided by their mean, for a machine may change its speed from one minute to the next; the table has the
median of a cell's ratios, and the least and the greatest. Decoding, which takes minutes, is timed once.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.progress import track
from transformers import GPT2Config, GPT2LMHeadModel

from sketch_eval.attention import enable
from sketch_eval.cache import SketchCache
from sketch_eval.config import CacheConfig

LENGTH = 1024

WAYS: dict[str, dict[str, Any]] = {
    "count_min topk=None (default)": {},
    "count_min topk=32": {"topk": 32},
    "count_min aggregate": {"strategy": "aggregate"},
    "count_min conservative": {"conservative": True},
    "exact": {"importance": "exact"},
    "exact scope=head": {"importance": "exact", "scope": "head"},
    "count_min scope=head": {"scope": "head"},
}
CELLS = {
    f"cap {cap}, {name}": CacheConfig(max_cache_size=cap, **changes)
    for cap in (64, 256)
    for name, changes in WAYS.items()
}


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@torch.no_grad()
def score(model: GPT2LMHeadModel, tokens: torch.Tensor, cell: CacheConfig | None) -> None:
    """One pass over all the tokens, with the full cache where there is no cell."""
    model(tokens, past_key_values=None if cell is None else SketchCache(model.config, cell), use_cache=cell is not None)


@torch.no_grad()
def decode(model: GPT2LMHeadModel, tokens: torch.Tensor, cell: CacheConfig) -> None:
    """The same scores, a token at a time."""
    cache = SketchCache(model.config, cell)
    for i in track(range(tokens.shape[1]), description=f"decoding, batch {len(tokens)}"):
        model(tokens[:, i : i + 1], past_key_values=cache)


@torch.no_grad()
def cache_bytes(model: GPT2LMHeadModel, tokens: torch.Tensor, cell: CacheConfig | None) -> int:
    """Bytes of the tensors that a cache owns after a pass: the sketch cache's all, the full cache's keys and values."""
    if cell is None:
        layers = model(tokens, use_cache=True).past_key_values.layers
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
    cache = SketchCache(model.config, cell)
    model(tokens, past_key_values=cache)
    return sum(cache.nbytes().values())


def start_up() -> float:
    """Seconds that a fresh process takes until the compiled loop has run once, beyond its imports."""
    code = (
        "import time, torch; from transformers import GPT2Config, GPT2LMHeadModel; import numba;"
        "from sketch_eval.attention import enable; from sketch_eval.cache import SketchCache;"
        "from sketch_eval.config import CacheConfig;"
        "m = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1)); enable(m); t = time.time();"
        "m(torch.zeros(1, 4, dtype=int), past_key_values=SketchCache(m.config, CacheConfig())); print(time.time() - t)"
    )
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def main(
    rounds: Annotated[int, typer.Option(help="times that each scan is timed", min=1)] = 5,
    sequences: Annotated[int, typer.Option(help="sequences in a pass", min=1)] = 2,
    skip_decode: Annotated[bool, typer.Option(help="leave out the minutes of decoding")] = False,
    only: Annotated[str, typer.Option(help="only the cells that have this in their names")] = "",
    output: Annotated[Path | None, typer.Option(help="also write the table to this file")] = None,
) -> None:
    """Print the table."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval()
    tokens = torch.randint(0, model.config.vocab_size, (sequences, LENGTH))
    enable(model)  # Without a cache the model is the untouched one; tests/test_cache.py holds it to that.
    cells = {name: cell for name, cell in CELLS.items() if only in name}
    if not cells:
        raise typer.BadParameter(f"only={only!r}: no cell has this in its name; they are {', '.join(CELLS)}")
    scans: dict[str, list[float]] = {name: [] for name in cells}
    ratios: dict[str, list[float]] = {name: [] for name in cells}
    score(model, tokens[:1], None)
    score(model, tokens[:1], CacheConfig())
    full = [seconds(lambda: score(model, tokens, None))]
    for _ in range(rounds):
        for name, cell in cells.items():
            scans[name].append(seconds(lambda cell=cell: score(model, tokens, cell)))  # type: ignore[misc]
            full.append(seconds(lambda: score(model, tokens, None)))
            ratios[name].append(2 * scans[name][-1] / (full[-2] + full[-1]))
            print(f"{name}: {scans[name][-1]:.2f} s, {ratios[name][-1]:.2f} times the full cache's", flush=True)
    held = {name: cache_bytes(model, tokens[:1], cell) for name, cell in cells.items()}
    whole = cache_bytes(model, tokens[:1], None)
    rows = ["| pass | seconds | × full cache [least, greatest] | KiB a sequence | × full cache |"]
    rows += ["| --- | ---: | ---: | ---: | ---: |"]
    rows += [f"| full cache | {median(full):.2f} | 1.00 | {whole / 1024:,.0f} | 1.000 |"]
    for name, t in scans.items():
        ratio = f"{median(ratios[name]):.2f} [{min(ratios[name]):.2f}, {max(ratios[name]):.2f}]"
        memory = f"{held[name] / 1024:,.0f} | {held[name] / whole:.3f}"
        rows += [f"| scan, {name} | {median(t):.2f} | {ratio} | {memory} |"]
    if not skip_decode:
        name, cell = next(iter(cells.items()))
        scan = median(scans[name])
        together = seconds(lambda: decode(model, tokens, cell))
        alone = seconds(lambda: [decode(model, row[None], cell) for row in tokens])
        rows += ["", f"| {name} | seconds | × scan |", "| --- | ---: | ---: |", f"| scan | {scan:.2f} | 1.0 |"]
        rows += [f"| decoding, batch {sequences} | {together:.1f} | {together / scan:.1f} |"]
        rows += [f"| decoding, batch 1 | {alone:.1f} | {alone / scan:.1f} |"]
    cores = f"{torch.get_num_threads()} threads on {os.cpu_count()} cores"
    where = f"{platform.machine()}, {cores}, torch {torch.__version__}, spread of the full pass "
    where += f"{min(full):.2f} to {max(full):.2f} s over {len(full)} runs"
    what = f"{sequences} × {LENGTH} tokens, {rounds} rounds"
    rows = [f"{what}, {where}.", "", *rows, ""]
    rows += [f"First use of the compiled loop in a second process: {start_up():.2f} s."]
    print("\n".join(rows))
    if output is not None:
        output.write_text("\n".join(["# Speed", "", *rows]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
