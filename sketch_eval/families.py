"""What a family of models is, in one place: the shape of its cache, and which of its models cannot be served exactly.

A new family is an entry of `FAMILIES`; the tests make a random model of each. A model's fingerprint covers its whole
config but for what is known to be cosmetic (`provenance.COSMETIC`), so that whatever decides a family's attention, such
as the settings of rotary positions, is in it without being named here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from sketch_eval.errors import UsageError


@dataclass(frozen=True)
class Shape:
    """What decides the size of a cache.

    Attributes:
        layers: how many keep keys and values.
        query_heads: of a layer.
        kv_heads: key/value heads of a layer, each shared by `query_heads / kv_heads` queries.
        head_dim: numbers in a key, and in a value.
        positions: tokens that a text may have.
        window: tokens that a text may have before a layer of sliding attention leaves some of them out; None where all
            layers attend to the whole text.
    """

    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    positions: int
    window: int | None = None

    @property
    def token_numbers(self) -> int:
        """Numbers that a full cache keeps of a token."""
        return 2 * self.layers * self.kv_heads * self.head_dim


def common_shape(config: Any) -> Shape:
    """The shape of a config that has transformers' common names; `layer_types` says which of its layers slide."""
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    return _shape(config, getattr(config, "sliding_window", None) if slides else None)


def sliding_shape(config: Any) -> Shape:
    """The same for families all of whose layers slide wherever the config has a window, whatever else it says."""
    return _shape(config, config.sliding_window)


def _shape(config: Any, window: int | None) -> Shape:
    heads, positions = config.num_attention_heads, config.max_position_embeddings
    return Shape(
        layers=config.num_hidden_layers,
        query_heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        positions=positions,
        window=window if window is not None and window < positions else None,
    )


def common_flaw(config: Any) -> str:
    """Why no bounded cache is exact for a model of any family; empty where one can be."""
    if getattr(config, "add_cross_attention", False):
        return "has cross-attention; give a plain language model"
    if getattr(config, "use_bidirectional_attention", None) or getattr(config, "is_causal", True) is False:
        return "attends to the tokens that follow; give a causal language model"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "caps its attention's logits, which the bounded attention does not; give a model that does not"
    for kind in _rotary_kinds(config):
        if kind in ("dynamic", "longrope"):
            return (
                f"has rotary positions of the kind {kind!r}, which change with the length of the text, so that what "
                "was cached is no longer right; give one without"
            )
    other = {*(getattr(config, "layer_types", None) or ())} - {"full_attention", "sliding_attention"}
    return f"has layers of {min(other)}, which keep no pair for each token; give one without" if other else ""


def _rotary_kinds(config: Any) -> Iterator[str]:
    """The kinds of a config's rotary positions, which may be one for each kind of layer."""
    settings = getattr(config, "rope_parameters", None) or {}
    for one in [settings, *(value for value in settings.values() if isinstance(value, dict))]:
        yield one.get("rope_type", "default")


def _as_they_are(config: Any, logits: Any) -> Any:
    return logits


def _scaled(config: Any, logits: Any) -> Any:
    return logits / config.logits_scaling


