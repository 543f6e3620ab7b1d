"""The cell: every choice that decides what a bounded cache keeps (docs/design.md §1, §2, §4)."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sketch_eval.errors import UsageError
from sketch_eval.formats import BITS, FORMATS
from sketch_eval.policies import FATES, POLICIES
from sketch_eval.policies.items import ITEMS

if TYPE_CHECKING:
    Strategy = str
    Importance = str
    Item = str
    Format = str
else:  # The registry's names, which no type checker can know.
    Strategy, Importance, Item, Format = (Literal[tuple(names)] for names in (FATES, POLICIES, ITEMS, FORMATS))

Share = int | float
"""A number of tokens where it is an int, a fraction of the budget where it is a float below 1."""


class CacheConfig(BaseModel):
    """One cell of the benchmark. Immutable; `CacheConfig.parse` reports bad input in one line.

    Attributes:
        max_cache_size: pairs a layer holds after each token (`C`); None is every pair, the
            model's own full cache where `store` is its own too.
        width: columns of the sketch.
        depth: rows of the sketch, each with its own hash.
        strategy: what becomes of a victim: `topk` drops it, `aggregate` folds it into its nearest neighbour, and the
            others do so in ways of their own (`policies.FATES`).
        topk: pairs a query sees, with strategy `topk`; None, or anything from `max_cache_size` up, is all.
        importance: what ranks the pairs (docs/design.md §4).
        scope: what shares its victims: all heads of a `layer`, or each key/value `head` for itself; with `budget` each
            head keeps pairs of its own, and a layer's heads share out max_cache_size pairs a head, the least important
            of any head leaving first (Ada-KV: Feng et al., 2024); with `entropy` they share them out by how many pairs
            each attends to, which is the exponential of its attention's entropy.
        item: what a sketch hashes for a pair (docs/design.md §1). `race` hashes key vectors whatever it says.
        sinks: the first positions, never evicted.
        recent: the newest tokens, never evicted, the newest included.
        normalize: `age` divides an estimate by the number of queries that its pair has met.
        decay: factor on all accumulated mass at each token, in (0, 1].
        conservative: conservative update (Estan and Varghese, 2002), Count-Min only.
        seed: seed of every hash.
        store: how the numbers of a pair are kept: `float` as the model has them, `float16`, or `int8`, `int4`, `int3`
            or `k8v4` (keys in eight bits, values in four), quantised when the pair arrives (docs/design.md §8). It goes
            with the full cache too.
        store_group: numbers of a head's key or value that share a scale and a zero, where they are quantised.
        centred: whether keys are stored less the mean key that their head has on another text (docs/design.md §8).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_cache_size: int | None = Field(default=128, ge=1)
    width: int = Field(default=512, ge=1, lt=2**31)
    depth: int = Field(default=4, ge=1, le=64)
    strategy: Strategy = "topk"
    topk: int | None = Field(default=None, ge=1)
    importance: Importance = "count_min"
    scope: Literal["layer", "head", "budget", "entropy"] = "layer"
    item: Item = "position"
    sinks: Share = Field(default=4, ge=0, allow_inf_nan=False)
    recent: Share = Field(default=0.75, ge=0, allow_inf_nan=False)
    normalize: Literal["none", "age"] = "none"
    decay: float = Field(default=0.95, gt=0, le=1)
    conservative: bool = False
    seed: int = Field(default=0, ge=0, lt=2**63)
    store: Format = "float"
    store_group: int = Field(default=32, ge=1)
    centred: bool = False

    @field_validator("max_cache_size", "topk", mode="before")
    @classmethod
    def _read_none(cls, value: Any) -> Any:
        """lm-eval's command line hands over `None` as a string."""
        return None if isinstance(value, str) and value.lower() in ("none", "null", "full") else value

    @field_validator("normalize", mode="before")
    @classmethod
    def _read_nothing(cls, value: Any) -> Any:
        """lm-eval's parser of strings makes None of `none`; its command line does not."""
        return "none" if value is None else value

    @field_validator("sinks", "recent")
    @classmethod
    def _is_share(cls, value: Share) -> Share:
        if isinstance(value, float) and value >= 1:
            if value != int(value):
                raise ValueError("should be a whole number of tokens, or a fraction below 1 of the budget")
            return int(value)
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> CacheConfig:
        if self.topk is not None and not FATES[self.strategy].hides:
            raise ValueError(f"topk={self.topk} goes with strategy=topk; leave topk out with strategy={self.strategy}")
        if self.topk is not None and self.max_cache_size is None:
            raise ValueError(f"topk={self.topk} needs a bounded cache; give a max_cache_size or leave topk out")
        scopes = POLICIES[self.importance].scopes
        if self.scope not in scopes:
            able = " or ".join(name for name, policy in POLICIES.items() if self.scope in policy.scopes)
            raise ValueError(
                f"scope={self.scope} does not go with importance={self.importance}; give scope={' or '.join(scopes)}"
                + (f", or importance={able}" if self.shared_out else "")
            )
        if self.shared_out and self.topk is not None:
            raise ValueError(f"topk={self.topk} goes with scope=layer or head; leave topk out with scope={self.scope}")
        if self.conservative and "conservative" not in POLICIES[self.importance].reads:
            raise ValueError(
                f"conservative=True goes with importance=count_min; leave it out with importance={self.importance}"
            )
        if self.centred and self.max_cache_size is not None:
            if FATES[self.strategy].turns:
                raise ValueError(
                    f"centred=True does not go with strategy={self.strategy}, which turns stored keys to another "
                    "position, where the mean that was taken away is another; give strategy=aggregate"
                )
            if POLICIES[self.importance].fitted:
                raise ValueError(
                    f"centred=True does not go with importance={self.importance}, which was fitted to the keys as they "
                    "are; leave centred out"
                )
        if self.max_cache_size is not None:
            sinks, recent = self.protected(self.max_cache_size)
            if sinks + recent > self.max_cache_size:
                raise ValueError(
                    f"sinks={self.sinks} and recent={self.recent} protect {sinks + recent} pairs, more than "
                    f"max_cache_size={self.max_cache_size}; lower them or raise max_cache_size"
                )
        return self

    @classmethod
    def parse(cls, **arguments: Any) -> CacheConfig:
        """The validated cell of the given arguments.

        Raises:
            UsageError: one line for each bad argument, naming it, its value and what would do.
        """
        try:
            return cls(**arguments)
        except ValidationError as error:
            raise UsageError("; ".join(_explain(e) for e in error.errors())) from None

    def protected(self, budget: int) -> tuple[int, int]:
        """Sink and recent tokens that are protected within a budget of pairs (C, or topk); fractions round down."""
        sinks, recent = (
            # The 1e-9 makes 0.29 of 100 the 29 that it is meant to be.
            math.floor(s * budget + 1e-9) if isinstance(s, float) else s
            for s in (self.sinks, self.recent)
        )
        return sinks, recent

    @property
    def visible(self) -> int | None:
        """Pairs a query sees at most; None where every stored pair is seen.

        docs/design.md §7 calls topk ≥ cap the same computation as no topk at all, so it is None from the cap up.
        """
        if self.topk is None or self.max_cache_size is None or self.topk >= self.max_cache_size:
            return None
        return self.topk

    @property
    def shared_out(self) -> bool:
        """Whether a layer's heads share out its pairs, each keeping its own."""
        return self.scope in ("budget", "entropy")

    @property
    def untouched(self) -> bool:
        """Whether it is the model's own, full cache."""
        return self.max_cache_size is None and self.store == "float"

    @property
    def quantised(self) -> bool:
        """Whether pairs are kept in whole numbers of a few bits."""
        return self.store in BITS

    @property
    def foresees(self) -> str:
        """What has to be known of the text before it begins, so that nothing can be generated; empty for nothing."""
        return "" if self.max_cache_size is None else POLICIES[self.importance].foresees

    @property
    def fitted(self) -> bool:
        """Whether it needs numbers that were fitted to the model."""
        return self.max_cache_size is not None and POLICIES[self.importance].fitted

    @property
    def ranks(self) -> bool:
        """Whether `importance` ever has a choice: of two victims or more, or of pairs to see."""
        if self.max_cache_size is None:
            return False
        choice = self.max_cache_size + 1 - sum(self.protected(self.max_cache_size)) > 1
        if self.visible is not None:
            sinks, recent = self.protected(self.visible)
            choice |= self.visible > sinks + max(recent, 1)
        return choice

    @property
    def no_choice(self) -> str:
        """What to say of a cell that does not `rank`."""
        return (
            f"max_cache_size={self.max_cache_size}: sinks={self.sinks} and recent={self.recent} protect all but the "
            f"one pair that leaves, so importance={self.importance} has no choice; lower recent or raise max_cache_size"
        )


