"""The long-context tasks: exact lengths, no leaks, the same bytes everywhere, and runs on the bundled model."""

from __future__ import annotations

import hashlib
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets.config
import lm_eval
import pytest
import torch
import yaml
from conftest import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from sketch_eval import UsageError, bundled
from sketch_eval.cache import SketchCache
from sketch_eval.lm import SketchGPT2, SketchHF
from sketch_eval.text import induction, long_text, needles, stdlib, stress
from sketch_eval.text.fitting import Ruler, ruler
from sketch_eval.text.recall import units

TASKS = Path(__file__).parents[1] / "tasks"


@pytest.fixture(scope="module")
def measure() -> Ruler:
    return ruler("bundled")


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return TaskManager(include_path=str(TASKS), include_defaults=False, metadata={"pretrained": "bundled"})


def evaluate(manager: TaskManager, tasks: list[str], limit: int, **cell: Any) -> tuple[SketchGPT2, dict[str, Any]]:
    lm = SketchGPT2(pretrained="bundled", batch_size=8, device="cpu", **cell)
    return lm, lm_eval.simple_evaluate(lm, tasks=tasks, task_manager=manager, limit=limit, bootstrap_iters=0)


@pytest.fixture(scope="module")
def full(manager: TaskManager) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)  # the environment is read when it is imported
        return evaluate(manager, ["sketch_full"], 1, max_cache_size=None)[1]


def test_every_task_runs_and_is_answered_with_the_full_cache(full: dict[str, Any]) -> None:
    scores = full["results"]
    for group in ("sketch_passkey", "kv", "needles", "induction"):
        assert scores[group]["acc,none"] == 1.0, group
    assert scores["kv_1024"]["acc_depth_0,none"] == 1.0
    assert 1 < scores["repeat"]["byte_perplexity,none"] < scores["drift"]["byte_perplexity,none"] < 10
    assert 1 < scores["induction_256"]["token_perplexity,none"] < 2
    buckets = [f"token_perplexity_{bucket},none" for bucket in ("0_63", "64_127", "128_255", "256_511", "512_1023")]
    assert all(1 < scores["long_text"][bucket] < 1000 for bucket in buckets)


def test_a_window_loses_what_lies_beyond_it(manager: TaskManager) -> None:
    tasks = ["kv_512", "induction_256", "long_text", "repeat"]
    lm, results = evaluate(manager, tasks, 4, max_cache_size=64, importance="recency", sinks=0)
    depths = [results["results"]["kv_512"][f"acc_depth_{depth},none"] for depth in (0, 25, 50, 75)]
    assert sum(depths) <= 1  # A guess is right now and then.
    assert results["results"]["induction_256"]["token_perplexity,none"] > 10
    counted: dict[str, Any] = lm.counts.as_dict()
    counts = counted["tasks"]
    assert {task: count["binding_requests"] / count["requests"] for task, count in counts.items()} == {
        "kv_512": 1.0,
        "induction_256": 1.0,
        "long_text": 0.8,  # the first bucket's 64 tokens fit
        "repeat": 1.0,
    }


def test_the_quick_group_is_a_part_of_the_full_one(full: dict[str, Any]) -> None:
    quick = yaml.safe_load((TASKS / "sketch_groups" / "sketch_quick.yaml").read_text())["task"]
    assert set(quick) < set(full["results"])


def test_few_shot_groups_and_hub_tasks_are_known(manager: TaskManager) -> None:
    assert {"sketch_fewshot", "long_text_pg19", "long_text_wikitext103", "passkey_lengths"} <= set(manager.all_tasks)


def asked(row: dict[str, Any]) -> tuple[str, str]:
    """The question, and the fact with its answer, as they stand in the prompt."""
    prompt, answer = row["prompt"], row["choices"][row["answer"]]
    if "\n" in prompt:
        question = prompt[prompt.rindex("\n") :]
        return question, f"{question} {answer}\n"
    question = prompt[prompt.rindex("The ") :]
    return question, f"{question} {answer}."


