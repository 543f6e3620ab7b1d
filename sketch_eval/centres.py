"""Taking a constant from all keys of a head, which changes no query's attention (docs/design.md §8).

Keys of a head may have a large part in common: a bias, which training leaves wherever it is, because the softmax is
blind to what all scores of a query share. Few bits are then spent on it, and the cosines of keys, by which folding
goes, hardly tell them apart. SageAttention (Zhang et al., 2025) takes the mean of a text's keys away for that reason.
A cache has to know it before the first token, so here it is the mean over another text.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import distribution
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from sketch_eval.errors import UsageError

MOST = 4096
"""Tokens that the mean is taken over, at most."""

Centres = dict[int, torch.Tensor]
"""By layer, the mean key of each key/value head: float32 `[kv_heads, 1, head_dim]`."""


@cache
def text() -> str:
    """A text that every installation has and that stays as it is: the licence, 11 KB of English.

    Raises:
        UsageError: the installation has none.
    """
    found = distribution("sketch_eval").read_text("licenses/LICENSE")
    if found is None:
        raise UsageError(
            "centred=True takes its means over the licence, which this installation lacks; install it again"
        )
    return found


def tokens_for(tokenizer: Any, most: int) -> torch.Tensor:
    """The ids of `text`, int64 `[1, tokens]`, as many as a model has positions, and not more than `MOST`."""
    given = tokenizer(text(), add_special_tokens=False, truncation=True, max_length=min(most, MOST))
    return torch.tensor([given["input_ids"]])


@torch.no_grad()
def mean_keys(model: PreTrainedModel, tokens: torch.Tensor) -> Centres:
    """The mean keys of a model over a text, as it stores them: where positions turn keys, over all of them.

    Args:
        model: the model.
        tokens: ids, int64 `[1, tokens]`: any text, or that of `tokens_for`.

    Raises:
        UsageError: there are no tokens.
    """
    if not tokens.numel():
        raise UsageError("tokens: a mean of keys needs some; give a text")
    seen = DynamicCache()
    model.base_model(tokens.to(model.device), past_key_values=seen)
    return {number: layer.keys.float().mean((0, 2))[:, None] for number, layer in enumerate(seen.layers)}


def centred(keys: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Keys `[batch, kv_heads, tokens, head_dim]` less their head's `centre`, in their own dtype."""
    return (keys.float() - centre.to(keys.device)).to(keys.dtype)


def needed(given: Centres | None, layers: int) -> Centres:
    """What was given, which a cell with `centred=True` needs, for each of a model's layers.

    Raises:
        UsageError: nothing was, or not for all layers.
    """
    if given is None or not set(range(layers)) <= set(given):
        raise UsageError(
            f"centred=True needs the mean keys of the model's {layers} layers: pass centres="
            "sketch_eval.centres.mean_keys(model, tokens), with the tokens of some text"
        )
    return given
