"""The long-context tasks: exact lengths, no leaks, the same bytes everywhere, and runs on the bundled model."""

from __future__ import annotations

import csv
import hashlib
import os
from pathlib import Path

import lm_eval
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from sketch_eval import report, tables
from sketch_eval.errors import UsageError
from sketch_eval.lm import SketchGPT2
from sketch_eval.text import induction, long_text, needles, stress
from sketch_eval.text.fitting import Ruler, ruler
from sketch_eval.text.words import ANSWERS

TASKS = Path(__file__).parents[1] / "tasks"


@pytest.fixture(scope="module")
def measure() -> Ruler:
    return ruler("bundled")


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return TaskManager(include_path=str(TASKS), include_defaults=False, metadata={"pretrained": "bundled"})


def evaluate(manager, tasks, limit, **cell):
    lm = SketchGPT2(pretrained="bundled", batch_size=8, device="cpu", **cell)
    return lm, lm_eval.simple_evaluate(lm, tasks=tasks, task_manager=manager, limit=limit, bootstrap_iters=0)


@pytest.fixture(scope="module")
def full(manager):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "HF_DATASETS_OFFLINE", "1")
        return evaluate(manager, ["sketch_full"], 1, max_cache_size=None)[1]


def test_every_task_runs_and_is_answered_with_the_full_cache(full):
    scores = full["results"]
    for group in ("passkey", "kv", "needles", "induction"):
        assert scores[group]["acc,none"] == 1.0, group
    assert scores["kv_1024"]["acc_depth_0,none"] == 1.0
    assert 1 < scores["repeat"]["byte_perplexity,none"] < scores["drift"]["byte_perplexity,none"] < 10
    assert 1 < scores["induction_256"]["token_perplexity,none"] < 2
    buckets = [f"token_perplexity_{bucket},none" for bucket in ("0_63", "64_127", "128_255", "256_511", "512_1023")]
    assert all(1 < scores["long_text"][bucket] < 1000 for bucket in buckets)


def test_a_window_loses_what_lies_beyond_it(manager):
    tasks = ["kv_512", "induction_256", "long_text", "repeat"]
    lm, results = evaluate(manager, tasks, 2, max_cache_size=64, importance="recency", sinks=0)
    assert results["results"]["kv_512"]["acc_depth_0,none"] == 0.0
    assert results["results"]["induction_256"]["token_perplexity,none"] > 10
    counts = lm.counts.as_dict()["tasks"]
    assert {task: count["binding_requests"] / count["requests"] for task, count in counts.items()} == {
        "kv_512": 1.0,
        "induction_256": 1.0,
        "long_text": 0.8,  # the first bucket's 64 tokens fit
        "repeat": 1.0,
    }


def test_the_quick_group_is_a_part_of_the_full_one(full):
    quick = yaml.safe_load((TASKS / "sketch_groups" / "sketch_quick.yaml").read_text())["task"]
    assert set(quick) < set(full["results"])


def test_few_shot_groups_and_hub_tasks_are_known(manager):
    assert {"sketch_fewshot", "long_text_pg19", "long_text_wikitext103", "passkey_lengths"} <= set(manager.all_tasks)


