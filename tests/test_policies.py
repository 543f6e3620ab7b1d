"""What the registry of policies and fates promises to those who read it and to those who add to it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from conftest import tiny_llama
from transformers import PreTrainedModel

from sketch_eval.cache import SketchCache
from sketch_eval.config import CacheConfig
from sketch_eval.formats import FORMATS
from sketch_eval.policies import FATES, POLICIES, Attention, Pairs, Policy
from sketch_eval.policies.base import ARGUMENTS

DOCUMENT = Path(__file__).parents[1] / "docs" / "policies.md"


def test_the_documents_tables_are_the_registrys() -> None:
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    expected = [
        f"| `{name}` | {policy.summary} | {', '.join(sorted(policy.observes)) or 'positions'} | "
        f"{', '.join(f'`{argument}`' for argument in ARGUMENTS if argument in policy.reads) or 'none'} |"
        for name, policy in POLICIES.items()
    ]
    expected += [f"| `{name}` | {fate.summary} | {'yes' if fate.hides else 'no'} |" for name, fate in FATES.items()]
    stores = [f"| `{name}` |" for name in FORMATS]
    described = [line for line in lines if line.startswith("| `")]
    assert [line for line in described if not line.startswith(tuple(stores))] == expected
    assert [line for line in stores if not any(other.startswith(line) for other in described)] == []


class Watching(Policy):
    """The newest query's mass times the norm of the value (after VATP), head by head, which no shipped policy sees."""

    name = "watching"
    summary = "a policy of the tests"
    observes = frozenset({"values", "queries", "weights"})
    shown: list[Pairs | Attention]

    def tags(self, items: torch.Tensor, pairs: Pairs) -> torch.Tensor:
        self.shown = [*getattr(self, "shown", [])[-4:], pairs]
        assert pairs.values is not None
        return pairs.values.float().norm(dim=-1)

    def account(self, tags: torch.Tensor, seen: Attention) -> None:
        self.shown.append(seen)
        assert seen.weights is not None
        self.mass = (seen.weights.sum(2) * tags).sum(1)

    def estimate(self, tags: torch.Tensor) -> torch.Tensor:
        return self.mass


@pytest.mark.parametrize("scope", ["layer", "head"])
def test_a_policy_is_shown_what_it_observes_and_runs_where_no_fast_path_knows_it(
    scope: Literal["layer", "head"], grouped: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Added by a class and a name alone, it evicts by every head's weights and values."""
    monkeypatch.setitem(POLICIES, "watching", Watching)
    cell = CacheConfig(max_cache_size=12, sinks=1, recent=4, scope=scope).model_copy(update={"importance": "watching"})
    tokens = torch.randint(1, 61, (2, 40), generator=torch.Generator().manual_seed(1))
    cache = SketchCache(grouped.config, cell, traced=True)
    with torch.no_grad():
        grouped(tokens, past_key_values=cache)
    rows, heads = (2, 2) if scope == "layer" else (4, 1)
    policy = cache.layers[0].state.policy
    pairs = next(shown for shown in policy.shown if isinstance(shown, Pairs))
    seen = next(shown for shown in policy.shown if isinstance(shown, Attention))
    assert (pairs.keys, pairs.tokens, seen.mass) == (None, None, None)
    assert pairs.values is not None
    assert pairs.values.shape == (rows, heads, 13, 8)
    assert seen.queries is not None
    assert seen.queries.shape == (rows, heads, 4, 8)
    assert seen.weights is not None
    assert torch.allclose(seen.weights.sum(-1), torch.ones(rows, heads, 4))
    assert (cache.trace(0).victims[:, 12:] >= 1).all()
    random = SketchCache(grouped.config, cell.model_copy(update={"importance": "random"}), traced=True)
    with torch.no_grad():
        grouped(tokens, past_key_values=random)
    assert not torch.equal(cache.trace(0).victims, random.trace(0).victims)


def test_each_head_has_a_table_and_hashes_of_its_own() -> None:
    """With scope=head a layer's heads share no collision, and neither do two layers'."""
    model = tiny_llama(seed=1, layers=2, heads=4, kv_heads=4)
    cache = SketchCache(model.config, CacheConfig(max_cache_size=16, width=64, depth=2, scope="head", recent=0.5))
    with torch.no_grad():
        model(torch.randint(1, 61, (1, 40)), past_key_values=cache)
    cells = [layer.state.policy.sketch.locate(torch.arange(40).expand(4, 40)) for layer in cache.layers]
    apart = torch.cat(cells).flatten(1)
    same = torch.stack([(one == other).float().mean() for i, one in enumerate(apart) for other in apart[:i]])
    assert cache.layers[0].state.policy.sketch.table.shape == (4, 2, 64)
    assert same.max() < 0.15  # As often as two random cells of 64 are one, and not always.
