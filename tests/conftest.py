"""Small models, and the paths of what the project is lent."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from sketch_eval.attention import enable

# The same examples everywhere: a test must not fail for another machine's luck.
hypothesis.settings.register_profile("default", derandomize=True, deadline=None)
hypothesis.settings.load_profile("default")

SHARED = Path(__file__).parents[2] / "shared"


def tiny_gpt2(seed: int, layers: int = 2, heads: int = 3, vocabulary: int = 61) -> GPT2LMHeadModel:
    """A random GPT-2 with 256 positions, its weights large enough for attention that prefers something."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": vocabulary, "n_layer": layers, "n_embd": 16 * heads, "n_head": heads, "n_positions": 256}
    config = GPT2Config(**sizes, initializer_range=0.25, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).eval()
    enable(model)
    return model


@pytest.fixture(scope="session")
def model() -> GPT2LMHeadModel:
    return tiny_gpt2(seed=0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of lent data; a test that needs it is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no lent data at {SHARED}")
    return SHARED
