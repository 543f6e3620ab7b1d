"""Rankings from the literature: each on a case that was worked out by hand from its paper."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sketch_eval.config import CacheConfig
from sketch_eval.policies import POLICIES, Attention, Pairs, Place, Policy
from sketch_eval.policies.sketched import RaceOfQueries


def policy(importance: str, slots: int, head_dim: int = 2, **cell: Any) -> Policy:
    """Of one row with one head."""
    place = Place(rows=1, slots=slots, queries=1, head_dim=head_dim, stream=0, device=torch.device("cpu"))
    return POLICIES[importance](CacheConfig(importance=importance).model_copy(update=cell), place)


def pairs(keys: list[list[float]], values: list[list[float]] | None = None, positions: Any = None) -> Pairs:
    at = torch.arange(len(keys)) if positions is None else torch.tensor(positions)
    return Pairs(at[None], None, torch.tensor([[keys]]), torch.tensor([[values or keys]]))


def estimates(which: Policy, held: Pairs) -> list[float]:
    return list(which.estimate(which.tags(which.items(held), held))[0].tolist())


def ask(which: Policy, held: Pairs, **seen: Any) -> None:
    which.account(which.tags(which.items(held), held), Attention(torch.tensor([True]), **seen))


def test_vatp_multiplies_accumulated_mass_by_the_l1_norm_of_the_value() -> None:
    which = policy("vatp", 2, decay=0.5)
    held = pairs([[1.0, 0.0], [0.0, 1.0]], values=[[3.0, -4.0], [0.5, 0.5]])
    ask(which, held, mass=torch.tensor([[0.25, 0.75]]))
    ask(which, held, mass=torch.tensor([[0.125, 0.875]]))
    assert estimates(which, held) == pytest.approx([(0.125 + 0.125) * 7, (0.375 + 0.875) * 1])


def test_snapkv_pools_the_last_queries_masses_over_five_positions() -> None:
    """Positions 0, 1, 2 and 9 are held. Of 17 queries the first has left the window."""
    which = policy("snapkv", 5)
    held = pairs([[0.0, 0.0]] * 5, positions=[0, 1, 2, 9, -1])
    ask(which, held, mass=torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.0]]))
    for _ in range(16):
        ask(which, held, mass=torch.tensor([[0.5, 0.25, 0.125, 0.125, 0.0]]))
    found = estimates(which, held)
    assert found[:4] == pytest.approx([16 * 0.875 / 5] * 3 + [16 * 0.125 / 5])
    which.arrive(torch.tensor([0]))
    assert estimates(which, held)[:4] == pytest.approx([16 * 0.375 / 5] * 3 + [16 * 0.125 / 5])


def test_keydiff_keeps_what_is_unlike_the_mean_direction_of_the_held_keys() -> None:
    """Directions (1, 0), (1, 0) and (0, 1), whatever the lengths; a free slot counts for nothing."""
    held = pairs([[2.0, 0.0], [5.0, 0.0], [0.0, 3.0], [-9.0, -9.0]], positions=[0, 1, 2, -1])
    near, far = 2 / math.sqrt(5), 1 / math.sqrt(5)
    assert estimates(policy("keydiff", 4), held)[:3] == pytest.approx([1 - near, 1 - near, 1 - far], abs=1 / 8192)


def test_the_cost_of_a_fold_is_mass_times_the_distance_of_the_nearest_key() -> None:
    """Two keys at an angle whose cosine is 0.6, and one at right angles to both: a mass of 0.5, and once more half."""
    which = policy("fold_cost", 4, head_dim=3, decay=0.5)
    held = pairs([[2.0, 0.0, 0.0], [3.0, 4.0, 0.0], [0.0, 0.0, 1.0], [2.0, 0.0, 0.0]], positions=[0, 1, 2, -1])
    for _ in range(2):
        ask(which, held, mass=torch.tensor([[0.5, 0.25, 0.25, 0.0]]))
    assert estimates(which, held)[:3] == pytest.approx([0.75 * 0.4, 0.375 * 0.4, 0.375], abs=1 / 8192)
    alone = pairs([[1.0, 0.0, 0.0]] + [[0.0, 0.0, 0.0]] * 3, positions=[0, -1, -1, -1])
    assert estimates(which, alone)[0] == pytest.approx(0.75 * 2)


def test_expected_attention_is_that_of_a_gaussian_with_the_queries_moments() -> None:
    """Queries (1, 0) and (3, 0), scaled by a half: a mean of 1 and a variance of 1/4 along the first axis."""
    which = policy("expected", 3, decay=1.0)
    held = pairs([[1.0, 5.0], [-2.0, 0.0], [0.0, 0.0]], values=[[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
    for query in ([1.0, 0.0], [3.0, 0.0]):
        ask(which, held, queries=torch.tensor([[[query]]]), scaling=0.5)
    weights = [math.exp(1 + 1 / 8), math.exp(-2 + 4 / 8), 1.0]
    sizes = [5.0, 1.0, 2.0]
    expected = [weight / sum(weights) * size for weight, size in zip(weights, sizes, strict=True)]
    assert estimates(which, held) == pytest.approx(expected, rel=1e-5)


def test_a_sketch_of_queries_knows_what_a_key_would_draw_that_no_query_met() -> None:
    """Three queries of one direction: a key along it is in all their cells, one against it in none."""
    which = policy("race_queries", 2, width=256, depth=4, decay=0.5)
    held = pairs([[2.0, 4.0], [-2.0, -4.0]])
    for _ in range(3):
        ask(which, held, queries=torch.tensor([[[[1.0, 2.0]]]]))
    assert estimates(which, held) == pytest.approx([1.75, 0.0])


def test_a_sketch_of_queries_estimates_the_share_of_them_that_hash_as_a_key_does() -> None:
    """Against the exact sum over the stream: the chance that two vectors at an angle share a cell of four hyperplanes.

    Its standard error over the rows of the sketch is √(p(1-p)/depth) for one query, and no more for a sum of them.
    """
    which = policy("race_queries", 40, head_dim=64, width=16, depth=1000, decay=1.0)
    assert isinstance(which, RaceOfQueries)
    generator = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(n, 64, generator=generator) + torch.linspace(0, 2, 64) for n in (200, 40))
    keys[::2] *= -1
    held = pairs(keys.tolist())
    for query in queries:
        ask(which, held, queries=query[None, None, None])
    angles = torch.arccos(torch.nn.functional.cosine_similarity(queries[:, None], keys[None], dim=-1).clamp(-1, 1))
    shares = ((1 - angles / math.pi) ** 4).mean(0)
    found = torch.tensor(estimates(which, held)) / 200
    assert (found - shares).abs().max() < 5 * 0.5 / math.sqrt(1000)
    assert (found - shares).abs().mean() < 0.5 / math.sqrt(1000)
