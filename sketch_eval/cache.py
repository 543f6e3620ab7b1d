"""The bounded cache as transformers knows caches: what `generate` and a forward pass are given (docs/design.md §5)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from transformers import Cache, PretrainedConfig

from sketch_eval.call import Call, Trace
from sketch_eval.centres import Centres, centred, needed
from sketch_eval.config import CacheConfig
from sketch_eval.errors import UsageError
from sketch_eval.execution import Execution
from sketch_eval.families import shape_of
from sketch_eval.foresight import Attended, Foreseen, Losses
from sketch_eval.formats import without_autocast
from sketch_eval.layer import SketchLayer
from sketch_eval.policies import FATES
from sketch_eval.ranking import fitted, ranking_of
from sketch_eval.rotary import speeds
from sketch_eval.state import by_unit


def check_cell(config: PretrainedConfig, cell: CacheConfig) -> None:
    """Refuse a cell that a model cannot be held to.

    Raises:
        UsageError: the cell turns rotary keys, and the model has none; or it ranks by what was fitted to the model,
            and nothing was.
    """
    if cell.fitted:
        ranking_of(config)
    if FATES[cell.strategy].turns and speeds(config, 0) is None:
        raise UsageError(
            f"strategy={cell.strategy!r} turns rotary keys, and pretrained={config.name_or_path!r} has no rotary "
            f"positions; give {' or '.join(name for name, fate in FATES.items() if not fate.turns)}"
        )


class SketchCache(Cache):
    """A cache of at most `cell.max_cache_size` pairs a layer after each token, and one more while it attends.

    For `model(..., past_key_values=cache)` and `model.generate(..., past_key_values=cache)` with a model on which
    `sketch_eval.attention.enable` was called. One cache serves one batch of sequences, from their beginning.

    Args:
        config: the model's config.
        cell: the cell.
        traced: whether to keep what was decided, which grows with the text and decides nothing itself.
        foresight: the full pass over the same texts, as `attention.foresee` makes it, for a policy that foresees.
        execution: see `sketch_eval.execution.advance`.
        centres: the model's mean keys, as `centres.mean_keys` makes them, for a cell with `centred=True`.

    Raises:
        UsageError: the cell has no bound: a full cache is transformers' `DynamicCache`; its policy has to foresee, and
            nothing was given that it could see; it centres keys, and no means were given; or as `check_cell`.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        cell: CacheConfig,
        *,
        traced: bool = False,
        foresight: Foreseen | None = None,
        execution: Execution = "auto",
        centres: Centres | None = None,
    ) -> None:
        if cell.max_cache_size is None:
            other = "transformers' DynamicCache" if cell.untouched else "sketch_eval.unbounded.FormatCache"
            raise UsageError(f"max_cache_size=None: a sketch cache needs a bound; use {other}")
        if cell.foresees and foresight is None:
            raise UsageError(
                f"importance={cell.importance!r} has to know the text before it begins: pass foresight="
                f"sketch_eval.attention.foresee(model, tokens, {cell.foresees!r}), and do not generate with it"
            )
        shape = shape_of(config)
        check_cell(config, cell)
        count, self._window, group = shape.layers, shape.window, shape.query_heads // shape.kv_heads
        seen: Foreseen = fitted(config) if cell.fitted else foresight or {}
        turns = FATES[cell.strategy].turns
        super().__init__(
            layers=[
                SketchLayer(cell, index, group, speeds(config, index) if turns else None, seen.get(index), execution)
                for index in range(count)
            ]
        )
        self.cell, self.traced = cell, traced
        self._centres = needed(centres, count) if cell.centred else {}
        self._traces: list[list[Trace]] = [[] for _ in range(count)]
        self._tokens = self._valid = torch.empty(0)
        self._announced = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `SketchLayer.update`.

        Raises:
            UsageError: the model does not consult the cache.
        """
        before = self.layers[layer_idx - 1]  # The last one, of the call before, for the first.
        if before.tokens_seen != before.tokens_attended:
            raise UsageError(
                "past_key_values: the model's attention does not go through transformers' AttentionInterface, so that "
                "no cell can bound it; give a model of transformers' own"
            )
        if self.layers[layer_idx].tokens_seen + key_states.shape[-2] > self._announced:
            raise UsageError(
                "past_key_values: the model knows no sketch cache; call sketch_eval.attention.enable(model)"
            )
        with without_autocast(key_states.device):
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def expect(self, tokens: torch.Tensor, valid: torch.Tensor) -> None:
        """Announce the tokens of the forward pass that begins.

        Args:
            tokens: ids, int64 `[batch, tokens]`.
            valid: bool `[batch, tokens]`, False for padding.

        Raises:
            UsageError: the batch is not the one that the cache began with; the text is longer than the model's layers
                of sliding attention see; or a policy that foresees is given padding, or more than it has seen.
        """
        state = self.layers[0].state
        if self._window is not None and self._announced + tokens.shape[1] > self._window:
            raise UsageError(
                f"input_ids: a text of more than {self._window} tokens, of which some of the model's layers see the "
                f"last {self._window} only, which no cell does; give shorter ones"
            )
        if state is not None and len(state.seen) != len(tokens):
            raise UsageError(
                f"input_ids of {len(tokens)} sequences: the cache holds {len(state.seen)}; make a cache for each batch"
            )
        foreseen = self.layers[0].foresight
        of_text = foreseen if isinstance(foreseen, Attended | Losses) else None
        if of_text is not None and (not valid.all() or self._announced + tokens.shape[1] > of_text.length):
            raise UsageError(
                f"input_ids: importance={self.cell.importance} has seen texts of {of_text.length} tokens without "
                "padding; give these, and nothing after them"
            )
        self._tokens, self._valid = tokens, valid
        self._announced += tokens.shape[1]

    @property
    def units(self) -> int:
        """Lines that each sequence has in every layer's trace; 1 before the first token."""
        state = self.layers[0].state
        return 1 if state is None else int(state.units * state.owning)

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float) -> torch.Tensor:
        """Output `[batch, tokens, query heads, head_dim]` of one layer's attention; the arguments are as in `Call`."""
        tokens, valid = self._tokens.to(q.device), self._valid.to(q.device)  # Layers may be on several devices.
        if self.cell.centred:
            k = centred(k, self._centres[layer])
        with without_autocast(q.device):
            output, trace = self.layers[layer].attend(Call(q, k, v, tokens, valid, scaling))
        if self.traced:
            self._traces[layer].append(trace)
        return output

    def trace(self, layer: int) -> Trace:
        """What a layer decided at each token so far, on the columns of the input, padding included.

        A line for each row of `LayerState`: a sequence with scope=layer, a key/value head of one with scope=head. With
        scope=budget a sequence has a line for each head too, as `execution.budgeted.advance` says.

        Raises:
            UsageError: the cache is not `traced`, or the layer's attention never asked it.
        """
        if not self.traced:
            raise UsageError("traced=False: make the cache with traced=True to see what it decides")
        if not self._traces[layer]:
            raise UsageError("past_key_values: the model's attention never asked the cache, which so bounded nothing")
        return Trace.join(self._traces[layer])

    def nbytes(self) -> dict[str, int]:
        """Bytes of all the tensors that the cache owns, by name, summed over the layers (docs/design.md §6)."""
        total: Counter[str] = Counter()
        for layer in self.layers:
            if layer.state is not None:
                total.update({name: tensor.nbytes for name, tensor in layer.state.tensors().items()})
        return dict(total)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self._select_traces(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        state = self.layers[0].state
        if self.traced and state is not None:
            sequences = torch.arange(len(state.seen) // repeats, device=state.seen.device)
            self._select_traces(sequences.repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self._select_traces(indices)

    def _select_traces(self, sequences: torch.Tensor) -> None:
        """Make the traces those of the given sequences, as the layers' stores were made."""
        for layer, traces in enumerate(self._traces):
            if traces:
                whole = Trace.join(traces)
                rows = by_unit(sequences.to(whole.victims.device), self.units)
                self._traces[layer] = [whole.select(rows)]

    def reset(self) -> None:
        super().reset()
        self._traces = [[] for _ in self.layers]
        self._announced = 0
