"""importance=adaptive: sketches of one budget of bytes whose sizes move, and what they promise while they do."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sketch_eval.call import Call
from sketch_eval.config import CacheConfig
from sketch_eval.execution import advance
from sketch_eval.hashing import head_stream
from sketch_eval.policies import Attention, Pairs, Place
from sketch_eval.policies.adaptive import AdaptiveCountMin, widths_of
from sketch_eval.sketches import CountMinSketch
from sketch_eval.state import LayerState

HEADS, WIDTH, DEPTH, SLOTS = 3, 16, 3, 24

PARTS = st.lists(st.floats(1e-6, 1.0), min_size=HEADS, max_size=HEADS).map(lambda each: torch.tensor([each]))


def policy() -> AdaptiveCountMin:
    cell = CacheConfig(importance="adaptive", scope="entropy", width=WIDTH, depth=DEPTH, decay=1.0, seed=4)
    return AdaptiveCountMin(cell, Place(1, SLOTS, HEADS, 8, 2, torch.device("cpu"), owning=HEADS))


NAMES = torch.arange(SLOTS)[None]  # Position times the number of heads plus the owner, of eight positions.


def give(sketch: AdaptiveCountMin, mass: torch.Tensor) -> None:
    sketch.account(sketch.tags(NAMES, Pairs(NAMES)), Attention(torch.tensor([True]), mass=mass))


@given(parts=PARTS, width=st.integers(1, 2**30))
def test_sizes_are_powers_of_two_that_grow_with_the_parts_and_never_exceed_the_budget(
    parts: torch.Tensor, width: int
) -> None:
    widths = widths_of(parts / parts.sum(), HEADS * width)[0].tolist()
    assert sum(widths) <= HEADS * width
    assert all(size & (size - 1) == 0 for size in widths)
    assert 2 * sum(widths) > HEADS * (width - 1)  # At least half of what there is, and mostly more.
    order = sorted(range(HEADS), key=lambda head: float(parts[0, head]))
    assert all(widths[few] <= 2 * widths[many] for few, many in pairwise(order))


def test_equal_parts_take_the_whole_budget() -> None:
    assert widths_of(torch.full((1, 4), 0.25), 4 * 128).tolist() == [[128] * 4]
    assert widths_of(torch.tensor([[0.5, 0.25, 0.25]]), 3 * 128).tolist() == [[256, 64, 64]]


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


def test_each_head_has_a_sketch_of_its_own_which_to_widen_and_narrow_again_leaves_as_it_was() -> None:
    sketch, mass = policy(), torch.rand(1, SLOTS, generator=torch.Generator().manual_seed(1))
    assert sketch.widths.tolist() == [[16, 16, 16]]
    give(sketch, mass)
    positions = torch.arange(SLOTS // HEADS)[None]
    for head in range(HEADS):
        alone = CountMinSketch(WIDTH, DEPTH, seed=4, stream=head_stream(2, head))
        alone.update(positions, mass[:, head::HEADS])
        found = sketch.estimate(sketch.tags(NAMES, Pairs(NAMES)))[:, head::HEADS]
        torch.testing.assert_close(found, alone.estimate(positions))
    before = sketch.sketch.table.clone()
    other = policy()
    give(other, mass)
    other.share_out(torch.tensor([[0.98, 0.01, 0.01]]))
    kept = other.sketch.table[:, :, : int(other.widths[0, 0])].unflatten(2, (-1, WIDTH))
    assert torch.equal(kept, before[:, :, None, :WIDTH].expand_as(kept))
    other.share_out(torch.full((1, HEADS), 1 / HEADS))
    assert torch.equal(other.sketch.table[:, :, :WIDTH], before[:, :, :WIDTH])


def test_a_head_whose_numbers_are_none_takes_no_other_sequence_along() -> None:
    generator = torch.Generator().manual_seed(3)
    k, v, q = (torch.randn(2, 2, 30, 8, generator=generator) for _ in range(3))
    tokens, valid = torch.zeros(2, 30, dtype=torch.int64), torch.ones(2, 30, dtype=torch.bool)
    cell = CacheConfig(importance="adaptive", scope="entropy", max_cache_size=8, sinks=1, recent=2, width=16, depth=2)
    sound, _ = advance("auto", LayerState(cell, 0, k), Call(q, k, v, tokens, valid, 1.0))
    broken = k.clone()
    broken[0, 1, 12] = float("nan")
    output, _ = advance("auto", LayerState(cell, 0, k), Call(q, broken, v, tokens, valid, 1.0))
    torch.testing.assert_close(output[1], sound[1])
    assert output[0, :12].isfinite().all()
