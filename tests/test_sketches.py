"""The guarantees of the sketches, against exact truth."""

from __future__ import annotations

import math
from typing import Any, TypedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sketch_eval import UsageError
from sketch_eval.hashing import SignHash, splitmix64, uniform
from sketch_eval.policies.sketched import SKETCHED
from sketch_eval.sketches import CountMinSketch, CountSketch, RaceSketch, Sketch

UNIVERSE = 40
KINDS = [policy.kind for policy in SKETCHED]

batches = st.lists(
    st.lists(st.tuples(st.integers(0, UNIVERSE - 1), st.floats(0, 8, width=16)), min_size=1, max_size=12), max_size=8
)
shapes = st.fixed_dictionaries({"width": st.integers(1, 20), "depth": st.integers(1, 5), "seed": st.integers(0, 2**40)})


class Size(TypedDict):
    width: int
    depth: int


class Shape(Size):
    seed: int


def feed(sketch: Sketch, stream: list[list[tuple[int, float]]]) -> torch.Tensor:
    """Update with batches of (item, weight); return the true weights float32 `[UNIVERSE]`."""
    truth = torch.zeros(UNIVERSE)
    for batch in stream:
        items, weights = (torch.tensor(column) for column in zip(*batch, strict=True))
        sketch.update(items[None], weights[None].float())
        truth.index_add_(0, items, weights.float())
    return truth


def estimates(sketch: Sketch) -> torch.Tensor:
    return sketch.estimate(torch.arange(UNIVERSE)[None])[0]


@given(stream=batches, shape=shapes)
def test_count_min_is_never_under_and_conservative_lies_between_it_and_the_truth(
    stream: list[list[tuple[int, float]]], shape: Shape
) -> None:
    plain, conservative = CountMinSketch(**shape), CountMinSketch(**shape, conservative=True)
    truth = feed(plain, stream)
    feed(conservative, stream)
    # Weights are multiples of 2^-24 below 2^10: sums of them in another order may round, by a part in 2^20.
    slack = 1e-5 * (1 + truth.sum())
    assert (estimates(conservative) >= truth - slack).all()
    assert (estimates(plain) >= estimates(conservative) - slack).all()


def test_count_min_breaks_its_error_bound_as_seldom_as_promised() -> None:
    # A few heavy items: one collision with one of them breaks the bound, and most items meet none.
    items, weights = torch.arange(10)[None], torch.ones(1, 10)
    truth = torch.zeros(1000).index_add_(0, items[0], weights[0])
    broken = []
    for seed in range(300):
        sketch = CountMinSketch(width=60, depth=2, seed=seed)
        sketch.update(items, weights)
        assert torch.allclose(sketch.error_bound(), torch.tensor(math.e / 60 * 10))
        over = sketch.estimate(torch.arange(1000)[None])[0] - truth
        broken.append((over > sketch.error_bound()).float().mean())
    rate = torch.stack(broken).mean()
    collision = 1 - (1 - 1 / 60) ** 10
    assert rate <= math.exp(-2)
    assert rate == pytest.approx(collision**2, rel=0.15)  # And as often as independent rows must break it.


