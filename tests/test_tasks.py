"""The bundled tasks run offline on the bundled model through lm-eval, and the model is what its card says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets.config
import lm_eval
import pytest
from lm_eval.tasks import TaskManager

from sketch_eval import bundled

TASKS = Path(__file__).parents[1] / "tasks"


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)  # the environment is read when it is imported
        return lm_eval.simple_evaluate(
            model="hf",
            model_args={"pretrained": bundled.path()},
            tasks=["stdlib_text", "recall"],
            task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
            device="cpu",
            batch_size=8,
            limit=3,
            bootstrap_iters=0,
        )


def test_recall_is_answered_with_the_full_cache(results: dict[str, Any]) -> None:
    depths = [f"recall_depth_{depth}" for depth in (0, 25, 50, 75)]
    assert all(results["results"][task]["acc,none"] == 1.0 for task in depths)
    assert results["results"]["recall"]["acc,none"] == 1.0


def test_stdlib_text_is_scored_by_word_and_byte(results: dict[str, Any]) -> None:
    scores = results["results"]["stdlib_text"]
    assert 1.0 < scores["bits_per_byte,none"] < 2.0
    assert scores["byte_perplexity,none"] == pytest.approx(2 ** scores["bits_per_byte,none"])
    assert scores["word_perplexity,none"] > scores["byte_perplexity,none"]


@pytest.mark.parametrize("name", bundled.NAMES)
def test_bundled_files_are_complete_and_small(name: str) -> None:
    files = {path.name: path.stat().st_size for path in Path(bundled.path(name)).iterdir() if path.is_file()}
    needed = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert needed | {"MODEL_CARD.md"} <= set(files)
    assert sum(files.values()) < 25e6
