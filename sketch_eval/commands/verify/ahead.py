"""The kernels of a GPU that the checks launch, compiled beforehand by several processes: each takes some seconds."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context
from typing import Any

import torch

from sketch_eval import bundled
from sketch_eval.call import Call
from sketch_eval.commands.verify import executions, scores, speed
from sketch_eval.config import CacheConfig
from sketch_eval.execution import advance
from sketch_eval.families import shape_of
from sketch_eval.state import LayerState

PROCESSES = 8
"""At most: each takes some hundred MiB of the GPU's memory."""


def compile_kernels(device: str, cells: int) -> None:
    """Leave in Triton's cache on disk what `cells` random cells, the known scores and the timed passes want."""
    from transformers import AutoConfig

    ours, timed = shape_of(AutoConfig.from_pretrained(bundled.path())), shape_of(speed.config(1))
    random = [(executions.random_cell(seed), executions.random_call(seed)) for seed in range(cells)]
    parts = [(cell, call.split(executions.PREFIX)[0]) for cell, call in random]
    for shape, ways in ((ours, scores.CELLS), (timed, speed.CELLS)):
        vectors = torch.zeros(1, shape.query_heads, executions.PREFIX, shape.head_dim)
        tokens = torch.zeros(1, executions.PREFIX, dtype=torch.long)
        call = Call(vectors, vectors, vectors, tokens, tokens == 0, 1.0)
        bounded = (CacheConfig.parse(**fields) for fields in ways.values() if fields["max_cache_size"] is not None)
        parts += [(cell, call) for cell in bounded]
    workers = ProcessPoolExecutor(min(os.cpu_count() or 1, PROCESSES), get_context("spawn"))
    with suppress(BrokenProcessPool), workers as pool:
        list(pool.map(_compile, *zip(*((device, cell.model_dump(), call) for cell, call in parts), strict=True)))


def _compile(device: str, fields: dict[str, Any], call: Call) -> None:
    """What fails here fails in its check, which says so."""
    with suppress(Exception):
        there = call.to(device)
        state = LayerState(CacheConfig.parse(**fields), 0, there.k, there.q.shape[1] // there.k.shape[1])
        advance("triton", state, there)
