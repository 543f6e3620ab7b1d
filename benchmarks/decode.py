"""What a generated token costs: `generate` with a bounded cache, beside untouched `generate`, in one process.

    python benchmarks/decode.py [--layers 12] [--new 1000] [--batches 1,8] [--device cpu] [--output FILE]

A random GPT-2 whose layers are those of the 124M-parameter one, with a head in proportion to how many there are;
greedy, after 16 tokens, float32, on the CPU with one thread. Milliseconds of the processor a token, which other work
on the machine changes least, over each quarter of the new tokens: the untouched cache grows, and the bounded one does
not. Ratios are untouched ÷ bounded, so that above 1 the bounded one is ahead.

With `--device cuda` it is in bfloat16, and milliseconds of the clock. There the untouched model is timed with and
without cuDNN's attention, which torch may choose, and which makes a plan anew for each length of the cache: the ratios
are of the faster one.
"""

from __future__ import annotations

import platform
import time
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import GPT2Config, GPT2LMHeadModel, LogitsProcessor, LogitsProcessorList

from sketch_eval.attention import enable
from sketch_eval.cache import SketchCache
from sketch_eval.config import CacheConfig

CELLS: dict[str, dict[str, Any]] = {
    f"cap {cap}, scope={scope}": {"max_cache_size": cap, "scope": scope}
    for cap in (64, 256)
    for scope in ("layer", "head")
}
PARTS = 4


class Clock(LogitsProcessor):
    """When each token's logits were there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if scores.device.type == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter() if scores.device.type == "cuda" else time.process_time())
        return scores


def generate(model: GPT2LMHeadModel, batch: int, new: int, cell: CacheConfig | None) -> list[float]:
    """Milliseconds a token in each part of an answer."""
    clock = Clock()
    prompt = torch.randint(1, model.config.vocab_size, (batch, 16), generator=torch.Generator().manual_seed(0))
    model.generate(
        prompt.to(model.device),
        past_key_values=None if cell is None else SketchCache(model.config, cell),
        logits_processor=LogitsProcessorList([clock]),
        min_new_tokens=new, max_new_tokens=new, do_sample=False, pad_token_id=0,
    )  # fmt: skip
    ends = [round(part * (new - 1) / PARTS) for part in range(PARTS + 1)]
    return [1000 * (clock.times[end] - clock.times[start]) / (end - start) for start, end in pairwise(ends)]


def main(
    layers: Annotated[int, typer.Option(help="layers of the model")] = 12,
    new: Annotated[int, typer.Option(help="tokens to generate")] = 1000,
    batches: Annotated[str, typer.Option(help="sequences at once, with commas between")] = "1,8",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    output: Annotated[Path | None, typer.Option(help="also write the table to this file")] = None,
) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = GPT2Config(n_layer=layers, vocab_size=max(50257 * layers // 12, 64), bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).eval().to(device, torch.bfloat16 if device == "cuda" else torch.float32)
    enable(model)
    heads = [f"{round(part * new / PARTS)} to {round((part + 1) * new / PARTS)}" for part in range(PARTS)]
    rows = [
        f"| batch | cache | {' | '.join(f'{head}, ms' for head in heads)} | untouched ÷ bounded, all | last quarter |"
    ]
    rows += ["| ---: | --- |" + " ---: |" * (PARTS + 2)]
    print("\n".join(rows), flush=True)
    for cell in CELLS.values():
        generate(model, 1, 20, CacheConfig(**cell))  # What is compiled, is compiled here.
    for batch in map(int, batches.split(",")):
        untouched = {"untouched": generate(model, batch, new, None)}
        if device == "cuda":
            torch.backends.cuda.enable_cudnn_sdp(False)
            untouched["untouched, without cuDNN's attention"] = generate(model, batch, new, None)
            torch.backends.cuda.enable_cudnn_sdp(True)
        full = min(untouched.values(), key=sum)
        for name, fields in {**dict.fromkeys(untouched), **CELLS}.items():
            taken = untouched[name] if fields is None else generate(model, batch, new, CacheConfig(**fields))
            ratios = [sum(full) / sum(taken), full[-1] / taken[-1]]
            numbers = [f"{ms:.2f}" for ms in taken] + [f"{ratio:.2f}" for ratio in ratios]
            rows.append(f"| {batch} | {name} | {' | '.join(numbers)} |")
            print(rows[-1], flush=True)
    where = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    text = [f"{layers} layers, {new} new tokens, {where}, torch {torch.__version__}.", "", *rows]
    if output is not None:
        output.write_text("\n".join(["# Decoding", "", *text]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