def test_a_cell_is_run_once_and_tabulated(manager, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_manager", lambda: manager)
    plan = {"kv_256": 2, "drift": 1}
    jobs = [job for job in tables.jobs(plan, False, str(tmp_path), 8) if job.cell in ("full", "window")]
    assert [job.cap for job in jobs] == [None, *tables.CAPS]
    jobs = [jobs[0], jobs[1], jobs[3]]
    assert all(tables.run(job).endswith(" s") for job in jobs)
    assert all(tables.run(job).endswith("unchanged") for job in jobs)
    assert tables.run(jobs[0]._replace(sources="others")).endswith(" s")
    report.write(tmp_path, [job.path for job in jobs], tables.TABLES, "the command")
    page, found = (tmp_path / "README.md").read_text(), list(csv.DictReader((tmp_path / "tasks.csv").open()))
    assert "Made by `the command`" in page
    assert "|  | full | 1.000 [1.00, 1.00] |" in page
    assert "| 64 | window | 0.000 [0.00, 0.00]; -100% [-100, -100]; 100% |" in page
    assert "| 256 | window | = full |" in page
    row = next(row for row in found if (row["task"], row["cell"], row["cap"]) == ("drift", "window", "64"))
    assert (row["metric"], row["documents"], row["binding"]) == ("byte_perplexity", "1", "1")
    assert float(row["difference"]) == pytest.approx(
        100 * (float(row["value"]) / _value(found, "drift", "full") - 1), abs=1e-2
    )


def _value(found, task, cell):
    return next(float(row["value"]) for row in found if (row["task"], row["cell"]) == (task, cell))


@pytest.mark.parametrize("kind", list(needles.MAKERS))
@given(seed=st.integers(0, 10**6), depth=st.floats(0, 1), length=st.integers(200, 1024))
@settings(max_examples=15)
def test_lengths_are_exact_and_nothing_leaks(measure, kind, seed, depth, length):
    (row,) = needles.documents(kind, measure, [length], [depth], count=1, seed=seed)
    prompt, answer = row["prompt"], row["choices"][row["answer"]]
    assert max(measure.counts([f"{prompt} {choice}" for choice in row["choices"]])) == length
    assert len(set(row["choices"])) == 10
    question = prompt[prompt.rindex("\n" if kind == "kv" else "The ") :].strip()
    assert question.endswith(":" if kind == "kv" else " is")
    fact = f"{question} {answer}" + ("\n" if kind == "kv" else ".")
    assert prompt.count(fact) == 1
    if kind != "kv":
        assert prompt.count(answer) == 1
    held = sum(choice in prompt.replace(".", " ").split() for choice in row["choices"])
    assert held == (1 if kind == "passkey" else 10)
    assert abs(prompt.index(fact) / len(prompt) - depth) < (0.1 if kind == "passkey" else 0.6)


@pytest.mark.parametrize("kind", list(needles.MAKERS))
def test_at_the_ends_the_fact_is_first_and_last(measure, kind):
    first, last = needles.documents(kind, measure, [512], [0, 1], count=2)
    fact = {"passkey": "The pass key is", "needles": "The code word of the"}.get(kind)
    if fact is None:
        asked = last["prompt"].splitlines()[-1]
        assert last["prompt"].splitlines()[-2].startswith(asked)
        assert first["prompt"].splitlines()[1].startswith(first["prompt"].splitlines()[-1])
    else:
        assert first["prompt"].startswith(fact)
        assert f"{last['choices'][last['answer']]}. {fact}" in last["prompt"]


def test_lengths_are_exact_in_gpt2s_tokens_too(shared):
    gpt2 = Ruler("gpt2", AutoTokenizer.from_pretrained(shared / "data" / "gpt2-tokenizer"), 1024)
    for kind in needles.MAKERS:
        for row in needles.documents(kind, gpt2, [256, 777, 1024], count=3):
            counts = gpt2.counts([f"{row['prompt']} {choice}" for choice in row["choices"]])
            assert max(counts) == row["length"]
    row = induction.document(gpt2, 128, "0")
    assert gpt2.counts([row["contexts"][0] + row["continuations"][0]]) == [160]


def test_documents_are_the_same_bytes_everywhere(measure):
    made = {
        "needles": [needles.documents(kind, measure, [256, 1024], count=5) for kind in needles.MAKERS],
        "induction": [induction.document(measure, 128, str(number)) for number in range(3)],
        "stress": [(stress.drift(str(number)), stress.repeat(str(number))) for number in range(3)],
    }
    digests = {name: hashlib.sha256(repr(rows).encode()).hexdigest()[:16] for name, rows in made.items()}
    assert digests == {"needles": "52afd937cff88c29", "induction": "1a21897bb864fb42", "stress": "1d499b06c82ff0cd"}


def test_induction_copies_are_cued_and_unambiguous(measure):
    row = induction.document(measure, 256, "0")
    text = (row["contexts"][0] + row["continuations"][0]).split()
    assert measure.counts([row["contexts"][0] + row["continuations"][0]]) == [288] == [len(text)]
    assert text[256:] == text[:32]
    assert not set(text[:32]) & set(text[32:256])
    assert row["contexts"][0].split() == text[:257]
    assert row["continuations"][1].split() == text[-1:]


def test_buckets_cover_the_text(measure):
    rows = long_text.dataset(pretrained="bundled", count=5)["test"]
    assert len(rows) == 5
    for row in rows:
        for text, end, exact in zip(row["continuations"], long_text.ENDS, _running(row["token"]), strict=True):
            assert measure.counts([text]) == [exact]
            assert end - long_text.SLACK < exact <= end
        assert sum(row["byte"]) == len(row["continuations"][-1].encode())
        assert sum(row["word"]) == len(row["continuations"][-1].split())
        assert all(a.startswith(b) for b, a in zip(row["continuations"], row["continuations"][1:], strict=False))


def _running(sizes):
    return [sum(sizes[: number + 1]) for number in range(len(sizes))]


def test_stress_texts_fit_one_window(measure):
    drifts, repeats = ([write(str(number)) for number in range(10)] for write in (stress.drift, stress.repeat))
    assert all(800 < count <= 1024 for count in measure.counts(drifts + repeats))
    assert all(len(set(text.split(". "))) <= 7 for text in repeats)


def test_a_folder_of_texts_is_filler_and_long_text(tmp_path, measure):
    words = "Call me Ishmael. Some years ago, never mind how long, I thought I would sail about a little; golden days. "
    (tmp_path / "whale.txt").write_text(words * 100, encoding="utf-8")
    (row,) = needles.documents("needles", measure, [512], text_folder=str(tmp_path), count=1)
    assert "Ishmael" in row["prompt"]
    assert max(measure.counts([f"{row['prompt']} {choice}" for choice in row["choices"]])) == 512
    rows = long_text.dataset(text_folder=str(tmp_path), pretrained="bundled", count=2)["test"]
    assert len(rows) == 2
    assert all(name.startswith("whale.txt from token") for name in rows["name"])


@pytest.fixture
def folders(tmp_path):
    for name in ("empty", "latin", "answers", "short"):
        (tmp_path / name).mkdir()
    (tmp_path / "latin" / "a.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "answers" / "a.txt").write_text(" ".join(ANSWERS))
    (tmp_path / "short" / "a.txt").write_text("Too short.")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"length": 2048}, "length=2048: expected 1 to 1024, the positions of"),
        ({"length": 20}, "length=20: expected at least"),
        ({"length": 256, "depths": [0, 1.5]}, r"depths=\[0, 1.5\]: expected numbers from 0 to 1"),
        ({"length": 256, "depths": []}, "at least one of each"),
        ({}, "max_seq_lengths: needles_lengths needs --metadata"),
        ({"length": 256, "text_folder": "{}/none"}, "is no folder; expected one that holds .txt files"),
        ({"length": 256, "text_folder": "{}/empty"}, "holds no .txt file with text in it"),
        ({"length": 256, "text_folder": "{}/latin"}, "a.txt' is not UTF-8"),
        ({"length": 256, "text_folder": "{}/answers"}, "holds an answer"),
        ({"length": 256, "pretrained": "{}/none"}, "offline, use pretrained=bundled"),
        ({"length": 256, "pretrained": 3}, "needs a name or folder"),
    ],
)
def test_bad_input_is_named_in_one_line(folders, arguments, named):
    given_ = {name: value.format(folders) if isinstance(value, str) else value for name, value in arguments.items()}
    with pytest.raises(UsageError, match=named) as caught:
        needles.dataset("needles", **{"pretrained": "bundled", **given_})
    assert "\n" not in str(caught.value)


def test_long_text_and_induction_refuse(folders):
    with pytest.raises(UsageError, match="no text of 1040 tokens"):
        long_text.dataset(text_folder=str(folders / "short"), pretrained="bundled")
    with pytest.raises(UsageError, match="length=1024: expected 1 to 512"):
        long_text.dataset(pretrained="bundled", max_length=512)
    for distance in (16, 1000):
        with pytest.raises(UsageError, match=f"distance={distance}: expected 32 to 992"):
            induction.dataset(distance, pretrained="bundled")
    with pytest.raises(UsageError, match="kind='flood'"):
        stress.dataset("flood")
