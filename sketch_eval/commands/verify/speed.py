"""How fast the bounded pass is here, beside the full cache's and beside the step in batched PyTorch operations."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import GPT2Config, GPT2Model

from sketch_eval.attention import enable
from sketch_eval.cache import SketchCache
from sketch_eval.commands.verify.check import Check
from sketch_eval.config import CacheConfig
from sketch_eval.execution import Execution

CELLS: dict[str, dict[str, Any]] = {
    "count_min, cap 64": {"max_cache_size": 64},
    "count_min, cap 256": {"max_cache_size": 256},
    "count_min scope=head, cap 64": {"max_cache_size": 64, "scope": "head"},
}
LENGTH, ROUNDS = 1024, 3
STEPS = 128
"""Tokens of the passes that are compared with stepwise ones, slow where each step is some hundred launches."""


def check(device: str, quick: bool) -> Iterator[Check]:
    """Ratios of the fastest of some rounds: random layers of GPT-2's shape up to their last hidden states."""
    layers, batch, length = (1, 1, 256) if quick else (4, 16 if torch.device(device).type == "cuda" else 2, LENGTH)
    torch.manual_seed(0)
    model = GPT2Model(config(layers)).eval().to(device)
    enable(model)
    tokens = torch.randint(0, 64, (batch, length), device=device)

    def bounded(cell: CacheConfig, some: torch.Tensor, execution: Execution = "auto") -> Callable[[], object]:
        return lambda: model(some, past_key_values=SketchCache(model.config, cell, execution=execution))

    passes: dict[str, Callable[[], object]] = {"full": lambda: model(tokens, use_cache=False)}
    cells = {name: CacheConfig.parse(**fields) for name, fields in CELLS.items()}
    passes |= {name: bounded(cell, tokens) for name, cell in cells.items()}
    first, part = next(iter(cells.values())), tokens[:, :STEPS]
    passes |= {"part": bounded(first, part), "stepwise": bounded(first, part, "stepwise")}
    taken = _fastest(passes, device)
    size = f"{batch} × {length} tokens, {layers} layers"
    text = f"{taken['full']:.3g} s, {batch * length / taken['full']:,.0f} tokens/s"
    yield Check("speed", f"full cache ({size})", "", text, "measured")
    for name in cells:
        ratio = f"{taken[name] / taken['full']:.2f} × the full cache's seconds"
        yield Check("speed", f"bounded pass: {name}", "", ratio, "measured")
    ratio = f"{taken['stepwise'] / taken['part']:.1f} × the bounded pass's seconds, over {STEPS} tokens"
    yield Check("speed", "stepwise: count_min, cap 64", "", ratio, "measured")


def config(layers: int) -> GPT2Config:
    """Layers of GPT-2's shape, with few tokens."""
    return GPT2Config(vocab_size=64, n_layer=layers, bos_token_id=0, eos_token_id=0)


@torch.no_grad()
def _fastest(passes: dict[str, Callable[[], object]], device: str) -> dict[str, float]:
    """Seconds of each pass, the best of some rounds of all of them in turn; the first round warms up."""
    taken: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(1 + ROUNDS):
        for name, run in passes.items():
            start = time.perf_counter()
            run()
            if torch.device(device).type == "cuda":
                torch.cuda.synchronize(device)
            taken[name].append(time.perf_counter() - start)
    return {name: min(times[1:]) for name, times in taken.items()}
