"""Small models, a small sweep, and the paths of what the project is lent."""

from __future__ import annotations

import os
import re
import sys

import torch

# Before anything imports Triton: where no GPU is, its kernels are interpreted, on CPU tensors (tests/test_triton.py).
os.environ["TRITON_INTERPRET"] = os.environ.get("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from filelock import FileLock
from hub import words, write_model
from numba.core.registry import CPUDispatcher as Dispatcher
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from sketch_eval.attention import enable
from sketch_eval.evaluate.work import Job
from sketch_eval.execution import compiled
from sketch_eval.execution.compiled import lane, run, scan
from sketch_eval.families import shape_of
from sketch_eval.grid.grid import Block, Grid, read
from sketch_eval.leaderboard.write import write
from sketch_eval.policies.learned import FEATURES
from sketch_eval.ranking import NAME, Ranking, marks_of
from sketch_eval.sweep.run import Here, sweep

# The same examples everywhere: a test must not fail for another machine's luck.
hypothesis.settings.register_profile("default", derandomize=True, deadline=None)
hypothesis.settings.load_profile("default")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The tests of a file go to one process; those of the matrix, which are many, by ranking."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFileAndRanking(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            matrix = re.search(r"as_the_oracle\[.*-(\w+)-\w+-(?:layer|head)\]$", nodeid)
            return matrix[1] if matrix else nodeid.partition("::")[0]

    return ByFileAndRanking(config, log)


SHARED = Path(__file__).parents[2] / "shared"


def give_ranking(model: PreTrainedModel) -> None:
    """Write a random ranking for importance=learned into a model's config."""
    shape = shape_of(model.config)
    coefficients = torch.randn(shape.layers, shape.kv_heads, len(FEATURES), generator=torch.Generator().manual_seed(0))
    ranking = Ranking(features=FEATURES, coefficients=coefficients.tolist(), marks=marks_of(model), made={})
    setattr(model.config, NAME, ranking.model_dump(mode="json"))


def tiny_gpt2(
    seed: int, layers: int = 2, heads: int = 3, vocabulary: int = 61, positions: int = 256
) -> GPT2LMHeadModel:
    """A random GPT-2, its weights large enough for attention that prefers something."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": vocabulary,
        "n_layer": layers,
        "n_embd": 16 * heads,
        "n_head": heads,
        "n_positions": positions,
    }
    config = GPT2Config(**sizes, initializer_range=0.25, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).eval()
    enable(model)
    give_ranking(model)
    return model


def tiny_llama(seed: int, layers: int = 2, heads: int = 8, kv_heads: int = 2, vocabulary: int = 61) -> LlamaForCausalLM:
    """A random Llama, whose queries share keys in groups, with weights as large."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=8 * heads, intermediate_size=32, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=2048,
        initializer_range=0.25, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    enable(model)
    give_ranking(model)
    return model


def tiny_model(
    family: str, layers: int = 2, vocabulary: int = 61, positions: int = 256, **more: Any
) -> PreTrainedModel:
    """A random model of a family, its queries in groups where the family has them, as `from_pretrained` gives it."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": positions, "head_dim": 8,
        # GPT-2's own names:
        "n_embd": 32, "n_layer": layers, "n_head": 4, "n_positions": positions,
    }  # fmt: skip
    known = AutoConfig.for_model(family).to_dict()
    sizes = {name: size for name, size in sizes.items() if name in known}
    config = AutoConfig.for_model(
        family,
        vocab_size=vocabulary,
        initializer_range=0.25,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        **sizes | more,
    )
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="session")
def model() -> GPT2LMHeadModel:
    return tiny_gpt2(seed=0)


@pytest.fixture(scope="session")
def grouped() -> LlamaForCausalLM:
    return tiny_llama(seed=0)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The compiled loop as Python runs its lines: nothing to compile, which takes seconds for each of its forms."""
    for module in [module for name, module in sys.modules.items() if name.startswith(compiled.__name__)]:
        for name, part in vars(module).copy().items():
            if isinstance(part, Dispatcher):
                monkeypatch.setattr(module, name, part.py_func)
    monkeypatch.setattr(scan, "kept", lambda signature, name: lambda function: function)
    for caller in (lane, run):
        monkeypatch.setattr(caller, "scan_for", scan.scan_for.__wrapped__)
    with np.errstate(all="ignore"):  # As machine code does.
        yield


@pytest.fixture(params=["lines", pytest.param("machine code", marks=pytest.mark.slow)])
def loop(request: pytest.FixtureRequest) -> None:
    """The compiled loop as Python runs its lines, or as machine code, by default in the slow run alone."""
    if request.param == "lines":
        request.getfixturevalue("interpreted")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of lent data; a test that needs it is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no lent data at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a random GPT-2 with a tokenizer."""
    folder = tmp_path_factory.mktemp("model") / "random"
    write_model(folder, [words(400)])
    return str(folder)


# A sweep of three documents, made once for all tests.

GRID = """
description: a try
model: {pretrained: bundled}
tasks:
  kv_256: {limit: 3, metrics: [acc]}
  stdlib_text: {limit: 2}
cells:
  - controls: [window]
    max_cache_size: [64, 256]
  - max_cache_size: 64
    width: 32
    depth: 2
    variants: [{topk: 24}, {topk: 64}, {topk: 100}, {strategy: aggregate}]
  - max_cache_size: 64
    importance: exact
    strategy: aggregate
seeds: [0, 1]
"""


class Silent:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def begin(self, jobs: list[Job], weights: dict[str, float]) -> None:
        self.seen.append(f"{len(jobs)} to do")

    def done(self, job: Job, seconds: float, reason: str | None) -> None:
        self.seen.append(job.name)

    def scored(self, job: Job, about: object, record: object) -> None:
        pass


@pytest.fixture(scope="session")
def together(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder that all processes of this run of the tests have in common."""
    mine = tmp_path_factory.getbasetemp()
    return mine.parent if hasattr(request.config, "workerinput") else mine


@pytest.fixture(scope="session")
def config(together: Path) -> str:
    path = together / "mini.yaml"
    with FileLock(together / "config.lock"):
        if not path.exists():
            path.write_text(GRID)
    return str(path)


@pytest.fixture(scope="session")
def grid(config: str) -> Grid:
    return read(config)


@pytest.fixture(scope="session")
def small(grid: Grid) -> Grid:
    """Of the same tasks: the full cache and two cells."""
    blocks = ({"max_cache_size": 64, "controls": ["window"]}, {"max_cache_size": 64, "strategy": "aggregate"})
    return grid.model_copy(update={"cells": tuple(Block.model_validate(block) for block in blocks), "seeds": (0,)})


@pytest.fixture(scope="session")
def crew(grid: Grid) -> Here:
    return Here(grid)


@pytest.fixture(scope="session")
def finished(config: str, grid: Grid, together: Path, request: pytest.FixtureRequest) -> Path:
    """A sweep that nothing disturbed, with its leaderboard; the first process that asks for it makes it for all."""
    folder = together / "finished" / "mini"
    with FileLock(together / "finished.lock"):
        if not folder.exists():
            made = together / "made" / "mini"
            crew = request.getfixturevalue("crew")
            report = sweep(grid, made, lambda _: crew, Silent(), command=f"sketch-eval sweep {config}")
            assert not report.failed
            write(made)
            folder.parent.mkdir(exist_ok=True)
            made.rename(folder)
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    return Path(shutil.copytree(finished, tmp_path / "mini"))
