"""Muon in the precision that the machine multiplies fast."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic whose five turns bring every singular value near 1


class Muon(torch.optim.Optimizer):
    """Momentum whose every step is made orthogonal, for matrices (K. Jordan and others, 2024).

    torch.optim.Muon with ``adjust_lr_fn="match_rms_adamw"`` (the scale of J. Liu and others, "Muon is scalable for LLM
    training", 2025), but for the iteration's dtype, which torch fixes at bfloat16.

    Args:
        matrices: parameters of two dimensions.
        lr: rate, of the size that AdamW takes.
        weight_decay: decoupled, in units of ``lr``.
        dtype: what the iteration multiplies in.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        lr: float,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(list(matrices), {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step on every matrix that has a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                held = self.state[matrix]
                if "momentum_buffer" not in held:
                    held["momentum_buffer"] = torch.zeros_like(matrix.grad)
                average = held["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
                change = orthogonal(matrix.grad.lerp(average, group["momentum"]), self.dtype)
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(change.to(matrix.dtype), alpha=-group["lr"] * 0.2 * math.sqrt(max(matrix.shape)))


def orthogonal(matrix: Tensor, dtype: torch.dtype, steps: int = 5) -> Tensor:
    """About U Vᵀ of matrix = U S Vᵀ, [rows, columns], by Newton and Schulz's iteration in ``dtype``."""
    a, b, c = COEFFICIENTS
    x = matrix.to(dtype)
    if x.shape[0] > x.shape[1]:
        x = x.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x