OTHER_WORDS = {
    **dict.fromkeys(("cap", "budget", "cache_size", "max_cache_len", "capacity"), "max_cache_size"),
    **dict.fromkeys(("smooth", "smooth_k", "zero_mean", "center"), "centred"),
    **dict.fromkeys(("bits", "nbits", "quant", "kv_dtype"), "store"),
    **dict.fromkeys(("policy", "press", "method", "control", "ranking"), "importance"),
    **dict.fromkeys(("fate", "eviction", "merge"), "strategy"),
    "window": "recent",
    "model": "pretrained",
    **dict.fromkeys(("fold", "average"), "aggregate"),
    **dict.fromkeys(("drop", "evict"), "topk"),
}
"""What arguments and their values are called elsewhere, and here."""


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean ...?)` for a name that is, or nearly is, one of the known ones, else the empty string."""
    known = list(known)
    match = difflib.get_close_matches(name, known, n=1)
    if OTHER_WORDS.get(name) in known:
        match = [OTHER_WORDS[name]]
    return f" (did you mean {match[0]}?)" if match else ""


def _explain(error: Any) -> str:
    """One line for one of pydantic's errors."""
    if error["type"] == "value_error" and not error["loc"]:
        return str(error["ctx"]["error"])
    name = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        return f"{name}={error['input']!r} is not an argument{nearest(name, CacheConfig.model_fields)}"
    wanted = error["msg"].removeprefix("Input ").removeprefix("Value error, ")
    full = name == "max_cache_size" and error["type"] == "greater_than_equal"
    hint = ", or None for the full cache" if full else ""
    if error["type"] == "literal_error":
        choices = get_args(CacheConfig.model_fields[name].annotation)
        # int5 is no slip of the pen for int8; all choices stand in the message.
        hint = "" if re.match(r"(int|float)\d", str(error["input"])) else nearest(str(error["input"]), choices)
        if name == "importance" and str(error["input"]) in CONTROLS:
            control = ",".join(f"{key}={value}" for key, value in CONTROLS[str(error["input"])].items())
            hint = f"; the control {error['input']} is {control}"
    return f"{name}={error['input']!r}: {wanted}{hint}"


CONTROLS: dict[str, dict[str, Any]] = {
    "full": {"max_cache_size": None, "store": "float"},
    "window": {"importance": "recency", "sinks": 0},
    "streaming": {"importance": "recency", "sinks": 4},
    "random": {"importance": "random"},
    "tova": {"importance": "last"},
    "knorm": {"importance": "knorm"},
    "h2o": {"importance": "exact", "decay": 1.0, "scope": "head"},
    "exact": {"importance": "exact"},
    **{name: {"importance": name, "scope": "head"} for name in ("vatp", "snapkv", "expected", "keydiff", "learned")},
    "surprisal": {"importance": "surprisal"},
    "clairvoyant": {"importance": "clairvoyant", "sinks": 0, "recent": 1},
    **{name: {"max_cache_size": None, "store": name} for name in BITS},
}
"""The control ladder of docs/design.md §4: what each control changes in a cell."""
