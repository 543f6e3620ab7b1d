"""What each cell of a grid is compared with (docs/design.md §7)."""

from __future__ import annotations

from typing import Any

from sketch_eval.config import CONTROLS, CacheConfig
from sketch_eval.grid.cells import computation
from sketch_eval.grid.grid import Grid
from sketch_eval.leaderboard.columns import CEILING, OTHERS


class Compared:
    """What the cells of a grid are compared with.

    Args:
        grid: the grid.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        cells = [(cell, cell.model_dump().items()) for cell in grid.expand()]
        window = {"strategy": "topk", "topk": None, **CONTROLS["window"]}.items()
        ceiling = {"strategy": "topk", "topk": None, "normalize": "none", **CONTROLS["clairvoyant"]}.items()
        # Whatever a grid says of what decides nothing in them.
        self._windows = {size(cell): computation(cell) for cell, fields in cells if window <= fields}
        self._ceilings = {(*size(cell), cell.scope): computation(cell) for cell, fields in cells if ceiling <= fields}

    def of(self, cell: CacheConfig) -> dict[str, CacheConfig]:
        """The cells that one is compared with and that compute something else.

        They are the `window` of its cap and store, the cell itself with `exact` scores, the grid's reference at its
        cap or its twin, and the clairvoyant of its cap, store and scope.
        """
        exact = cell.model_copy(update={"conservative": False, **CONTROLS["exact"]})
        ceiling = self._ceilings.get((*size(cell), cell.scope))
        cells = (self._windows.get(size(cell)), exact, self.grid.reference_of(cell), ceiling)
        return {
            which: other
            for which, other in zip((*OTHERS, CEILING), cells, strict=True)
            if other is not None and computation(other) != computation(cell)
        }


def size(cell: CacheConfig) -> tuple[Any, ...]:
    """What cells are compared at: the cap, and how pairs are kept; full numbers are alike, centred or not."""
    same = computation(cell)
    return cell.max_cache_size, cell.store, same.store_group, same.centred and cell.store != "float"
