"""The plain `lm_eval` command line, offline: what a user types, and what comes out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub import add_dataset, add_model, write_model

LM_EVAL = Path(sys.executable).parent / "lm_eval"
PAGES = [
    f" = Page {i} = \n\n" + f" the old dog saw a quick brown fox and {i} birds .\n" * (20 + 9 * i) for i in range(3)
]
PASSAGES = [f"{i} times the old man called his dog , and {i} times there was no dog" for i in range(4)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An HF_HOME with a random `gpt2` and the datasets of lm-eval's `wikitext` and `lambada`."""
    home = tmp_path_factory.mktemp("hf")
    write_model(home / "made", [*PAGES, *PASSAGES])
    add_model(home, "gpt2", home / "made")
    wikitext = dict.fromkeys(("train", "validation", "test"), PAGES)
    add_dataset(home, "EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", "page", wikitext)
    add_dataset(home, "EleutherAI/lambada_openai", "default", "text", {"test": PASSAGES})
    add_dataset(home, "cimec/lambada", "plain_text", "text", dict.fromkeys(("validation", "test"), PASSAGES))
    return home


def lm_eval(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    offline = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    command = [str(LM_EVAL), "--model", "sketch_gpt2", *arguments]
    return subprocess.run(command, env=os.environ | offline, capture_output=True, text=True, cwd=home, check=False)


def results(home: Path, name: str, *arguments: str) -> dict[str, Any]:
    run = lm_eval(home, *arguments, "--output_path", str(home / name))
    assert run.returncode == 0, run.stderr
    (file,) = (home / name).rglob("results_*.json")
    return json.loads(file.read_text())


def test_lm_evals_own_wikitext_and_lambada_run_and_are_bounded(home: Path) -> None:
    cell = "pretrained=gpt2,max_cache_size=32,width=64,depth=2,strategy=topk,topk=24"
    bounded = results(home, "bounded", "--model_args", cell, "--tasks", "wikitext,lambada", "--batch_size", "2")
    assert bounded["results"].keys() >= {"wikitext", "lambada_openai", "lambada_standard"}
    said = bounded["config"]["sketch_eval"]
    assert (said["cell"]["max_cache_size"], said["cell"]["topk"], said["cell"]["seed"]) == (32, 24, 0)
    assert said["ledger"]["layer_bytes"]["sketch"] == 64 * 2 * 4
    wikitext = said["counts"]["tasks"]["wikitext"]
    assert wikitext["requests"] == wikitext["binding_requests"] == 3
    assert wikitext["evictions"] > 0


@pytest.mark.slow
def test_the_full_cache_bounds_nothing_and_scores_otherwise(home: Path) -> None:
    cells = {"bounded": "max_cache_size=32", "full": "max_cache_size=None"}
    found = {
        name: results(home, f"{name} alone", "--model_args", cell, "--tasks", "wikitext", "--batch_size", "2")
        for name, cell in cells.items()
    }
    perplexity = {name: result["results"]["wikitext"]["word_perplexity,none"] for name, result in found.items()}
    assert abs(perplexity["bounded"] / perplexity["full"] - 1) > 1e-3
    binding = {n: result["config"]["sketch_eval"]["counts"]["binding_requests"] for n, result in found.items()}
    assert binding["full"] == 0 < binding["bounded"]


def test_the_offline_config_runs_the_bundled_model_on_the_bundled_tasks(tmp_path: Path) -> None:
    """With the sketch's own depth and width among the model's arguments, which lm-eval hands to the tasks as well."""
    config = Path(__file__).parents[1] / "configs" / "lm_eval_bundled.yaml"
    command = [str(LM_EVAL), "run", "--config", str(config), "--limit", "1", "--output_path", str(tmp_path)]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    run = subprocess.run(command, env=os.environ | offline, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    (file,) = tmp_path.rglob("results_*.json")
    found = json.loads(file.read_text())
    assert found["results"].keys() >= {"recall", "recall_depth_0", "stdlib_text"}
    counts = found["config"]["sketch_eval"]["counts"]
    assert counts["binding_requests"] == counts["requests"] == 4 * 10 + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model_args", "max_cache_size=0", "--tasks", "wikitext"], "max_cache_size=0: should be greater than or"),
        pytest.param(
            ["--model_args", "pretrained=gpt3", "--tasks", "wikitext"],
            "use pretrained=bundled",
            marks=pytest.mark.slow,  # lm-eval takes ten seconds to begin.
        ),
        pytest.param(
            ["--tasks", "arc_easy"],
            "a task's documents cannot be had; check the network, or name tasks that need none",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--tasks", "no_such_task"],
            "Tasks not found: no_such_task; `lm_eval ls tasks` lists",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_bad_input_ends_in_one_line(home: Path, arguments: list[str], message: str) -> None:
    run = lm_eval(home, *arguments)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    last = run.stderr.splitlines()[-1]
    assert last.startswith("sketch_eval: error: ")
    assert message in last