def exact(measure: Ruler, row: dict[str, Any]) -> bool:
    return max(measure.counts([f"{row['prompt']} {choice}" for choice in row["choices"]])) == row["length"]


@pytest.mark.parametrize("kind", list(needles.MAKERS))
@given(seed=st.integers(0, 10**6), depth=st.floats(0, 1), length=st.integers(200, 1024))
@settings(max_examples=15)
def test_lengths_are_exact_and_nothing_leaks(measure: Ruler, kind: str, seed: int, depth: float, length: int) -> None:
    (row,) = needles.documents(kind, measure, [length], [depth], count=1, seed=seed)
    prompt, answer = row["prompt"], row["choices"][row["answer"]]
    assert exact(measure, row)
    assert len(set(row["choices"])) == 10
    question, fact = asked(row)
    assert prompt.endswith(question)
    assert prompt.count(fact) == 1
    assert prompt.count(question) == 2
    said = Counter(prompt.replace(".", " ").split())
    if kind == "kv":
        assert len({said[choice] for choice in row["choices"]}) == 1
    else:
        assert [said[choice] for choice in row["choices"]] == [
            int(kind == "needles" or choice == answer) for choice in row["choices"]
        ]


@pytest.mark.parametrize("kind", list(needles.MAKERS))
@pytest.mark.parametrize("length", [256, 1024, 4096])
def test_a_fact_stands_at_its_depth_in_tokens(measure: Ruler, kind: str, length: int) -> None:
    long = Ruler("long", measure.tokenizer, 8192)
    depths = [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1]
    for row in needles.documents(kind, long, [length], depths, count=7):
        question, fact = asked(row)
        start, rest = row["prompt"].split("\n", 1) if kind == "kv" else ("", row["prompt"])
        assert long.counts([start])[0] < 40
        before, after = f"\n{rest}".split(fact) if kind == "kv" else rest.split(fact)
        ahead, behind = long.counts([before, after.removesuffix(question.strip())])
        line = 6 if kind == "kv" else 24
        assert abs(ahead - row["depth"] * (ahead + behind)) <= line


@pytest.mark.parametrize("kind", list(needles.MAKERS))
def test_at_the_ends_the_fact_is_first_and_last(measure: Ruler, kind: str) -> None:
    first, last = needles.documents(kind, measure, [512], [0, 1], count=2)
    question, fact = asked(last)
    assert last["prompt"].endswith(f"{fact.removesuffix(chr(10))}{'' if kind == 'kv' else ' '}{question}")
    question, fact = asked(first)
    if kind == "kv":
        assert first["prompt"].partition("\n")[2].startswith(fact.removeprefix("\n"))
    else:
        assert first["prompt"].startswith(fact)


class Quick(Ruler):
    """Measures in units, which are nearly tokens, and much faster."""

    def counts(self, texts: list[str]) -> list[int]:
        return [units(text) for text in texts]


def test_how_often_a_value_is_listed_says_nothing() -> None:
    measure = Quick("units", None, 1024)
    for length in (256, 512, 1024):
        right = 0.0
        rows = needles.documents("kv", measure, [length], count=300)
        for row in rows:
            said = Counter(row["prompt"].split())
            most = max(said[choice] for choice in row["choices"])
            best = [choice for choice in row["choices"] if said[choice] == most]
            right += (row["choices"][row["answer"]] in best) / len(best)
            listed = Counter(line.partition(": ")[2] for line in row["prompt"].splitlines() if ": " in line).values()
            assert max(listed) - min(listed) <= 1
        assert right / len(rows) < 0.13


def test_lengths_are_exact_in_gpt2s_tokens_too(shared: Path) -> None:
    gpt2 = Ruler("gpt2", AutoTokenizer.from_pretrained(shared / "data" / "gpt2-tokenizer"), 1024)
    for kind in needles.MAKERS:
        for row in needles.documents(kind, gpt2, [256, 777, 1024], count=3):
            assert exact(gpt2, row)
    row = induction.document(gpt2, 128, "0")
    assert gpt2.counts([row["contexts"][0] + row["continuations"][0]]) == [160]


