"""Where eviction happens: an attention function that transformers calls in place of its own (docs/design.md §5).

transformers gives an attention function the queries, but neither the cache, the token ids nor the padding mask. A
forward pre-hook on the model hands these over, as a keyword that travels with the call.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, Cache, DynamicCache, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import ModelOutput

from sketch_eval.cache import SketchCache
from sketch_eval.errors import UsageError
from sketch_eval.families import family_of
from sketch_eval.foresight import Foreseen, Losses, Recorder

NAME = "sketch_eval"
_KEYWORD = "sketch_cache"

PART = 2048
"""Tokens of a text that go through a model at once."""


def sketch_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sketch_cache: SketchCache | Recorder | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention through a `SketchCache`; transformers' own where the call brought none."""
    if sketch_cache is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    assert scaling is not None
    if isinstance(sketch_cache, Recorder):
        sketch_cache.record(module.layer_idx, query, key, scaling)  # type: ignore[arg-type]
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    return sketch_cache.attend(module.layer_idx, query, key, value, scaling), None  # type: ignore[arg-type]


_bounded: ContextVar[bool] = ContextVar("bounded", default=False)
"""Whether the forward pass that is under way has a `SketchCache`, which needs no mask."""


def sketch_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """transformers' mask; none for a bounded cache, which knows its pairs' positions: it would be length by length."""
    return None if _bounded.get() else sdpa_mask(*args, **kwargs)


AttentionInterface.register(NAME, sketch_attention)
AttentionMaskInterface.register(NAME, sketch_mask)


def enable(model: PreTrainedModel) -> None:
    """Make a model able to run with a `SketchCache`; without one it computes what it always did.

    Raises:
        UsageError: the model is of no family that is known, or cannot be served exactly.
    """
    family_of(model.config)
    model.set_attn_implementation(NAME)
    if _announce not in model.base_model._forward_pre_hooks.values():
        model.base_model.register_forward_pre_hook(_announce, with_kwargs=True)


@torch.no_grad()
def foresee(model: PreTrainedModel, tokens: torch.Tensor, what: str = "attention") -> Foreseen:
    """What the model says of texts with its full cache: for a `SketchCache` whose policy has to know them before.

    Args:
        model: a model on which `enable` was called.
        tokens: ids, int64 `[batch, tokens]`, without padding.
        what: the policy's `foresees`: what each query asked, as `attention`, or the `losses` on each token.
    """
    if what == "attention":
        recorder = Recorder(model.config)
        model.base_model(tokens, past_key_values=recorder)
        return recorder.seen
    cache = DynamicCache()
    said, at = [], 1  # The likelihood of each token but the first, of one part's logits after the other.
    for part in in_parts(model, tokens, cache):
        logits, follow = part.logits.float(), tokens[:, at : at + part.logits.shape[1]]
        said.append(logits.log_softmax(-1)[:, : follow.shape[1]].gather(2, follow[..., None])[..., 0])
        at += logits.shape[1]
    losses = Losses(torch.nn.functional.pad(-torch.cat(said, 1), (1, 0)))
    return dict.fromkeys(range(len(cache.layers)), losses)


def in_parts(model: PreTrainedModel, tokens: torch.Tensor, cache: Cache, size: int = PART) -> Iterator[ModelOutput]:
    """The outputs of a model for texts of any length, a part of them after the other.

    What one part leaves in the cache is all that the next one needs, so that beside the outputs that are kept no memory
    grows with the text. They are those of one pass but for rounding. The parts are of about one size: matrix products
    of a few rows round otherwise than those of many.

    Args:
        model: a model on which `enable` was called, or its base model, which makes no logits.
        tokens: ids, int64 `[batch, tokens]`, without padding on the left.
        cache: a new cache.
        size: tokens of a part, at most.
    """
    for part in tokens.tensor_split(-(-tokens.shape[1] // size), dim=1):
        yield model(part, past_key_values=cache)


_signature = lru_cache(maxsize=64)(inspect.signature)
"""Of a class's forward, once: to make it takes as long as a layer's step."""


def _announce(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
    """Before the model's forward: tell the cache what tokens come, and send it along to the attention function."""
    call = _signature(type(module).forward).bind(module, *args, **kwargs).arguments
    cache, tokens, mask = (call.get(name) for name in ("past_key_values", "input_ids", "attention_mask"))
    _bounded.set(isinstance(cache, SketchCache))
    if not isinstance(cache, SketchCache | Recorder):
        return None
    if module.config._attn_implementation != NAME:
        raise UsageError(
            f"attn_implementation={module.config._attn_implementation!r} does not consult a sketch cache; call "
            "sketch_eval.attention.enable(model) again"
        )
    if tokens is None:
        raise UsageError("inputs_embeds: a sketch cache needs token ids; pass input_ids")
    if call.get("use_cache") is False and cache.get_seq_length() > 0:
        raise UsageError("use_cache=False: with a cache each call brings new tokens only; leave use_cache out")
    if mask is not None and (not isinstance(mask, torch.Tensor) or mask.dim() != 2):
        raise UsageError("attention_mask: a sketch cache needs the 2-D padding mask [batch, tokens]")
    if isinstance(cache, Recorder):
        return args, kwargs | {_KEYWORD: cache}
    valid = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask[:, -tokens.shape[1] :].bool()
    cache.expect(tokens, valid)
    return args, kwargs | {_KEYWORD: cache}
