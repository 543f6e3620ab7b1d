"""What a user says to the long-context tasks, through `--metadata` and beside lm-eval's own tasks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import pytest
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from sketch_eval.errors import UsageError
from sketch_eval.lm import SketchGPT2
from sketch_eval.text import induction, long_text, needles, stress
from sketch_eval.text.arguments import arguments
from sketch_eval.text.words import ANSWERS

ROOT = Path(__file__).parents[1]
TASKS = ROOT / "tasks"
THEIRS = Path(lm_eval.__file__).parent / "tasks"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def manager(**metadata: Any) -> TaskManager:
    return TaskManager(
        include_path=str(TASKS), include_defaults=False, metadata={"pretrained": "bundled", "depth": 4, **metadata}
    )


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name in ("empty", "latin", "answers", "short", "odd"):
        (tmp_path / name).mkdir()
    (tmp_path / "latin" / "a.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "answers" / "a.txt").write_text(" ".join(ANSWERS))
    (tmp_path / "short" / "a.txt").write_text("Too short.")
    (tmp_path / "odd" / "a.txt").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("task", "metadata", "named"),
    [
        ("needles_256", {"depths": [0, 1.5]}, r"depths=\[0, 1.5\]: expected numbers from 0 to 1"),
        ("needles_256", {"depths": []}, r"depths=\[\]: expected a list of numbers from 0 to 1, with at least one"),
        ("needles_256", {"depths": 0.5}, "depths=0.5: expected a list"),
        ("needles_256", {"depths": [True]}, "depths=.True.: expected numbers"),
        ("needles_256", {"depths": ["0"]}, "depths=.'0'.: expected numbers"),
        ("needles_256", {"length": 2048}, "length=2048: this task has length=256; passkey_lengths, kv_lengths"),
        ("kv_256", {"max_seq_lengths": [512]}, "max_seq_lengths: this task has length=256; passkey_lengths"),
        ("needles_lengths", {}, "max_seq_lengths: needles_lengths needs --metadata"),
        ("kv_lengths", {"max_seq_lengths": 512}, "max_seq_lengths=512: expected a list of lengths"),
        ("kv_lengths", {"max_seq_lengths": ["512"]}, "length='512': expected 1 to 1024"),
        ("kv_lengths", {"max_seq_lengths": [2048]}, "length=2048: expected 1 to 1024, which"),
        ("needles_lengths", {"max_seq_lengths": [20]}, "length=20: expected at least"),
        ("kv_lengths", {"max_seq_lengths": [20]}, "length=20: expected more, for a list of 10"),
        ("induction_64", {"distance": 2000}, "distance=2000: this task has distance=64"),
        ("needles_256", {"text_folder": 5}, "text_folder=5: expected the name of a folder"),
        ("needles_256", {"text_folder": ""}, "text_folder='': expected the name of a folder"),
        ("needles_256", {"text_folder": ["a"]}, "expected the name of a folder"),
        ("needles_256", {"text_folder": "{}/none"}, "is no folder; expected one that holds .txt files"),
        ("needles_256", {"text_folder": "{}/empty"}, "holds no .txt file with text in it"),
        ("needles_256", {"text_folder": "{}/latin"}, "a.txt' is not UTF-8"),
        ("needles_256", {"text_folder": "{}/odd"}, "a.txt' cannot be read"),
        ("needles_256", {"text_folder": "{}/answers"}, "holds an answer"),
        ("long_text", {"text_folder": "{}/short"}, "no text of 1040 tokens"),
        ("long_text", {"txt_folder": "{}"}, r"is no option of this task \(did you mean text_folder"),
        ("needles_256", {"max_seq_length": 5}, "did you mean max_seq_lengths"),
        ("needles_256", {"pretrained": "{}/none"}, "offline, use pretrained=bundled"),
        ("needles_256", {"pretrained": 3}, "needs a name or folder"),
        ("needles_256", {"max_length": "all"}, "max_length='all': expected a number of tokens"),
        ("long_text", {"count": 0}, "count=0: expected how many documents, a whole number of 1 or more"),
        ("needles_256", {"count": "9"}, "count='9': expected how many documents"),
        ("long_text", {"counts": 9}, "did you mean count"),
        ("long_text", {"max_length": 512}, "length=1024: expected 1 to 512"),
        ("long_text_pg19", {"text_folder": "{}"}, "text_folder: this task reads emozilla/pg19-test from the hub"),
    ],
)
def test_bad_input_is_named_in_one_line(folders: Path, task: str, metadata: dict[str, Any], named: str) -> None:
    said = {name: value.format(folders) if isinstance(value, str) else value for name, value in metadata.items()}
    with pytest.raises(UsageError, match=named) as caught:
        manager(**said).load([task])
    assert "\n" not in str(caught.value)


def test_a_models_arguments_pass_whatever_they_resemble() -> None:
    given = {"depth": 4, "max_length": 512, "dtype": "float32", "max_cache_size": 64, "text_folder": "a"}
    assert arguments({"kind": "kv"}, given) == {"kind": "kv", **given}


def test_a_hub_out_of_reach_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=r"hub: 'no/such' could not be loaded .*; check the network, or use") as caught:
        long_text.dataset(hub={"path": "no/such", "field": "text"}, pretrained="bundled")
    assert "\n" not in str(caught.value)


def test_other_sizes_are_refused() -> None:
    for distance in (16, 1000, "64"):
        with pytest.raises(UsageError, match=f"distance={distance!r}: expected 32 to 992"):
            induction.dataset(distance, pretrained="bundled")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="kind='flood'"):
        stress.dataset("flood")


def test_options_reach_the_documents() -> None:
    tasks = manager(max_seq_lengths=[200, 300], depths=[0, 0.1]).load(["kv_lengths"])["tasks"]
    rows = list(tasks["kv_lengths"].test_docs())
    assert [(row["length"], row["depth"]) for row in rows[:4]] == [(200, 0.0), (300, 0.0), (200, 0.1), (300, 0.1)]


def test_as_many_documents_as_asked_for_are_made() -> None:
    tasks = manager(count=7).load(["kv_256", "long_text"])["tasks"]
    assert {name: len(list(task.test_docs())) for name, task in tasks.items()} == {"kv_256": 7, "long_text": 7}


def test_no_name_is_one_of_lm_evals_own() -> None:
    theirs = TaskManager(include_path=str(THEIRS), include_defaults=False).all_tasks
    ours = manager().all_tasks
    assert {"passkey", "wikitext", "lambada_openai"} <= set(theirs)
    assert {"sketch_passkey", "sketch_fewshot", "long_text_pg19", "long_text_wikitext103"} <= set(ours)
    assert not set(theirs) & set(ours)


def test_num_fewshot_changes_no_prompt() -> None:
    lm = SketchGPT2(pretrained="bundled", batch_size=8, device="cpu", max_cache_size=64)
    tasks = ["kv_256", "induction_64", "drift", "recall_depth_0", "stdlib_text"]
    ran = lm_eval.simple_evaluate(
        lm, tasks=tasks, task_manager=manager(), num_fewshot=2, limit=1, bootstrap_iters=0, log_samples=True
    )
    assert set(ran["n-shot"].values()) == {0}
    (sample,) = ran["samples"]["kv_256"]
    assert sample["arguments"][0][0] == sample["doc"]["prompt"]


def test_a_depth_without_documents_is_valid_json() -> None:
    lm = SketchGPT2(pretrained="bundled", batch_size=8, device="cpu", max_cache_size=64)
    ran = lm_eval.simple_evaluate(lm, tasks=["kv_256"], task_manager=manager(), limit=1, bootstrap_iters=0)
    assert ran["results"]["kv_256"]["acc_depth_50,none"] == "N/A"
    json.dumps(ran["results"], allow_nan=False)
    assert needles.known_mean([None, 1.0, 0.0]) == 0.5


FAKE = {
    "hellaswag": {"ind": 1, "activity_label": "A", "ctx_a": "a.", "ctx_b": "he", "ctx": "a. he", "label": "1"}
    | {"endings": ["x", "y", "z", "w"], "source_id": "s", "split": "train", "split_type": "i"},
    "arc_easy": {"id": "q", "question": "Why?", "answerKey": "B"}
    | {"choices": {"text": ["a", "b", "c", "d"], "label": ["A", "B", "C", "D"]}},
    "boolq": {"question": "is it", "passage": "P.", "idx": 0, "label": 1},
    "piqa": {"goal": "g", "sol1": "s1", "sol2": "s2", "label": 0},
}


def test_few_shots_are_others_and_read_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(task: ConfigurableTask, *_: Any, **__: Any) -> None:
        name = task.config.task
        rows = [FAKE[name]] * 30 if name in FAKE else [{"text": f"The {n} cats saw a dog {n}"} for n in range(12)]
        splits = ("test",) if name == "lambada_openai" else ("train", "validation", "test")
        task.dataset = datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split in splits})

    monkeypatch.setattr(ConfigurableTask, "download", download)
    folders = [THEIRS / name for name in ("lambada", "hellaswag", "arc", "super_glue", "piqa")]
    loaded = TaskManager(include_path=[*folders, TASKS], include_defaults=False).load(["sketch_fewshot"])["tasks"]
    assert {name: task.config.num_fewshot for name, task in loaded.items()} == {
        "lambada_openai": 9,
        "hellaswag": 8,
        "arc_easy": 25,
        "boolq": 5,
        "piqa": 18,
    }
    task = loaded["lambada_openai"]
    task.set_fewshot_seed(1234)
    for number, doc in enumerate(task.test_docs()):
        *shots, last = task.fewshot_context(doc, 9).split("\n\n")
        assert last == f"The {number} cats saw a dog"
        assert doc["text"] not in shots
        assert len(set(shots)) == 9
        assert not any("  " in shot for shot in shots)


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [str(Path(sys.executable).parent / "lm_eval"), "--model", "sketch_gpt2", *arguments]
    # The start-up module of these sources, not one that was installed before they changed.
    said = os.environ | OFFLINE | {"PYTHONPATH": str(ROOT / "sketch_eval" / "startup")}
    return subprocess.run(line, env=said, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_command_line_runs_with_metadata(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text("Call me Ishmael, who went to sea.\n" * 400)
    options = {"text_folder": "books", "depths": [0, 0.1]}
    tasks = ["--tasks", "needles_256,long_text,induction_64", "--limit", "2", "--metadata", json.dumps(options)]
    cell = ["--model_args", "pretrained=bundled,max_cache_size=64,depth=2", "--batch_size", "8"]
    ran = command(*tasks, *cell, "--output_path", "out", "--log_samples", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "overrides existing task" not in ran.stderr
    (samples,) = (tmp_path / "out").rglob("samples_needles_256_*.jsonl")
    docs = [json.loads(line)["doc"] for line in samples.read_text().splitlines()]
    assert [doc["depth"] for doc in docs] == [0.0, 0.1]
    assert all("Ishmael" in doc["prompt"] for doc in docs)


@pytest.mark.slow
def test_the_command_line_runs_the_full_group(tmp_path: Path) -> None:
    cell = ["--model_args", "pretrained=bundled,max_cache_size=64", "--batch_size", "8"]
    ran = command("--tasks", "sketch_full", "--limit", "1", *cell, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    for task in (
        "sketch_passkey",
        "kv_1024",
        "needles",
        "induction_960",
        "long_text",
        "stdlib_text",
        "drift",
        "repeat",
    ):
        assert task in ran.stdout


@pytest.mark.slow  # lm-eval takes ten seconds to begin; tests/test_cli.py has one bad input by default.
@pytest.mark.parametrize(
    ("tasks", "metadata", "named"),
    [
        ("kv_256", {"length": 2048}, "error: length=2048: this task has length=256"),
        ("sketch_quick,sketch_full", {}, "error: Duplicate task 'kv_512': found in both"),
    ],
)
def test_the_command_line_fails_in_one_line(tmp_path: Path, tasks: str, metadata: dict[str, Any], named: str) -> None:
    cell = ["--model_args", "pretrained=bundled", "--metadata", json.dumps(metadata)]
    ran = command("--tasks", tasks, *cell, cwd=tmp_path)
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    assert named in ran.stderr.splitlines()[-1]