def test_documents_are_the_same_bytes_everywhere(measure: Ruler) -> None:
    made = {
        "needles": [needles.documents(kind, measure, [256, 1024], count=5) for kind in needles.MAKERS],
        "induction": [induction.document(measure, 128, str(number)) for number in range(3)],
        "stress": [(stress.drift(str(number)), stress.repeat(str(number))) for number in range(3)],
    }
    digests = {name: hashlib.sha256(repr(rows).encode()).hexdigest()[:16] for name, rows in made.items()}
    assert digests == {"needles": "8a9cde75e982caaa", "induction": "f73c6eb3ea8953c5", "stress": "1d499b06c82ff0cd"}


def test_induction_copies_are_cued_and_unambiguous(measure: Ruler) -> None:
    row = induction.document(measure, 256, "0")
    text = (row["contexts"][0] + row["continuations"][0]).split()
    assert measure.counts([row["contexts"][0] + row["continuations"][0]]) == [288] == [len(text)]
    assert text[256:] == text[:32]
    assert not set(text[:32]) & set(text[32:256])
    assert row["contexts"][0].split() == text[:257]
    probes = [len(context.split()) for context in row["contexts"][1:]]
    assert probes == [259 + 4 * number for number in range(8)]
    assert [words.split() for words in row["continuations"][1:]] == [[text[at]] for at in probes]


def test_induction_scores_are_shares(measure: Ruler) -> None:
    results = [(-3.0, False), *((-0.1, first) for first in [True] * 6 + [False] * 2)]
    scores = induction.process_results({}, results)
    assert scores == {"token_perplexity": (-3.0, 31), "acc": 0.75, "exact_match": 0.0}


@pytest.mark.parametrize(("length", "buckets"), [(1024, 5), (4096, 7)])
def test_buckets_cover_the_text(measure: Ruler, length: int, buckets: int) -> None:
    ends = long_text.ends_of(buckets)
    assert (ends[0], ends[-1]) == (64, length)
    longer = Ruler("a model of more positions", measure.tokenizer, length)
    texts = stdlib.excerpts(5 * length)
    rows = [row for row, _ in zip(long_text.windows(longer, texts, 1, length), range(5), strict=False)]
    assert len(rows) == 5
    for row in rows:
        for text, end, exact in zip(row["continuations"], ends, _running(row["token"]), strict=True):
            assert measure.counts([text]) == [exact]
            assert end - long_text.SLACK < exact <= end
        assert sum(row["byte"]) == len(row["continuations"][-1].encode())
        assert sum(row["word"]) == len(row["continuations"][-1].split())
        assert all(a.startswith(b) for b, a in zip(row["continuations"], row["continuations"][1:], strict=False))


@pytest.mark.slow
def test_the_group_of_4096_tokens_asks_a_model_of_as_many_positions(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bundled.path())
    tokenizer.save_pretrained(tmp_path)
    tiny_model("llama", layers=1, vocabulary=len(tokenizer), positions=4096).save_pretrained(tmp_path)
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata={"pretrained": str(tmp_path)})
    lm = SketchHF(pretrained=str(tmp_path), max_cache_size=64, batch_size=4, device="cpu")
    results = lm_eval.simple_evaluate(
        lm, tasks=["sketch_4096"], task_manager=manager, limit=1, bootstrap_iters=0, log_samples=True
    )
    for task, samples in results["samples"].items():
        longest = max(len(lm.tok_encode("".join(request))) for request in samples[0]["arguments"])
        assert 4096 - 16 <= longest <= 4096 if task != "induction_4032" else longest == 4064, task
        assert lm.counts.tasks[task].binding_requests > 0
    with pytest.raises(UsageError, match="length=4096: expected 1 to 1024"):
        long_text.dataset(pretrained="bundled", length=4096)


def _running(sizes: list[int]) -> list[int]:
    return [sum(sizes[: number + 1]) for number in range(len(sizes))]


