"""What the compiled loop is given, as records of arrays with their types."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba

_f, _i, _b = numba.float32, numba.int32, numba.boolean


class Tokens(NamedTuple):
    """Tokens of one sequence that arrive, beside their queries, keys and values.

    Attributes:
        valid: bool `[tokens]`.
        cells: int32 `[units, tokens, depth]`, the tokens' cells in the tables, or with LEARNED their ids; else unused.
        scores: float32 `[units, tokens]`, the tokens' first scores; unused with a sketch.
        ahead: float32 `[units, tokens, text]`, with FORESEEN the score of every position after each token.
        asked: int32 `[units, tokens, depth]`, with RACE_QUERIES the queries' cells in the tables.
    """

    valid: Any = _b[::1]
    cells: Any = _i[:, :, ::1]
    scores: Any = _f[:, ::1]
    ahead: Any = _f[:, :, ::1]
    asked: Any = _i[:, :, ::1]


class Store(NamedTuple):
    """The store of one sequence: a unit for each row of it, with `heads` key/value heads.

    Attributes:
        keys: float32 `[units, heads, head_dim, slots]`; values: float32 `[units, heads, slots, head_dim]`.
        positions: int32 `[units, slots]`; counts: float32 `[units, slots]`.
        cells: int32 `[units, slots, depth]`; scores: float32 `[units, slots]`; table: float32 `[units, depth, width]`.
        key_grids, value_grids: float32 `[units, heads, slots, groups, 2]`, scales and zeros that folding gives, where
            pairs are quantised; no groups where they are not.
        memory, moments, weight: what policies of other kinds remember, as in `prepare.Prepared`, units leading.
    """

    keys: Any = _f[:, :, :, ::1]
    values: Any = _f[:, :, :, ::1]
    positions: Any = _i[:, ::1]
    counts: Any = _f[:, ::1]
    cells: Any = _i[:, :, ::1]
    scores: Any = _f[:, ::1]
    table: Any = _f[:, :, ::1]
    key_grids: Any = _f[:, :, :, :, ::1]
    value_grids: Any = _f[:, :, :, :, ::1]
    memory: Any = _f[:, :, ::1]
    moments: Any = _f[:, :, :, ::1]
    weight: Any = _f[:, ::1]


class Rules(NamedTuple):
    """The numbers of a cell.

    Attributes:
        sinks, recent: numbers of protected tokens, for eviction, and with `visible_` for what a query sees.
        visible: pairs a query sees; 0 for all.
        speeds: float32 `[pairs]`, how rotary positions turn the keys; empty where they do not.
        key_levels, value_levels: the largest code of a quantised number; `quantise.HALF` where they are kept in
            float16, and 0 where they are kept as they are.
        group: how many quantised numbers share a grid.
    """

    scaling: Any = _f
    decay: Any = _f
    by_age: Any = _b
    conservative: Any = _b
    sinks: Any = numba.int64
    recent: Any = numba.int64
    visible: Any = numba.int64
    visible_sinks: Any = numba.int64
    visible_recent: Any = numba.int64
    speeds: Any = _f[::1]
    key_levels: Any = numba.int64
    value_levels: Any = numba.int64
    group: Any = numba.int64


class Decided(NamedTuple):
    """What is written: float32 `[tokens, query heads, head_dim]`, and int32 `[units, tokens]` as in `Trace`."""

    output: Any = _f[:, :, ::1]
    victims: Any = _i[:, ::1]
    survivors: Any = _i[:, ::1]
    hidden: Any = _i[:, ::1]


def _type(record: Any) -> numba.types.NamedTuple:
    return numba.types.NamedTuple(tuple(record()), record)


# Given in full, the types do not depend on what strides a caller's arrays happen to have: one function, compiled once.
# Queries, keys and values come with any strides, which Numba does not allow in a record.
_VECTORS = (_f[:, :, :],) * 3
SIGNATURE = numba.int64(*_VECTORS, _type(Tokens), _type(Store), _type(Rules), numba.int64, _type(Decided))
