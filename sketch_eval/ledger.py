"""The memory ledger: bytes, counted from the tensors that a cache of the cell owns (DESIGN §6)."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PretrainedConfig

from sketch_eval.config import CacheConfig
from sketch_eval.state import LayerState


def ledger(cell: CacheConfig, config: PretrainedConfig, dtype: torch.dtype, max_length: int) -> dict[str, Any]:
    """Bytes of a cache for one sequence.

    What all sequences and requests share is not counted: the hash functions, of which the hyperplanes of `race` and of
    `item=key` are the largest (for GPT-2 at 512×4, 108 KiB a layer in float32).

    Args:
        cell: the cell.
        config: the model's config.
        dtype: dtype of keys and values.
        max_length: tokens that a full cache holds, to compare with.

    Returns:
        `tokens` (C), `layers`, `layer_bytes` (by tensor, at its peak of C+1 pairs), `peak_bytes` and `steady_bytes`
        (C+1 and C pairs, all layers), of the latter `kv_bytes` (keys and values), `sketch_bytes` (table or exact
        scores) and `other_bytes`, and `full_bytes` (the full cache) with `saving`, the share of it that is saved.
    """
    head_dim = config.hidden_size // config.num_attention_heads
    layers = config.num_hidden_layers
    full = 2 * layers * max_length * config.hidden_size * dtype.itemsize
    if cell.max_cache_size is None:
        layer = {"keys": full // layers // 2, "values": full // layers // 2}
        steady = layer
    else:
        keys = torch.empty(1, config.num_attention_heads, 0, head_dim, dtype=dtype, device="meta")
        tensors = LayerState(cell, 0, keys).tensors()
        layer = {name: tensor.nbytes for name, tensor in tensors.items()}
        slots = cell.max_cache_size + 1
        unslotted = ("seen", "sketch")
        steady = {name: b if name in unslotted else b // slots * cell.max_cache_size for name, b in layer.items()}
    kv = steady["keys"] + steady["values"]
    memory = steady.get("sketch", 0) + steady.get("scores", 0)
    total = sum(steady.values())
    return {
        "tokens": cell.max_cache_size or max_length,
        "layers": layers,
        "layer_bytes": layer,
        "peak_bytes": layers * sum(layer.values()),
        "steady_bytes": layers * total,
        "kv_bytes": layers * kv,
        "sketch_bytes": layers * memory,
        "other_bytes": layers * (total - kv - memory),
        "full_bytes": full,
        "saving": 1 - layers * total / full,
    }
