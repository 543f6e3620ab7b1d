"""The memory ledger: bytes, counted from the tensors that a cache of the cell owns (docs/design.md §6)."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PretrainedConfig

from sketch_eval.config import CacheConfig
from sketch_eval.families import shape_of
from sketch_eval.state import LayerState
from sketch_eval.unbounded import FormatLayer


def ledger(cell: CacheConfig, config: PretrainedConfig, dtype: torch.dtype, max_length: int) -> dict[str, Any]:
    """Bytes of a cache for one sequence.

    What all sequences and requests share is not counted: the hash functions, of which the hyperplanes of `race` and of
    `item=key` are the largest (for GPT-2 at 512×4, 108 KiB a layer in float32, with
    either scope).

    Args:
        cell: the cell.
        config: the model's config.
        dtype: dtype of keys and values.
        max_length: tokens that a full cache holds, to compare with.

    Returns:
        `tokens` (C), `layers`, `layer_bytes` (by tensor, at its peak of C+1 pairs), `peak_bytes` and `steady_bytes`
        (C+1 and C pairs, all layers), of the latter `kv_bytes` (keys and values), `sketch_bytes` (the policy's own: a
        table or exact scores) and `other_bytes`, and `full_bytes` (the full cache) with `saving`, the share of it that
        is saved.
    """
    shape = shape_of(config)
    layers, full = shape.layers, shape.token_numbers * max_length * dtype.itemsize
    keys = torch.empty(1, shape.kv_heads, 0, shape.head_dim, dtype=dtype, device="meta")
    if cell.max_cache_size is None:
        every = FormatLayer(cell)
        every.update(*[keys.new_empty(1, shape.kv_heads, max_length, shape.head_dim)] * 2)
        peak = steady = {name: part.nbytes for name, part in every.tensors().items()}
        kv, memory = sum(steady.values()), 0
    else:
        group = shape.query_heads // shape.kv_heads
        state = LayerState(cell, 0, keys, group)
        held = LayerState(cell, 0, keys, group, slots=cell.max_cache_size)
        peak, steady = ({name: tensor.nbytes for name, tensor in each.tensors().items()} for each in (state, held))
        kv, memory = (
            sum(tensor.nbytes for tensor in tensors.values()) for tensors in (held.pairs(), held.policy.tensors())
        )
    total = sum(steady.values())
    return {
        "tokens": cell.max_cache_size or max_length,
        "layers": layers,
        "layer_bytes": peak,
        "peak_bytes": layers * sum(peak.values()),
        "steady_bytes": layers * total,
        "kv_bytes": layers * kv,
        "sketch_bytes": layers * memory,
        "other_bytes": layers * (total - kv - memory),
        "full_bytes": full,
        "saving": 1 - layers * total / full,
    }
