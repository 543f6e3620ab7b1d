"""What was evicted, by request and task: whether a bound was bound at all (docs/design.md §1, `binding`)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass

from transformers import Cache

from sketch_eval.cache import SketchCache


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


def passed(cache: Cache | None, sequence: int, columns: int | None, rounded: bool) -> Count:
    """What one sequence of a cache, traced where it is bounded, counted over its first columns of input.

    rounded: whether it keeps pairs in other numbers than the model's own.
    """
    total = Count(rounded=int(rounded))
    if not isinstance(cache, SketchCache):
        return total
    rows = slice(sequence * cache.units, (sequence + 1) * cache.units)
    victims, survivors, hidden = cache.decisions()[:, :, rows, :columns].unbind(1)
    total.evictions = int((victims >= 0).sum())
    total.folds = int((survivors >= 0).sum())
    total.hidden = int(hidden.sum())
    return total


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
