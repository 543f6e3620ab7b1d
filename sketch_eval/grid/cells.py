"""Cells by name, and which of them are one computation (docs/design.md §7)."""

from __future__ import annotations

from typing import Any

from sketch_eval.config import CONTROLS, CacheConfig
from sketch_eval.policies import FATES, POLICIES
from sketch_eval.policies.base import ARGUMENTS

FULL = CacheConfig(max_cache_size=None)


def depends_on(cell: CacheConfig, field: str) -> bool:
    """Whether a cell's numbers depend on an argument of its policy's own, such as `width` or `seed`."""
    reads = POLICIES[cell.importance].reads | ({"decay"} if cell.scope == "entropy" else set())
    return cell.max_cache_size is not None and field in reads


def computation(cell: CacheConfig) -> CacheConfig:
    """The cell with the default in every field that decides nothing in it: equal for cells that compute the same.

    `scope` is never left out: with scope=head a window keeps the same pairs, but the positions of each head are stored,
    and the ledger counts them.
    """
    unread = {} if cell.quantised else {"store_group": CacheConfig.model_fields["store_group"].default}
    if cell.max_cache_size is None:
        kept = {"store": cell.store, "store_group": cell.store_group, "centred": cell.centred and not cell.untouched}
        return FULL.model_copy(update=kept | unread)
    unread |= {field: CacheConfig.model_fields[field].default for field in ARGUMENTS if not depends_on(cell, field)}
    return cell.model_copy(update=unread | {"topk": cell.visible})


def cell_kind(cell: CacheConfig) -> str:
    """`full`, `control` (docs/design.md §4) or `sketch`."""
    if cell.untouched:
        return "full"
    if cell.max_cache_size is None:
        return "control"
    return "sketch" if POLICIES[cell.importance].sketched else "control"


def cell_name(cell: CacheConfig) -> str:
    """A cell without its cap and seed, in a reader's words: `window`, `count_min 512×4 topk32`, `exact aggregate`."""
    if cell.max_cache_size is None:
        head = "full" if cell.untouched else cell.store
        parts = [head, *(_unlike_default(cell, "store_group") if cell.quantised else [])]
        return " ".join(parts if cell.untouched else [*parts, *_unlike_default(cell, "centred")])
    head, spoken = cell.importance, {"importance"}
    if cell_kind(cell) == "sketch":
        head += f" {cell.width}×{cell.depth}"
    scope = CacheConfig.model_fields["scope"].default
    for control, changes in CONTROLS.items():
        # The control that says most of the cell: h2o rather than exact; `h2o scope=layer` is h2o too.
        told = {field: value for field, value in changes.items() if field != "scope"}
        if len(told) >= len(spoken) and all(getattr(cell, field) == value for field, value in told.items()):
            head, spoken, scope = control, set(told), changes.get("scope", scope)
    parts = [head]
    if FATES[cell.strategy].counts:
        parts.append(cell.strategy)
    elif cell.topk is not None:
        parts.append(f"topk{cell.topk}")
    for field in ("item", "decay", "conservative"):
        if depends_on(cell, field) and field not in spoken:
            parts += _unlike_default(cell, field)
    if cell.scope != scope:
        parts.append(f"scope={cell.scope}")
    for field in ("sinks", "recent", "normalize"):
        if field not in spoken:
            parts += _unlike_default(cell, field)
    parts += _unlike_default(cell, "store")
    if cell.quantised:
        parts += _unlike_default(cell, "store_group")
    return " ".join([*parts, *_unlike_default(cell, "centred")])


def _unlike_default(cell: CacheConfig, field: str) -> list[str]:
    value = getattr(cell, field)
    return [] if value == CacheConfig.model_fields[field].default else [f"{field}={value}"]


def cell_arguments(cell: CacheConfig) -> dict[str, Any]:
    """What to write after `--model_args` for a cell: the fields that are not at their defaults, and the cap."""
    given = {field: value for field, value in cell.model_dump().items() if _unlike_default(cell, field)}
    return {"max_cache_size": cell.max_cache_size} | given
