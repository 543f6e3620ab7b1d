"""What a family of models is, in one place: the shape of its cache, and which of its models cannot be served exactly.

A new family is an entry of `FAMILIES`, and tests on a random model of it. A model's fingerprint covers its whole config
but for what is known to be cosmetic (`provenance.COSMETIC`), so that whatever decides a family's attention, such as the
settings of rotary positions, is in it without being named here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
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
    """

    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    positions: int

    @property
    def token_numbers(self) -> int:
        """Numbers that a full cache keeps of a token."""
        return 2 * self.layers * self.kv_heads * self.head_dim


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        title: what people call it.
        examples: names to try.
        shape: the shape of a config's cache.
        flaw: why a model of the family cannot be served, with what would do; empty where it can.
    """

    title: str
    examples: str
    shape: Callable[[Any], Shape]
    flaw: Callable[[Any], str] = lambda config: ""


def _shape(config: Any) -> Shape:
    """The shape of a config that has transformers' common names."""
    heads = config.num_attention_heads
    return Shape(
        layers=config.num_hidden_layers,
        query_heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        positions=config.max_position_embeddings,
    )


def _gpt2_flaw(config: Any) -> str:
    return "has cross-attention; give a plain GPT-2 language model" if config.add_cross_attention else ""


def _llama_flaw(config: Any) -> str:
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if kind in ("dynamic", "longrope"):
        return (
            f"has rotary positions of the kind {kind!r}, which change with the length of the text, so that what was "
            "cached is no longer right; give one without"
        )
    return ""


FAMILIES: dict[str, Family] = {
    "gpt2": Family("GPT-2", "gpt2, gpt2-medium, distilgpt2 or bundled", _shape, _gpt2_flaw),
    "llama": Family("Llama", "HuggingFaceTB/SmolLM-135M", _shape, _llama_flaw),
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
        raise UsageError(f"pretrained={config.name_or_path!r} is a {config.model_type} model; give {wanted}")
    family = FAMILIES[config.model_type]
    if flaw := family.flaw(config):
        raise UsageError(f"pretrained={config.name_or_path!r} {flaw}")
    return family


def shape_of(config: Any) -> Shape:
    """The shape of a model's cache; raises as `family_of`."""
    return family_of(config).shape(config)


def check(config: Any, among: Collection[str], max_length: Any = None) -> None:
    """Refuse a model that is of none of some families, and texts longer than it has positions for.

    Args:
        config: the model's config.
        among: the families that would do.
        max_length: tokens of the longest text, as it was asked for; None is all the model's positions.

    Raises:
        UsageError: as `family_of`, or max_length is no number from 1 to its positions.
    """
    positions = family_of(config, among).shape(config).positions
    if max_length is not None and not (
        isinstance(max_length, int) and not isinstance(max_length, bool) and 1 <= max_length <= positions
    ):
        raise UsageError(
            f"max_length={max_length!r}: the model has {positions} positions; give 1 to {positions}, or leave it out"
        )
