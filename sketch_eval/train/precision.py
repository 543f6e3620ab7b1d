"""Which floating-point type the machine multiplies fast."""

from __future__ import annotations

import torch


def fast_dtype(device: str) -> torch.dtype:
    """bfloat16 on GPUs and on processors with AVX-512, float32 elsewhere.

    Without AVX-512, torch multiplies bfloat16 matrices some twenty times slower than float32.
    """
    serves = device != "cpu" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return torch.bfloat16 if serves else torch.float32


def mixed(device: str) -> torch.autocast:
    """The context in which passes run: matrices are multiplied in `fast_dtype`, the rest stays in float32."""
    dtype = fast_dtype(device)
    return torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32)
