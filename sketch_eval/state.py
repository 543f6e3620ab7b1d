"""What one layer of a bounded cache holds, and what a step of it leaves behind (docs/design.md §2, §6)."""

from __future__ import annotations

from typing import Any

import torch

from sketch_eval.call import Arriving, Call
from sketch_eval.config import CacheConfig
from sketch_eval.foresight import Foresight
from sketch_eval.formats import Format, Parts, formats_of
from sketch_eval.hashing import Stream, head_stream
from sketch_eval.policies import FATES, POLICIES, Pairs, Place


class Vectors:
    """The keys or the values in every slot, as their format keeps them.

    Args:
        format: the format.
        shape: rows, heads and slots.
        like: any such vectors, `[..., head_dim]`, for dtype and device.
        transposed: whether vectors of one part lie in memory coordinate by coordinate, so that a query's products with
            one coordinate of every key are one vector operation.

    Attributes:
        parts: `[rows, heads, slots, *]`.
    """

    def __init__(
        self, format: Format, shape: tuple[int, int, int], like: torch.Tensor, transposed: bool = False
    ) -> None:
        self.format, self.transposed = format, transposed and len(format.names) == 1
        one = format.encode(torch.zeros(like.shape[-1], dtype=like.dtype, device=like.device))
        self.parts: Parts = tuple(part.new_zeros(*shape, *part.shape) for part in one)
        if self.transposed:
            self.parts = (self._transpose(self.parts[0]),)

    def read(self) -> torch.Tensor:
        """The vectors `[rows, heads, slots, head_dim]`: the part itself, where it is one."""
        return self.format.decode(self.parts)

    def write(self, rows: torch.Tensor, slots: torch.Tensor, parts: Parts) -> None:
        """Put parts `[n, heads, *]` in slots of rows, both int64 `[n]`."""
        for part, new in zip(self.parts, parts, strict=True):
            part[rows, :, slots] = new.to(part.dtype)

    def select(self, rows: torch.Tensor) -> None:
        self.parts = tuple(part[rows] for part in self.parts)
        if self.transposed:
            self.parts = (self._transpose(self.parts[0]),)

    @staticmethod
    def _transpose(part: torch.Tensor) -> torch.Tensor:
        return part.transpose(2, 3).contiguous().transpose(2, 3)


