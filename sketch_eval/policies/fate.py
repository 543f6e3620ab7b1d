"""What becomes of a victim: `strategy` in the cell (docs/design.md §2, step 4)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch

if TYPE_CHECKING:
    from sketch_eval.state import LayerState


class Fate(ABC):
    """A fate of victims: without memory, so there are classes only and no objects."""

    name: ClassVar[str]
    """What `strategy` is called."""
    summary: ClassVar[str]
    """What it does, in a line of the documentation's table."""
    counts: ClassVar[bool]
    """Whether pairs carry a count n of the tokens in them."""
    weighs: ClassVar[bool] = True
    """Whether the count enters a pair's logit, as log n."""
    hides: ClassVar[bool]
    """Whether it goes with `topk`, which hides pairs from a query."""
    turns: ClassVar[bool] = False
    """Whether it turns rotary keys, and so serves no model without them."""

    @classmethod
    @abstractmethod
    def meet(cls, state: LayerState, victim: torch.Tensor, partners: torch.Tensor, full: torch.Tensor) -> torch.Tensor:
        """Let the victims of the rows that are full go, but for their position, which the caller frees.

        Args:
            state: the layer's state, changed in place.
            victim: slot of each row's victim, int64 `[rows]`; anything where the row is not full.
            partners: bool `[rows, slots]`, the other unprotected pairs.
            full: bool `[rows]`.

        Returns:
            Slot int64 `[rows]` of the pair into which each victim went, or -1.
        """


def least(value: torch.Tensor, position: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """The slot `[rows]` with the smallest value among some, ties to the oldest; slot 0 where there are none.

    Args:
        value: float32 `[rows, slots]`.
        position: int64 `[rows, slots]`.
        among: bool `[rows, slots]`.
    """
    value = value.masked_fill(~among, float("inf"))
    ties = among & (value == value.amin(1, keepdim=True))
    return position.masked_fill(~ties, torch.iinfo(torch.int64).max).argmin(1)
