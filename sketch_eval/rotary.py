"""Rotary positions: how fast a model turns its keys, and turning them from one position to another.

A key of position p is stored as the model made it: channels i and i + pairs, taken as one complex number, were
multiplied by exp(i · p · speed_i) (Su et al., 2021). Every family of `families.FAMILIES` that has rotary positions lays
its channels out in this way; channels after the first 2 · pairs are not turned.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

_PARTIAL = ("gpt_neox", "phi", "phi3")
"""Families that turn a part of a key's channels where the config says so; the others do not read it."""


def speeds(config: Any, layer: int) -> torch.Tensor | None:
    """Radians that one position turns each pair of channels of a layer's keys by.

    Args:
        config: the model's config.
        layer: index of the layer.

    Returns:
        float32 `[pairs]`, empty for a layer that turns nothing in a model whose others do; None for a model without
        rotary positions.
    """
    settings = getattr(config, "rope_parameters", None)
    if not settings:
        return None
    if not (getattr(config, "no_rope_layers", None) or [True] * (layer + 1))[layer]:
        return torch.empty(0, dtype=torch.float32)
    kind, of_layer = (getattr(config, "layer_types", None) or [""] * (layer + 1))[layer], {}
    if kind in settings:  # Each kind of layer has settings of its own.
        settings, of_layer = settings[kind], {"layer_type": kind}
    if settings.get("rope_type", "default") != "default":
        return ROPE_INIT_FUNCTIONS[settings["rope_type"]](config, "cpu", **of_layer)[0].float()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    turned = int(size * settings.get("partial_rotary_factor", 1.0)) if config.model_type in _PARTIAL else size
    return 1.0 / (settings["rope_theta"] ** (torch.arange(0, turned, 2, dtype=torch.float32) / turned))


def turn(keys: torch.Tensor, by: torch.Tensor, speeds: torch.Tensor) -> torch.Tensor:
    """Keys as they would be so many positions later.

    Args:
        keys: float32 `[..., head_dim]`.
        by: positions to go on, back where negative, with the shape of keys but for the last dimension, or one that
            broadcasts to it.
        speeds: float32 `[pairs]`, as `speeds` gives them.
    """
    pairs = len(speeds)
    angles = by[..., None].float() * speeds.to(keys.device)
    cos, sin = angles.cos(), angles.sin()
    real, imaginary, rest = keys[..., :pairs], keys[..., pairs : 2 * pairs], keys[..., 2 * pairs :]
    return torch.cat([real * cos - imaginary * sin, imaginary * cos + real * sin, rest], dim=-1)
