"""importance=adaptive: sketches of one budget of bytes whose sizes move, and what they promise while they do."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sketch_eval.config import CacheConfig
from sketch_eval.policies import Attention, Pairs, Place
from sketch_eval.policies.adaptive import AdaptiveCountMin, width_of
from sketch_eval.sketches import CountMinSketch

HEADS, WIDTH, DEPTH, SLOTS = 3, 16, 3, 24

PARTS = st.lists(st.floats(1e-6, 1.0), min_size=HEADS, max_size=HEADS).map(lambda each: torch.tensor([each]))


def policy() -> AdaptiveCountMin:
    cell = CacheConfig(importance="adaptive", scope="entropy", width=WIDTH, depth=DEPTH, decay=1.0, seed=4)
    return AdaptiveCountMin(cell, Place(1, SLOTS, HEADS, 8, 2, torch.device("cpu"), owning=HEADS))


NAMES = torch.arange(SLOTS)[None]  # Position times the number of heads plus the owner, of eight positions.


def give(sketch: AdaptiveCountMin, mass: torch.Tensor) -> None:
    sketch.account(sketch.tags(NAMES, Pairs(NAMES)), Attention(torch.tensor([True]), mass=mass))


@given(parts=PARTS, width=st.integers(1, 600))
def test_sizes_are_powers_of_two_that_never_exceed_the_budget(parts: torch.Tensor, width: int) -> None:
    widths = width_of(parts / parts.sum(), HEADS * width)[0].tolist()
    assert sum(widths) <= HEADS * width
    assert all(size & (size - 1) == 0 for size in widths)
    assert [a <= b for a, b in zip(sorted(widths), sorted(widths)[1:], strict=False)] == [True] * (HEADS - 1)
    order = sorted(range(HEADS), key=lambda head: float(parts[0, head]))
    assert [widths[head] for head in order] == sorted(widths)


@given(moves=st.lists(PARTS, min_size=1, max_size=8), seed=st.integers(0, 99))
@settings(deadline=None)
def test_estimates_are_never_below_the_truth_whatever_the_sizes_do(moves: list[torch.Tensor], seed: int) -> None:
    sketch, truth = policy(), torch.zeros(1, SLOTS)
    generator = torch.Generator().manual_seed(seed)
    size = sketch.sketch.nbytes
    for parts in moves:
        mass = torch.rand(1, SLOTS, generator=generator)
        give(sketch, mass)
        truth += mass
        sketch.share_out(parts / parts.sum())
        assert (sketch.estimate(sketch.tags(NAMES, Pairs(NAMES))) >= truth - 1e-4).all()
    assert sketch.sketch.nbytes == size == 4 * DEPTH * HEADS * WIDTH


def test_a_sketch_that_becomes_narrower_is_what_it_would_have_counted_at_that_width() -> None:
    """Each head's, as a Count-Min Sketch of its own positions."""
    sketch, mass = policy(), torch.rand(1, SLOTS, generator=torch.Generator().manual_seed(1))
    sketch.share_out(torch.tensor([[0.9, 0.05, 0.05]]))
    give(sketch, mass)
    assert sketch.widths.tolist() == [[32, 2, 2]]
    sketch.share_out(torch.tensor([[0.2, 0.4, 0.4]]))
    assert sketch.widths.tolist() == [[8, 16, 16]]
    alone = CountMinSketch(8, DEPTH, seed=4, stream=2)
    positions = torch.arange(SLOTS // HEADS)[None]
    alone.update(positions, mass[:, ::HEADS])
    found = sketch.estimate(sketch.tags(NAMES, Pairs(NAMES)))[:, ::HEADS]
    torch.testing.assert_close(found, alone.estimate(positions))
    torch.testing.assert_close(sketch.sketch.table[:, :, :8], alone.table)
