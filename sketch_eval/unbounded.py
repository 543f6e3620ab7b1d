"""The full cache with fewer bits a number: what users have instead of a bound (docs/design.md §8)."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache, PretrainedConfig
from transformers.cache_utils import CacheLayerMixin

from sketch_eval.centres import Centres, centred, needed
from sketch_eval.config import CacheConfig
from sketch_eval.errors import UsageError
from sketch_eval.families import shape_of
from sketch_eval.formats import Parts, formats_of, without_autocast


def _joined(held: Parts, new: Parts) -> Parts:
    return tuple(torch.cat(both, 2) for both in zip(held, new, strict=True))


class FormatLayer(CacheLayerMixin):
    """Every pair of one layer, as a cell's format keeps it. The model's own attention is given what comes back.

    Args:
        cell: the cell.
        centre: what is taken from all keys, float32 `[kv_heads, 1, head_dim]`, or None.
    """

    def __init__(self, cell: CacheConfig, centre: torch.Tensor | None = None) -> None:
        super().__init__()
        self.cell, self.centre = cell, centre
        self.key_parts: Parts = ()
        self.value_parts: Parts = ()

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.formats = formats_of(self.cell.store, self.cell.store_group, key_states.shape[-1])
        self.dtype, self.device = key_states.dtype, key_states.device
        self.key_parts, self.value_parts = (
            one.encode(states[:, :, :0]) for one, states in zip(self.formats, (key_states, value_states), strict=True)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep new keys and values `[batch, kv_heads, tokens, head_dim]`; return all, as they come back."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        of_keys, of_values = self.formats
        if self.centre is not None:
            key_states = centred(key_states, self.centre)
        self.key_parts = _joined(self.key_parts, of_keys.encode(key_states))
        self.value_parts = _joined(self.value_parts, of_values.encode(value_states))
        return of_keys.decode(self.key_parts).to(self.dtype), of_values.decode(self.value_parts).to(self.dtype)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that hold the pairs, by their names in the ledger."""
        if not self.is_initialized:
            return {}
        named = zip(("keys", "values"), self.formats, strict=True)
        names = [kind + name for kind, one in named for name in one.names]
        return dict(zip(names, (*self.key_parts, *self.value_parts), strict=True))

    def get_seq_length(self) -> int:
        return self.key_parts[0].shape[2] if self.is_initialized else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.key_parts, self.value_parts, self.is_initialized = (), (), False

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest pairs, `-tokens_to_remove` of them, as transformers' own layers are asked to."""
        if tokens_to_remove < 0 and self.is_initialized:
            self.key_parts, self.value_parts = (
                tuple(part[:, :, :tokens_to_remove] for part in parts) for parts in (self.key_parts, self.value_parts)
            )

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:
            batch = torch.arange(len(self.key_parts[0]), device=self.device)
            self.batch_select_indices(batch.repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.key_parts, self.value_parts = (
            tuple(part[indices.to(part.device)] for part in parts) for parts in (self.key_parts, self.value_parts)
        )


class FormatCache(Cache):
    """A cache of every pair, each as the cell's `store` keeps it.

    For `model(..., past_key_values=cache)` and `model.generate(..., past_key_values=cache)` with any model.

    Args:
        config: the model's config.
        cell: a cell without a bound.
        centres: the model's mean keys, as `centres.mean_keys` makes them, for a cell with `centred=True`.

    Raises:
        UsageError: the cell has a bound: its cache is a `SketchCache`; or it centres keys, and no means were given.
    """

    def __init__(self, config: PretrainedConfig, cell: CacheConfig, centres: Centres | None = None) -> None:
        if cell.max_cache_size is not None:
            raise UsageError(f"max_cache_size={cell.max_cache_size}: this cache has no bound; use SketchCache")
        count = shape_of(config).layers
        means = needed(centres, count) if cell.centred else {}
        super().__init__(layers=[FormatLayer(cell, means.get(index)) for index in range(count)])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `FormatLayer.update`."""
        with without_autocast(key_states.device):
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def nbytes(self) -> dict[str, int]:
        """Bytes of all the tensors that the cache owns, by name, summed over the layers (docs/design.md §6)."""
        total: dict[str, int] = {}
        for layer in self.layers:
            for name, tensor in layer.tensors().items():
                total[name] = total.get(name, 0) + tensor.nbytes
        return total
