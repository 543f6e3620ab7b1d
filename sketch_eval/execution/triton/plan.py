"""What the kernel serves, and the sizes that it is compiled with: all that can be known without Triton."""

from __future__ import annotations

from dataclasses import dataclass

from sketch_eval.config import CacheConfig

COUNT_MIN, EXACT, LAST, FIXED, KNORM = range(5)

SOURCES = {
    "count_min": COUNT_MIN,
    "exact": EXACT,
    "last": LAST,
    "recency": FIXED,
    "random": FIXED,
    "surprisal": FIXED,
    "knorm": KNORM,
}
"""The policies that the kernel knows, and what it calls them. FIXED: a pair's tags are its estimate, for good."""

FATES = ("topk", "aggregate")
"""The fates that it knows."""

LARGEST_CAP, LARGEST_HEAD, LONGEST = 960, 256, 2**21
"""Pairs of a store, numbers of a head, and tokens of a text: its choices pack a column in 10 bits and a position in
21."""

LOG_GAIN, LOG_REACH = 40, 104
"""A sketch's table, which holds `gain` times its weights, is divided before a chunk where the gain is more than
2^LOG_GAIN. The gain is then decay^-chunk times that at the most at the end of the chunk. Up to 2^LOG_REACH a float32
holds the weights times it; a decay with which it would be more has the table looked after at every token."""

VARYING = [
    *("length", "places", "slots", "width", "units"),
    *("sinks", "recent", "visible", "visible_sinks", "visible_recent", "zero"),
]
"""Numbers that the kernel is not compiled anew for."""

CHUNK, BLOCK = 32, 32
"""Tokens that arrive together, and columns that a matrix product takes: at least, for wider rows have more warps."""


@dataclass(frozen=True)
class Plan:
    """The sizes of one compiled kernel.

    Attributes:
        source: of `SOURCES`.
        fold, hide: whether victims are folded, and whether queries see a part of the pairs.
        fades: whether a sketch fades so fast that its table is looked after at every token.
        cap: pairs after each token.
        heads: key/value heads of a row; queries: its query heads; head_dim: numbers of a head.
        chunk: tokens that arrive together.
        columns: pairs that the choices are made among at once, a power of two: those of the store, of a chunk and,
            where victims are folded, those that folding makes.
        block: columns that a matrix product takes at once.
        depth: rows of the sketch; 1 where there is none.
        warps: warps of a program.
    """

    source: int
    fold: bool
    hide: bool
    fades: bool
    cap: int
    heads: int
    queries: int
    head_dim: int
    chunk: int
    columns: int
    block: int
    depth: int
    warps: int

    @property
    def used(self) -> int:
        """Columns that are ever taken."""
        return self.cap + (1 + self.fold) * self.chunk


def plan_for(cell: CacheConfig, heads: int, queries: int, head_dim: int, wide: bool) -> Plan:
    """The sizes for a cell and the heads of a row; `wide` for float32, whose products take more registers."""
    assert cell.max_cache_size is not None
    cap, fold = cell.max_cache_size, cell.strategy == "aggregate"
    # A thread has 16 numbers of a step's largest tile, and 4 columns where a step does much with each: measured best on
    # an H100, of all powers of two (benchmarks/gpu.md). Few warps have no registers for a sketch and a long chunk,
    # least where vectors are long or in float32: these chunks are short by what the compiler counts, and unmeasured.
    source = SOURCES[cell.importance]
    simple = not fold and source != COUNT_MIN
    spilling = cap <= (4 if head_dim > 64 else 3) * CHUNK and (not fold or head_dim > 64)
    short = cap < CHUNK or (source == COUNT_MIN and queries < 8 and (wide or spilling))
    chunk = CHUNK // 2 if short else CHUNK
    columns = power_of_two(cap + (2 if fold else 1) * chunk)
    threads = max(power_of_two(queries) * columns // 16, 0 if simple else columns // 4)
    warps = max(threads // 32, head_dim // 64, 4 if wide else 1)
    warps = min(power_of_two(warps), 8)
    block = min(max(BLOCK * 32 * warps // power_of_two(head_dim), BLOCK), columns)
    fades = source == COUNT_MIN and cell.decay**chunk < 2.0 ** (LOG_GAIN - LOG_REACH)
    return Plan(
        source, fold, cell.visible is not None, fades, cap, heads, queries, head_dim, chunk, columns, block,
        cell.depth if source == COUNT_MIN else 1, warps,
    )  # fmt: skip


def power_of_two(number: int) -> int:
    """The least power of two that is not below a number."""
    return 1 << max(number - 1, 0).bit_length()
