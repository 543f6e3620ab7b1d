"""`sketch-eval diagnose`: what is measured, against computations of our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytest
import torch
from conftest import Silent, tiny_gpt2, tiny_llama

from sketch_eval import UsageError
from sketch_eval.attention import enable
from sketch_eval.config import CONTROLS, CacheConfig
from sketch_eval.diagnose import diagnose
from sketch_eval.diagnose.measures import measure
from sketch_eval.diagnose.run import longer_texts
from sketch_eval.diagnose.watch import watch
from sketch_eval.evaluate.work import Worker
from sketch_eval.grid.grid import Block, Grid

TOKENS = torch.randint(1, 61, (150,), generator=torch.Generator().manual_seed(2))


def test_a_window_loses_the_attention_that_falls_before_it() -> None:
    """From the weights of the same queries and keys, one query at a time."""
    model = tiny_llama(seed=1, layers=2, heads=4, kv_heads=2)
    enable(model)
    for layer in watch(model, CacheConfig(max_cache_size=40, **CONTROLS["window"]), TOKENS):
        lost, kl, cosine = [], [], []
        for t in range(40, 150):
            keys, values = (of[:, : t + 1].repeat_interleave(2, 0) for of in (layer.k, layer.v))
            full = torch.softmax(torch.einsum("hd,hsd->hs", layer.q[:, t], keys), -1)
            gone = full[:, : t - 40].sum(-1)  # The query sees the cap's 40 and itself.
            within = torch.softmax(torch.einsum("hd,hsd->hs", layer.q[:, t], keys)[:, t - 40 :], -1)
            lost.append(gone.view(2, 2).mean(1))
            kl.append((within * (within / full[:, t - 40 :]).log()).sum(-1).view(2, 2).mean(1))
            whole, part = (
                torch.einsum("hs,hsd->hd", weights, of)
                for weights, of in ((full, values), (within, values[:, t - 40 :]))
            )
            cosine.append(torch.cosine_similarity(whole, part, dim=-1).view(2, 2).mean(1))
        found = measure(layer, CacheConfig(max_cache_size=40, **CONTROLS["window"]))
        for name, expected in (("lost", lost), ("kl", kl), ("cosine", cosine)):
            assert found[name] == pytest.approx(torch.stack(expected).mean(0).tolist(), abs=1e-4), name
        assert found["age_median"] == [19.5] * 2


@pytest.mark.parametrize("scope", ["layer", "head"])
def test_exact_counters_rank_as_the_exact_sums_and_a_sketch_within_its_bound(scope: Any) -> None:
    model = tiny_gpt2(seed=1, layers=2)
    enable(model)
    counted = CacheConfig(max_cache_size=40, recent=0.25, scope=scope, importance="exact")
    sketched = counted.model_copy(update={"importance": "count_min", "width": 16, "depth": 2})
    for layer in watch(model, counted, TOKENS):
        assert measure(layer, counted)["rank_exact"] == pytest.approx([1.0] * len(layer.k))
    for layer in watch(model, sketched, TOKENS):
        found = measure(layer, sketched)
        assert all(0 < rank < 1 for rank in found["rank_exact"])
        assert all(0 < over < 1 for over in found["overestimate"])


def test_the_clairvoyant_ranks_what_is_to_come_where_nothing_was_evicted_before() -> None:
    """The first layer's queries and keys are the full cache's: its ranking is what it has read."""
    model = tiny_gpt2(seed=1, layers=2)
    enable(model)
    cell = CacheConfig(max_cache_size=40, scope="head", **CONTROLS["clairvoyant"])
    first, second = watch(model, cell, TOKENS)
    assert measure(first, cell)["rank_to_come"] == pytest.approx([1.0] * len(first.k))
    assert max(measure(second, cell)["rank_to_come"]) < 1


def test_a_grid_is_diagnosed_into_a_page_a_table_and_pictures(tmp_path: Path) -> None:
    cells = [{"controls": ["window", "exact"], "max_cache_size": 64}, {"controls": ["int4"]}]
    cells.append({"max_cache_size": 64, "strategy": "aggregate", "scope": "head"})
    cells.append({"controls": ["window"], "max_cache_size": 64, "centred": True})
    grid = Grid.model_validate({"model": {"pretrained": "bundled"}, "tasks": {"kv_256": {"limit": 2}}, "cells": cells})
    page = diagnose(grid, tmp_path, 1, cast(Any, Silent()), "sketch-eval diagnose here")
    frame = pd.read_csv(tmp_path / "diagnosis.csv")
    assert set(frame["cell"]) == {"window", "window centred=True", "exact", "count_min 512×4 aggregate scope=head"}
    assert frame["lost"].between(0, 1).all()
    assert (frame.groupby("cell")["rank_exact"].count() > 0).to_dict() == {
        "window": True,
        "window centred=True": True,
        "exact": True,
        "count_min 512×4 aggregate scope=head": False,
    }
    text = page.read_text(encoding="utf-8")
    assert "| 64 | window |" in text
    for picture in ("lost_kv_256.png", "ranks_kv_256.png"):
        assert picture in text
        assert (tmp_path / picture).stat().st_size > 5000
    for only, message in ((cells[1], "none has a bound"), ({"max_cache_size": 900}, "no text of more than 900 tokens")):
        other = grid.model_copy(update={"cells": (Block.model_validate(only),)})
        with pytest.raises(UsageError, match=message):
            diagnose(other, tmp_path, 1, cast(Any, Silent()), "")


def test_of_a_text_that_is_asked_for_in_parts_the_longest_one_is_diagnosed() -> None:
    grid = Grid.model_validate(
        {"model": {"pretrained": "bundled"}, "tasks": {"long_text": {"limit": 2}}, "cells": [{"max_cache_size": 64}]}
    )
    worker = Worker(grid)
    asked = [sum(map(len, instance.args)) for instance in worker.tasks["long_text"].task.instances]
    assert len(asked) > 2
    first, second = longer_texts(worker, "long_text", 64)
    assert len(first) == len(second) == 1024
    assert not torch.equal(first, second)
