"""The ranking that was fitted to a model, which `importance=learned` ranks by: a part of the model's own config.

Being a part of the config it travels with the weights, is saved and loaded by transformers, and is in the model's
fingerprint, so that no score is kept for another.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from transformers import PretrainedConfig, PreTrainedModel

from sketch_eval.errors import UsageError
from sketch_eval.families import shape_of
from sketch_eval.foresight import Fitted
from sketch_eval.policies.learned import FEATURES

NAME = "sketch_eval_ranking"
"""What the config calls it."""

TOLERANCE = 5e-3
"""Difference of a parameter's mark, as a share of its norm, up to which it is the same in another dtype: bfloat16's
rounding makes a fifth of it, and noise of a hundredth of the weights twice as much."""

ADVICE = "fit one with `python -m sketch_eval.calibrate --pretrained FOLDER --out NEW_FOLDER`, or give another model"


class Ranking(BaseModel):
    """What `python -m sketch_eval.calibrate` leaves in a config.

    Attributes:
        features: their names, in the order of the coefficients.
        coefficients: by layer and key/value head.
        marks: of the model's parameters, in the order of their names (`marks_of`).
        made: how it was fitted, for people.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    features: tuple[str, ...]
    coefficients: list[list[Annotated[list[float], Field(min_length=len(FEATURES), max_length=len(FEATURES))]]]
    marks: list[float]
    made: dict[str, str | float]


def ranking_of(config: PretrainedConfig) -> Ranking:
    """The ranking of a model.

    Raises:
        UsageError: its config has none, or none of this version, or none of its shape.
    """
    said: Any = getattr(config, NAME, None)
    if said is None:
        raise UsageError(f"importance='learned': no ranking was fitted to pretrained={config.name_or_path!r}; {ADVICE}")
    try:
        ranking = Ranking.model_validate(said)
    except ValidationError:
        ranking = None
    shape = shape_of(config)
    of_shape = ranking is not None and [len(heads) for heads in ranking.coefficients] == [shape.kv_heads] * shape.layers
    if ranking is None or ranking.features != FEATURES or not of_shape:
        raise UsageError(
            f"importance='learned': the ranking in the config of pretrained={config.name_or_path!r} is not one of this "
            f"version and of its shape; {ADVICE}"
        )
    return ranking


def fitted(config: PretrainedConfig) -> dict[int, Fitted]:
    """The coefficients by layer; raises as `ranking_of`."""
    coefficients = torch.tensor(ranking_of(config).coefficients, dtype=torch.float32)
    return {layer: Fitted(of_layer) for layer, of_layer in enumerate(coefficients)}


def marks_of(model: PreTrainedModel) -> list[float]:
    """What tells a model's weights from another's in any dtype: of each parameter its product with seeded signs."""
    return [mark for mark, _ in _marks(model)]


def _marks(model: PreTrainedModel) -> list[tuple[float, float]]:
    """The mark and the norm of each parameter, in the order of their names."""
    generator, found = torch.Generator().manual_seed(0), []
    for _, parameter in sorted(model.named_parameters()):
        numbers = parameter.detach().cpu().double().flatten()
        signs = torch.randint(0, 2, numbers.shape, generator=generator).double() * 2 - 1
        found.append((float(numbers @ signs), float(numbers.norm())))
    return found


def check_weights(model: PreTrainedModel) -> None:
    """Refuse a model whose ranking was fitted to other weights, as those of before it was trained further.

    Raises:
        UsageError: it was, or as `ranking_of`.
    """
    then, now = ranking_of(model.config).marks, _marks(model)
    if len(then) != len(now) or any(
        abs(mark - before) > TOLERANCE * norm + 1e-6 for before, (mark, norm) in zip(then, now, strict=True)
    ):
        raise UsageError(
            f"importance='learned': the ranking in the config of pretrained={model.config.name_or_path!r} was fitted "
            f"to other weights; {ADVICE}"
        )