@pytest.mark.parametrize("kind", [CountMinSketch, CountSketch])
def test_merged_sketches_are_the_sketch_of_both_streams(kind: type[Sketch]) -> None:
    left, right, both = (kind(16, 3, seed=5) for _ in range(3))
    first, second = [[(1, 2.0), (30, 0.5)], [(1, 1.0)]], [[(7, 4.0), (30, 1.5)]]
    feed(left, first), feed(right, second), feed(both, first + second)
    left.merge(right)
    assert torch.equal(left.table, both.table)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (CountMinSketch(32, 3), "width=32"),
        (CountMinSketch(16, 2), "depth=2"),
        (CountMinSketch(16, 3, seed=1), "seed=1"),
        (CountMinSketch(16, 3, stream=1), "stream=1"),
        (CountMinSketch(16, 3, batch=2), "batch=2"),
        (CountSketch(16, 3), "kind='count_sketch'"),
        (CountMinSketch(16, 3, conservative=True), "conservative"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_merge_refuses_a_sketch_whose_cells_mean_something_else(other: Sketch, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        CountMinSketch(16, 3).merge(other)  # type: ignore[arg-type]


@pytest.mark.parametrize("sketch", [CountMinSketch(8, 3), CountMinSketch(8, 3, conservative=True), CountSketch(8, 3)])
def test_items_twice_in_a_batch_add_up_and_batches_do_not_touch_each_other(sketch: Sketch) -> None:
    own: dict[str, Any] = {"conservative": True} if getattr(sketch, "conservative", False) else {}
    double = type(sketch)(8, 3, batch=2, **own)
    double.update(torch.tensor([[3, 3, 9], [5, 5, 5]]), torch.tensor([[1.0, 2.0, 0.0], [1.0, 1.0, 1.0]]))
    got = double.estimate(torch.tensor([[3], [5]]))
    assert got.tolist() == [[3.0], [3.0]]


@pytest.mark.parametrize("kind", KINDS)
def test_decay_scales_every_estimate(kind: type[Sketch]) -> None:
    sketch = kind(16, 4, batch=2)
    items = torch.randint(
        0, 8, (2, 30, 4) if kind is RaceSketch else (2, 30), generator=torch.Generator().manual_seed(1)
    )
    sketch.update(items, torch.rand(2, 30, generator=torch.Generator().manual_seed(2)))
    before = sketch.estimate(items)
    sketch.scale(0.5)
    assert torch.equal(sketch.estimate(items), before * 0.5)
    sketch.scale(torch.tensor([1.0, 0.0]))
    assert torch.equal(sketch.estimate(items), before * torch.tensor([[0.5], [0.0]]))


def test_count_sketch_is_unbiased_over_seeds() -> None:
    stream = [[(item, float(item % 5 + 1)) for item in range(UNIVERSE)]]
    errors = []
    for seed in range(400):
        sketch = CountSketch(32, 1, seed=seed)
        truth = feed(sketch, stream)
        errors.append((estimates(sketch) - truth).mean())
    mean = torch.stack(errors)
    assert abs(mean.mean()) < 3 * mean.std() / len(errors) ** 0.5
    assert mean.std() > 0.01


def test_race_counts_near_vectors_together_and_far_ones_apart() -> None:
    sketch = RaceSketch(64, 32)
    vector = torch.randn(1, 1, 24, generator=torch.Generator().manual_seed(3))
    sketch.update(sketch.encode(vector), torch.ones(1, 1))
    near = vector + 0.05 * torch.randn(1, 1, 24, generator=torch.Generator().manual_seed(4))
    read = [sketch.estimate(sketch.encode(v)).item() for v in (vector, near, -vector)]
    assert read[0] == 1.0
    assert read[1] > 0.7
    assert read[2] == 0.0


def test_a_sketch_of_a_wanted_error_is_as_small_as_can_be() -> None:
    sketch = CountMinSketch.for_error(epsilon=0.01, delta=0.02)
    assert (sketch.width, sketch.depth) == (272, 4)
    assert sketch.nbytes == 272 * 4 * 4


@pytest.mark.parametrize("arguments", [{"width": 0, "depth": 1}, {"width": 1, "depth": 0}])
def test_an_empty_sketch_is_refused(arguments: Size) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        CountMinSketch(**arguments)


def test_hashes_are_the_same_everywhere() -> None:
    """Known answers: a table made on another platform, or by another version, must be the same table."""
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # The generator's first output for seed 0.
    cells = CountMinSketch(512, 2, seed=7, stream=3).locate(torch.tensor([[0, 1, 2**31 - 2]]))
    assert cells.tolist() == [[[442, 55], [387, 277], [497, 345]]]
    assert uniform(torch.arange(3), seed=7, stream=3).tolist() == [
        0.4200313687324524,
        0.8151272535324097,
        0.10992944240570068,
    ]
    assert SignHash(8, 5, 2, seed=7, stream=3)(torch.eye(8)[:2]).tolist() == [[15, 17], [6, 28]]


def test_random_draws_are_uniform_and_differ_by_seed_and_layer() -> None:
    draws = torch.stack([uniform(torch.arange(4096), seed, layer) for seed in range(2) for layer in range(2)])
    assert draws.min() >= 0
    assert draws.max() < 1
    assert torch.allclose(draws.mean(1), torch.tensor(0.5), atol=0.02)
    assert torch.allclose(draws.var(1), torch.tensor(1 / 12), atol=0.004)
    assert (torch.corrcoef(draws) - torch.eye(4)).abs().max() < 0.06


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_that_is_not_the_sketchs_is_refused(kind: type[Sketch]) -> None:
    """torch would reach the first streams alone, and say nothing."""
    sketch = kind(8, 2, batch=2)
    items = torch.zeros(1, 3, 2, dtype=torch.long) if kind is RaceSketch else torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(UsageError, match="items of 1 streams: the sketch has 2"):
        sketch.update(items, torch.ones(1, 3))
    with pytest.raises(UsageError, match="items of 1 streams: the sketch has 2"):
        sketch.estimate(items)
    both = items.expand(2, *items.shape[1:])
    with pytest.raises(UsageError, match=r"weights of shape \(2, 1\): items are of \(2, 3\)"):
        sketch.update(both, torch.ones(2, 1))
    assert not sketch.table.any()
    sketch.update(both, torch.ones(2, 3))
    assert (sketch.table.sum(-1).abs() == 3).all()


@pytest.mark.parametrize("conservative", [False, True])
@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_a_weight_below_nothing_is_refused_by_a_count_min(conservative: bool, weight: float) -> None:
    sketch = CountMinSketch(8, 2, conservative=conservative)
    with pytest.raises(UsageError, match=f"weights={weight}: a Count-Min Sketch takes none below 0"):
        sketch.update(torch.tensor([[1, 2]]), torch.tensor([[1.0, weight]]))
    assert not sketch.table.any()
