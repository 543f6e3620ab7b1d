"""What was evicted, by request and task: whether a bound was bound at all (docs/design.md §1, `binding`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from transformers import Cache

from sketch_eval.cache import SketchCache
from sketch_eval.transfer import send


@dataclass
class Count:
    """Sums over layers (with scope=head and budget over their key/value heads too), and over requests.

    Attributes:
        requests: requests that the model ran; what lm-eval answers from a response cache is not among them.
        binding_requests: those for which a pair was evicted, hidden from a query, or kept in other numbers than the
            model's own.
        evictions: pairs that left a store.
        folds: those of them that were folded into another pair.
        hidden: stored pairs that a query did not see, summed over queries.
        rounded: passes of the model whose pairs were kept in other numbers than its own.
    """

    requests: int = 0
    binding_requests: int = 0
    evictions: int = 0
    folds: int = 0
    hidden: int = 0
    rounded: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(*(mine + its for mine, its in zip(vars(self).values(), vars(other).values(), strict=True)))

    def as_request(self) -> Count:
        """The count of one request out of what its passes counted."""
        binds = self.evictions > 0 or self.hidden > 0 or self.rounded > 0
        return Count(1, int(binds), self.evictions, self.folds, self.hidden, self.rounded)


def tally(cache: Cache | None, columns: Sequence[int], device: torch.device) -> torch.Tensor:
    """Evictions, folds and hidden pairs of each sequence of a cache, int64 `[sequences, 3]`, on a device.

    Args:
        cache: the cache, traced where it is bounded; any other one evicts nothing.
        columns: of each sequence, how many of its first columns of input count.
        device: where they are wanted; no GPU is waited for.
    """
    total = torch.zeros(len(columns), 3, dtype=torch.int64, device=device)
    if not isinstance(cache, SketchCache):
        return total
    ends = send(torch.tensor(columns), device).repeat_interleave(cache.units)[:, None]
    for layer in range(len(cache.layers)):
        decided = cache.trace(layer)
        within = torch.arange(decided.victims.shape[1], device=device) < ends
        each = (decided.victims >= 0, decided.survivors >= 0, decided.hidden)
        sums = [(within * one.to(device)).sum(1).unflatten(0, (-1, cache.units)).sum(1) for one in each]
        total += torch.stack(sums, 1)
    return total


def passed(tallied: torch.Tensor, rounded: bool) -> list[Count]:
    """What the pass of each sequence counts, of a `tally`.

    rounded: whether pairs were kept in other numbers than the model's own.
    """
    return [
        Count(evictions=evictions, folds=folds, hidden=hidden, rounded=int(rounded))
        for evictions, folds, hidden in tallied.tolist()
    ]


class Counts:
    """Counts by task."""

    def __init__(self) -> None:
        self.tasks: defaultdict[str, Count] = defaultdict(Count)

    def add(self, task: str, request: Count) -> None:
        """Count a request for a task."""
        self.tasks[task] += request

    def merge(self, other: Counts) -> None:
        """Add another process's counts."""
        for task, count in other.tasks.items():
            self.tasks[task] += count

    def as_dict(self) -> dict[str, object]:
        """The totals, and the same for each task under `tasks`."""
        total = sum(self.tasks.values(), Count())
        return asdict(total) | {"tasks": {task: asdict(count) for task, count in self.tasks.items()}}
