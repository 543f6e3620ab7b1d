"""What the length of a text costs: time and memory of one pass, bounded and with the full cache.

    python benchmarks/length.py [--lengths 1024,4096,16384,32768] [--output benchmarks/length.md]

One text through a random Llama of the shape of `bundled-rotary` (10 query heads that share 2 key/value heads of 32
channels, 5 layers), up to its last hidden states: a scorer's logits would cost both passes the same. The full pass
keeps no cache. float32, the CPU. Each pass runs in a process of its own, whose peak of resident memory beyond what the
model and a short pass needed is shown, and is timed a second time with nothing to load; of the two rounds the faster
one counts.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import track
from transformers import LlamaConfig, LlamaModel

from sketch_eval.attention import enable, in_parts
from sketch_eval.cache import SketchCache
from sketch_eval.config import CacheConfig

CELLS: dict[str, dict[str, Any] | None] = {
    "full cache": None,
    "window, cap 256": {"max_cache_size": 256, "importance": "recency", "sinks": 0},
    "count_min, cap 256 (default)": {"max_cache_size": 256},
    "exact scope=head, cap 256": {"max_cache_size": 256, "importance": "exact", "scope": "head"},
    "count_min, cap 1024": {"max_cache_size": 1024},
}


@torch.no_grad()
def one_pass(name: str, length: int) -> dict[str, float]:
    """Seconds, and MiB of resident memory at the peak beyond a pass of 64 tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=320, intermediate_size=896, num_hidden_layers=5, num_attention_heads=10,
        num_key_value_heads=2, max_position_embeddings=length, attn_implementation="sdpa",
    )  # fmt: skip
    model = LlamaModel(config).eval()
    enable(model)
    fields = CELLS[name]

    def run(tokens: torch.Tensor) -> float:
        cache = None if fields is None else SketchCache(config, CacheConfig(**fields))
        start = time.perf_counter()
        if cache is None:
            model(tokens, use_cache=False)
        else:
            for _ in in_parts(model, tokens, cache):
                pass
        return time.perf_counter() - start

    text = torch.randint(0, config.vocab_size, (1, length))
    run(text[:, :64])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = run(text)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": min(seconds, run(text)), "mib": (peak - before) / 1024}


def apart(name: str, length: int) -> dict[str, float]:
    """The same in a process of its own."""
    code = f"import json, length; print(json.dumps(length.one_pass({name!r}, {length})))"
    place = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=place)
    return dict(json.loads(done.stdout))


def main(
    lengths: Annotated[str, typer.Option(help="tokens of the texts, with commas between them")] = (
        "1024,4096,16384,32768"
    ),
    output: Annotated[Path | None, typer.Option(help="also write the tables to this file")] = None,
) -> None:
    """Print the tables."""
    sizes = [int(length) for length in lengths.split(",")]
    pairs = [(name, length) for length in sizes for name in CELLS]
    found = {pair: apart(*pair) for pair in track(pairs, description="passes")}
    lines = [f"One text, {platform.machine()}, {torch.get_num_threads()} threads on {os.cpu_count()} cores, torch "]
    lines[0] += (
        f"{torch.__version__}. A bounded cell's seconds are followed by how many times the full cache's they are."
    )
    head = " | ".join(f"{size:,} tokens" for size in sizes)
    for name in list(CELLS)[1:]:
        won = [size for size in sizes if found[name, size]["seconds"] < found["full cache", size]["seconds"]]
        lines.append(f"Faster than the full cache at {', '.join(f'{size:,}' for size in won) or 'none'}: {name}.  ")
    lines.append("")
    for what in ("seconds", "MiB at the peak"):
        lines += ["", f"| {what} | {head} |", "| --- |" + " ---: |" * len(sizes)]
        for name in CELLS:
            cells = []
            for size in sizes:
                one, full = found[name, size], found["full cache", size]
                if what == "seconds":
                    ratio = "" if name == "full cache" else f" ({one['seconds'] / full['seconds']:.2f} ×)"
                    cells.append(f"{one['seconds']:.2f}{ratio}")
                else:
                    cells.append(f"{one['mib']:,.0f}")
            lines.append(f"| {name} | {' | '.join(cells)} |")
    print("\n".join(lines))
    if output is not None:
        output.write_text("\n".join(["# The length of a text", "", *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