class LayerState:
    """The store and the policy of one layer, for a batch of sequences that share nothing.

    What shares its victims is a *row*: with scope=layer each sequence is one, with scope=head each key/value head of
    each sequence, so that a sequence has `units` rows, one after the other. With scope=budget or entropy a sequence is
    one too, but a slot holds a pair of one key/value head, its owner, and there are as many slots as in all heads'
    budgets.

    Slots hold pairs in no order; a free slot has position -1. Between steps at most C of the C+1 are taken.

    Args:
        cell: the cell; its `max_cache_size` is C.
        layer: index of the layer.
        keys: any keys of the layer, `[batch, kv_heads, *, head_dim]`, for shape, dtype and device.
        group: query heads that share a key/value head.
        slots: pairs that there is room for; by default C+1.
        speeds: how rotary positions turn the keys, as `rotary.speeds` gives them.
        foresight: what the full cache saw of the text, for a policy that foresees.

    Attributes:
        units: rows of a sequence: 1, or the number of key/value heads.
        owning: key/value heads whose pairs are in one row's slots, each in its own: 1 unless they share out the slots.
        held_keys, held_values: `Vectors` of shape `[rows, heads, C+1]`, with the key/value heads of a row, and each
            with its format.
        positions: int32 `[rows, C+1]`.
        owners: int32 `[rows, slots]`, the key/value head of each slot's pair; None unless heads share out the slots.
        spread: float32 `[rows, kv_heads + 1]`, of each head the sum of its queries' entropies in nats, and last how
            many queries they are of, all with the cell's decay; None unless scope=entropy.
        counts: float32 `[rows, C+1]`, tokens folded into a pair; None unless the cell's fate counts them.
        items: int32 `[rows, C+1, ...]`; None where the policy reads them off the positions.
        seen: int32 `[batch]`, tokens appended so far: the next token's position.
        policy: the policy, with its own tensors.
        fate: the fate of its victims.
        prepared: what an execution has made of these tensors to save itself work at the next token: views of them, and
            on a GPU a captured step with the memory that it works in.
    """

    def __init__(
        self,
        cell: CacheConfig,
        layer: int,
        keys: torch.Tensor,
        group: int = 1,
        slots: int | None = None,
        speeds: torch.Tensor | None = None,
        foresight: Foresight | None = None,
    ) -> None:
        assert cell.max_cache_size is not None
        batch, kv_heads, _, head_dim = keys.shape
        self.cell, self.layer, self.foresight = cell, layer, foresight
        self.speeds = None if speeds is None else speeds.to(keys.device)
        self.units = kv_heads if cell.scope == "head" else 1
        self.owning = kv_heads if cell.shared_out else 1
        rows, heads = batch * self.units, kv_heads // self.units // self.owning
        slots = (slots or cell.max_cache_size + 1) * self.owning
        key_format, value_format = formats_of(cell.store, cell.store_group, head_dim)
        self.held_keys = Vectors(key_format, (rows, heads, slots), keys, transposed=True)
        self.held_values = Vectors(value_format, (rows, heads, slots), keys)
        self.positions = torch.full((rows, slots), -1, dtype=torch.int32, device=keys.device)
        self.owners = torch.zeros_like(self.positions) if cell.shared_out else None
        self.spread = None
        if cell.scope == "entropy":
            self.spread = torch.zeros(rows, self.owning + 1, dtype=torch.float32, device=keys.device)
        self.fate = FATES[cell.strategy]
        self.prepared: Any = None
        self.counts = torch.ones(rows, slots, dtype=torch.float32, device=keys.device) if self.fate.counts else None
        self.seen = torch.zeros(batch, dtype=torch.int32, device=keys.device)
        self.columns = 0  # Tokens so far, padding included: a GPU has to be asked for `seen`, and not for this.
        place = Place(rows, slots, heads * group, head_dim, self._stream(), keys.device, foresight, self.owning)
        self.policy = POLICIES[cell.importance](cell, place)
        shape = self.policy.item_shape
        self.items = None
        if shape is not None:
            self.items = torch.zeros(rows, slots, *shape, dtype=torch.int32, device=keys.device)

    def _stream(self) -> Stream:
        if self.cell.scope != "head":
            return self.layer
        return tuple(head_stream(self.layer, head) for head in range(self.units))

    @property
    def keys(self) -> torch.Tensor:
        """The keys as queries see them, `[rows, heads, C+1, head_dim]`."""
        return self.held_keys.read()

    @property
    def values(self) -> torch.Tensor:
        """The values, likewise."""
        return self.held_values.read()

    @property
    def exact(self) -> bool:
        """Whether keys and values are kept as they are."""
        return self.held_keys.format.exact

    def pairs(self) -> dict[str, torch.Tensor]:
        """The tensors that hold the pairs, by their names in the ledger."""
        held = {"keys": self.held_keys, "values": self.held_values}
        return {
            kind + name: part
            for kind, vectors in held.items()
            for name, part in zip(vectors.format.names, vectors.parts, strict=True)
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor that the layer owns, by its name in the ledger, the rows or the batch leading."""
        named = self.pairs() | {"positions": self.positions, "seen": self.seen}
        optional = {"owners": self.owners, "spread": self.spread, "counts": self.counts, "items": self.items}
        return named | {k: t for k, t in optional.items() if t is not None} | self.policy.tensors()

    def arrive(self, call: Call) -> Arriving:
        """The pairs of a call as they are kept: what queries see of a pair, its own first, is what is stored."""
        of_keys, of_values = self.held_keys.format, self.held_values.format
        keys, values = of_keys.encode(self.split(call.k)), of_values.encode(self.split(call.v))
        return Arriving(keys, values, of_keys.decode(keys), of_values.decode(values))

    def split(self, heads: torch.Tensor) -> torch.Tensor:
        """Heads `[batch, heads, ...]`, of keys or of queries, by row: `[rows, heads of a row, ...]`."""
        return heads if self.units == 1 else heads.unflatten(1, (self.units, -1)).flatten(0, 1)

    def by_row(self, of_sequence: torch.Tensor) -> torch.Tensor:
        """What is said of each sequence, `[batch, ...]`, said of each row."""
        return of_sequence if self.units == 1 else of_sequence.repeat_interleave(self.units, 0)

    def show(
        self, positions: torch.Tensor, tokens: torch.Tensor | None, keys: torch.Tensor, values: torch.Tensor
    ) -> Pairs:
        """Pairs as the policy may see them; the arguments are as in `Pairs`."""
        shown = self.policy.observes
        return Pairs(
            positions,
            tokens if "tokens" in shown else None,
            keys if "keys" in shown else None,
            values if "values" in shown else None,
        )

    def tags(self) -> torch.Tensor:
        """The policy's tags of what every slot holds now; anything for a free slot."""
        names = self.names()
        items = names.clamp(min=0) if self.items is None else self.items.long()
        observes = self.policy.observes  # What is quantised is read only where it is wanted.
        keys, values = (self.keys if "keys" in observes else None), (self.values if "values" in observes else None)
        return self.policy.tags(items, Pairs(names, None, keys, values))

    def importance(self, age: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
        """Importance of every slot, float32 `[rows, slots]`, of pairs of given ages; anything for a free one.

        An estimate that is not a number is below all that are: a defect in the numbers must not protect a pair.
        """
        estimate = self.policy.estimate(tags)
        importance = estimate / (age + 1) if self.cell.normalize == "age" else estimate
        return importance.masked_fill(importance.isnan(), float("-inf"))

    def names(self) -> torch.Tensor:
        """What tells a row's pairs apart and says which is older, int64 `[rows, slots]`, -1 for a free slot.

        The position, and where heads share out the slots the position times the number of heads plus the owner.
        """
        positions = self.positions.long()
        if self.owners is None:
            return positions
        return torch.where(positions < 0, -1, positions * self.owning + self.owners)

    def select(self, sequences: torch.Tensor) -> None:
        """Make the batch the given sequences of it, by new tensors: beam search reorders and repeats them."""
        rows, self.prepared = by_unit(sequences, self.units), None
        for vectors in (self.held_keys, self.held_values):
            vectors.select(rows)
        for name in ("positions", "owners", "spread", "counts", "items"):
            tensor = getattr(self, name)
            if tensor is not None:
                setattr(self, name, tensor[rows])
        self.seen = self.seen[sequences]
        self.policy.select(rows)


def by_unit(sequences: torch.Tensor, units: int) -> torch.Tensor:
    """The rows of sequences, all of which have so many: int64 `[sequences · units]` of indices `[sequences]`."""
    return (sequences.long()[:, None] * units + torch.arange(units, device=sequences.device)).flatten()