def _capped(config: Any, logits: Any) -> Any:
    cap = config.final_logit_softcapping
    return logits if cap is None else (logits / cap).tanh() * cap


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        title: what people call it.
        examples: names to try.
        shape: the shape of a config's cache.
        flaw: why a model of the family cannot be served exactly, with what would do; empty where it can.
        finish: what its models do to the logits that their head makes.
    """

    title: str
    examples: str
    shape: Callable[[Any], Shape] = common_shape
    flaw: Callable[[Any], str] = common_flaw
    finish: Callable[[Any, Any], Any] = _as_they_are


FAMILIES: dict[str, Family] = {
    "gpt2": Family("GPT-2", "gpt2, gpt2-medium, distilgpt2 or bundled"),
    "llama": Family("Llama", "HuggingFaceTB/SmolLM-135M or TinyLlama/TinyLlama_v1.1"),
    "mistral": Family("Mistral", "mistralai/Mistral-7B-v0.3", sliding_shape),
    "qwen2": Family("Qwen2", "Qwen/Qwen2.5-0.5B"),
    "qwen3": Family("Qwen3", "Qwen/Qwen3-0.6B-Base"),
    "gpt_neox": Family("GPT-NeoX", "EleutherAI/pythia-70m"),
    "phi": Family("Phi", "microsoft/phi-1_5"),
    "phi3": Family("Phi-3", "microsoft/Phi-3-mini-4k-instruct", sliding_shape),
    "olmo": Family("OLMo", "allenai/OLMo-1B-hf"),
    "olmo2": Family("OLMo 2", "allenai/OLMo-2-0425-1B"),
    "gemma": Family("Gemma", "google/gemma-2b"),
    "gemma3_text": Family("Gemma 3", "google/gemma-3-270m", finish=_capped),
    "smollm3": Family("SmolLM3", "HuggingFaceTB/SmolLM3-3B-Base"),
    "granite": Family("Granite", "ibm-granite/granite-3.1-2b-base", finish=_scaled),
}
"""By transformers' `model_type`."""


def family_of(config: Any, among: Collection[str] = tuple(FAMILIES)) -> Family:
    """The family of a model by its config.

    Args:
        config: the model's config.
        among: the families that would do.

    Raises:
        UsageError: it is of none of them, or cannot be served exactly.
    """
    if config.model_type not in among:
        wanted = "; or ".join(f"a {FAMILIES[name].title} one: {FAMILIES[name].examples}" for name in among)
        if len(among) > 1:
            wanted = f"one of {', '.join(FAMILIES[name].title for name in among)}, such as HuggingFaceTB/SmolLM-135M"
        raise UsageError(
            f"pretrained={config.name_or_path!r} is a {config.model_type} model{_why(config)}; give {wanted}"
        )
    family = FAMILIES[config.model_type]
    if flaw := family.flaw(config):
        raise UsageError(f"pretrained={config.name_or_path!r} {flaw}")
    return family


def _why(config: Any) -> str:
    """What keeps a model of no known family from being one, where its config says it."""
    if config.model_type in FAMILIES:
        return ", which sketch_hf takes"
    if config.get_text_config() is not config:
        return ", which takes more than text"
    if getattr(config, "is_encoder_decoder", False):
        return ", whose encoder and decoder share no cache that could be bounded"
    if getattr(config, "kv_lora_rank", None):
        return ", which caches latents rather than keys and values (multi-head latent attention)"
    if getattr(config, "num_attention_heads", None) is None:
        return ", which has no attention"
    return common_flaw(config) and f", which {common_flaw(config).partition(';')[0]}"


def shape_of(config: Any) -> Shape:
    """The shape of a model's cache; raises as `family_of`."""
    return family_of(config).shape(config)


def check(config: Any, among: Collection[str], max_length: Any = None) -> None:
    """Refuse a model that is of none of some families, and texts longer than it can be exact for.

    Args:
        config: the model's config.
        among: the families that would do.
        max_length: tokens of the longest text, as it was asked for; None is all the model's positions.

    Raises:
        UsageError: as `family_of`; max_length is no number from 1 to its positions; or some of its layers would not
            attend to all of such a text.
    """
    shape = family_of(config, among).shape(config)
    most = shape.window or shape.positions
    if max_length is None and shape.window is None:
        return
    if not (isinstance(max_length, int) and not isinstance(max_length, bool) and 1 <= max_length <= most):
        reason = f"has {shape.positions} positions"
        if shape.window is not None:
            reason += f", but layers that attend to the last {shape.window} tokens only, which a cell would not do"
        leave = ", or leave it out" if shape.window is None else ""
        raise UsageError(f"max_length={max_length!r}: the model {reason}; give 1 to {most}{leave}")
