"""One layer of the bounded cache as transformers knows a cache's layers (docs/design.md §5)."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin

from sketch_eval.call import Call, Trace
from sketch_eval.config import CacheConfig
from sketch_eval.errors import UsageError
from sketch_eval.execution import Execution, advance
from sketch_eval.foresight import Foresight
from sketch_eval.state import LayerState


class SketchLayer(CacheLayerMixin):
    """One layer's store. `update` only passes the new tokens on; `attend` is where they meet the store.

    Args:
        cell: the cell.
        index: which layer it is.
        group: query heads that share a key/value head.
        speeds: how rotary positions turn its keys, as `rotary.speeds` gives them, for a fate that turns them.
        foresight: what the full cache saw of the text, for a policy that foresees.
        execution: see `sketch_eval.execution.advance`.
    """

    def __init__(
        self,
        cell: CacheConfig,
        index: int,
        group: int,
        speeds: torch.Tensor | None,
        foresight: Foresight | None,
        execution: Execution,
    ) -> None:
        super().__init__()
        self.cell, self.index, self.group, self.execution = cell, index, group, execution
        self.speeds, self.foresight = speeds, foresight
        self.state: LayerState | None = None
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None
        self.tokens_seen = self.tokens_attended = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.state = LayerState(
            self.cell, self.index, key_states, self.group, speeds=self.speeds, foresight=self.foresight
        )
        self._show()
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the new keys and values as they are: the attention function has the queries, so it stores them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.tokens_seen += key_states.shape[-2]
        return key_states, value_states

    def attend(self, call: Call) -> tuple[torch.Tensor, Trace]:
        """Store new tokens, evict, and attend from each; see `sketch_eval.execution.stepwise.advance`."""
        assert self.state is not None
        self.tokens_attended += call.length
        return advance(self.execution, self.state, call)

    def get_seq_length(self) -> int:
        """Tokens seen, padding included: transformers derives positions from it."""
        return self.tokens_seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As for the new tokens alone: the store masks its own pairs, by their positions."""
        return query_length, 0

    def get_max_length(self) -> int:
        """No maximum: the cache holds at most C pairs of a text of any length."""
        return -1

    def reset(self) -> None:
        self.state, self.keys, self.values, self.is_initialized = None, None, None, False
        self.tokens_seen = self.tokens_attended = 0

    def crop(self, max_length: int) -> None:
        """Refused: an evicted pair cannot come back, so no token can be taken back (assisted decoding would).

        Raises:
            UsageError: always.
        """
        raise UsageError("past_key_values: a sketch cache cannot be cropped; generate without an assistant model")

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self._select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.state is not None:
            self._select(torch.arange(len(self.state.seen), device=self.device).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._select(indices)

    def _select(self, rows: torch.Tensor) -> None:
        if self.state is not None:
            self.state.select(rows.to(self.device))
            self._show()

    def _show(self) -> None:
        """Let transformers see the tensors that hold the keys and the values."""
        assert self.state is not None
        self.keys, self.values = self.state.held_keys.parts[0], self.state.held_values.parts[0]