@pytest.mark.parametrize("cell", [{"max_cache_size": None}, {"max_cache_size": 64, "strategy": "aggregate"}])
def test_a_bucket_is_the_sum_over_its_tokens_in_one_pass(cell: dict[str, Any]) -> None:
    lm = SketchGPT2(pretrained="bundled", batch_size=8, device="cpu", **cell)
    row = long_text.dataset(pretrained="bundled", count=1)["test"][0]
    requests = [
        Instance("loglikelihood", row, ("", text), number, task_name="long_text")
        for number, text in enumerate(row["continuations"])
    ]
    scores = long_text.process_results(row, lm.loglikelihood(requests, disable_tqdm=True))
    ids = lm.tok_encode(row["continuations"][-1])
    with torch.no_grad():
        cache = None if lm.cell.max_cache_size is None else SketchCache(lm.model.config, lm.cell)
        given = torch.tensor([[lm.prefix_token_id, *ids[:-1]]])
        logits = lm.model(given, past_key_values=cache).logits.log_softmax(-1)[0]
    tokens = logits.gather(1, torch.tensor(ids)[:, None])[:, 0].double()
    buckets = [name for name in scores if name.startswith("token_perplexity_")]
    for name, part in zip(buckets, tokens.split(row["token"]), strict=True):
        assert scores[name] == (pytest.approx(part.sum().item(), abs=0.01), len(part))


def test_stress_texts_fit_one_window(measure: Ruler) -> None:
    drifts, repeats = ([write(str(number)) for number in range(10)] for write in (stress.drift, stress.repeat))
    assert all(800 < count <= 1024 for count in measure.counts(drifts + repeats))
    assert all(len(set(text.split(". "))) <= 7 for text in repeats)


def test_drift_changes_its_form_in_every_part_and_uses_all() -> None:
    for number in range(10):
        forms = [form(line) for line in stress.drift(str(number)).splitlines()]
        parts = [now for before, now in zip(["", *forms], forms, strict=False) if now != before]
        assert set(forms) == {"list", "numbers", "prose", "words"}
        assert all(forms.count(name) == 10 * parts.count(name) for name in ("list",))
        assert len(forms) - forms.count("list") == len(parts) - parts.count("list")


def form(line: str) -> str:
    """What a line of `drift` is made of."""
    if ":" in line:
        return "list"
    if line[0].isdigit():
        return "numbers"
    return "prose" if line[0].isupper() else "words"


def test_windows_of_a_folder_start_at_lines_and_are_apart(tmp_path: Path, measure: Ruler) -> None:
    lines = [f"{number} Call me Ishmael. Some years ago, never mind how long.\n" for number in range(1000)]
    (tmp_path / "whale.txt").write_text("".join(lines), encoding="utf-8-sig")
    rows = long_text.dataset(text_folder=str(tmp_path), pretrained="bundled", count=5)["test"]
    texts = [row["continuations"][-1] for row in rows]
    assert len(texts) == 5
    assert all(text.partition(" ")[2].startswith("Call me") for text in texts)
    starts = [int(text.partition(" ")[0]) for text in texts]
    assert starts[0] == 0
    assert all(b - a > texts[0].count("\n") for a, b in pairwise(starts))
    assert [int(name.rpartition(" ")[2]) for name in rows["name"]] == [
        "".join(lines).index(lines[start]) for start in starts
    ]


@pytest.mark.parametrize("kind", list(needles.MAKERS))
@pytest.mark.parametrize("letters", [4, 20])
def test_a_folder_of_texts_is_filler_of_any_length(tmp_path: Path, measure: Ruler, kind: str, letters: int) -> None:
    word = "x" * letters  # a piece has far more tokens than a list leaves to filler
    (tmp_path / "a.txt").write_text("Ishmael " + f"{word}, zyzzyva-{word}; " * 3000, encoding="utf-8")
    for row in needles.documents(kind, measure, [256, 512, 1024], [0, 0.5, 1], str(tmp_path), count=3):
        assert exact(measure, row)
        assert kind == "kv" or row["length"] == 256 or word in row["prompt"]
