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
        """One step on every matrix that has a gradient; those of one shape together, since a GPU is slow to begin."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in alike.items():
                gradients = torch.stack([matrix.grad for matrix in matrices if matrix.grad is not None])
                changes = orthogonal(self._averaged(matrices, gradients, group["momentum"]), self.dtype)
                scale = group["lr"] * 0.2 * math.sqrt(max(shape))
                for matrix, change in zip(matrices, changes.to(gradients.dtype), strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.add_(change, alpha=-scale)

    def _averaged(self, matrices: list[Tensor], gradients: Tensor, momentum: float) -> Tensor:
        """The gradients, [matrices, rows, columns], drawn to their running averages, as Nesterov does."""
        averages = []
        for matrix, gradient in zip(matrices, gradients, strict=True):
            held = self.state[matrix]
            if "momentum_buffer" not in held:
                held["momentum_buffer"] = torch.zeros_like(gradient)
            averages.append(held["momentum_buffer"].lerp_(gradient, 1 - momentum))
        return gradients.lerp(torch.stack(averages), momentum)


def orthogonal(matrices: Tensor, dtype: torch.dtype, steps: int = 5) -> Tensor:
    """About U Vᵀ of each matrix U S Vᵀ of [matrices, rows, columns], by Newton and Schulz's iteration in ``dtype``."""
    a, b, c = COEFFICIENTS
    x = matrices.to(dtype)
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
