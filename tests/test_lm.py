"""`sketch_gpt2` as lm-eval calls it: answers, isolation, counts, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hub import words
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, LoraModel, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from sketch_eval import UsageError
from sketch_eval.cache import SketchCache
from sketch_eval.config import CacheConfig
from sketch_eval.lm import SketchGPT2
from sketch_eval.provenance import fingerprint
from sketch_eval.unbounded import FormatCache

LAYERS = 2


def requests(kind: str, *arguments: tuple[Any, ...], task: str = "made_up") -> list[Instance]:
    return [Instance(kind, {}, argument, 0, (task, i, 1)) for i, argument in enumerate(arguments)]


SCORED = requests(
    "loglikelihood",
    *((words(count, start), " " + choice) for count, start in ((3, 1), (40, 2), (70, 3)) for choice in ("fox", "dog")),
    (words(25, 4), " " + words(12, 5)),
    ("", words(20, 6)),
)
ROLLING = requests("loglikelihood_rolling", (words(15),), (words(700, 3),), (words(90, 1),))
STOP: dict[str, Any] = {"until": ["ox", "z"], "max_gen_toks": 20}
GENERATED = requests(
    "generate_until", (words(4), STOP), (words(50, 2), STOP), (words(20, 7), STOP), (words(4, 9), STOP)
)


def answers(lm: HFLM) -> list[float | str]:
    """Everything that lm-eval can ask for, as numbers and texts."""
    scored = [logprob for logprob, _ in lm.loglikelihood(SCORED, disable_tqdm=True)]
    rolled = lm.loglikelihood_rolling(ROLLING, disable_tqdm=True)
    return [*scored, *rolled, *lm.generate_until(GENERATED, disable_tqdm=True)]


def make(checkpoint: str, batch_size: int | str = 4, **arguments: Any) -> SketchGPT2:
    return SketchGPT2(
        pretrained=checkpoint, device="cpu", batch_size=batch_size, max_batch_size=5, max_length=256, **arguments
    )


CELLS: list[dict[str, Any]] = [
    {"max_cache_size": 16, "recent": 0.25},
    {"max_cache_size": 16, "recent": 0.25, "topk": 8},
    {"max_cache_size": 16, "recent": 0.25, "strategy": "aggregate", "item": "token"},
]


@pytest.fixture(scope="session")
def plain(checkpoint: str) -> list[float | str]:
    return answers(HFLM(pretrained=checkpoint, batch_size=4, max_length=256, device="cpu"))


def assert_same(got: Sequence[float | str], expected: Sequence[float | str]) -> None:
    for mine, its in zip(got, expected, strict=True):
        assert mine == its if isinstance(its, str) else mine == pytest.approx(its, abs=2e-3, rel=1e-5)


def test_without_a_bound_that_binds_it_answers_as_lm_evals_own_model(
    checkpoint: str, plain: list[float | str], caplog: pytest.LogCaptureFixture
) -> None:
    """And says so, where a bound was asked for."""
    unbounded = make(checkpoint, max_cache_size=None)
    assert answers(unbounded) == plain
    wide = make(checkpoint, max_cache_size=1024)
    assert_same(answers(wide), plain)
    for lm in (unbounded, wide):
        counted = lm.counts.as_dict()
        assert counted["requests"] == len(SCORED + ROLLING + GENERATED)
        assert counted["binding_requests"] == counted["evictions"] == counted["hidden"] == 0
        caplog.clear()
        lm.get_model_info()
        assert ("max_cache_size=1024: no request was longer" in caplog.text) == (lm is wide)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_answers_and_counts_do_not_depend_on_the_batch(
    checkpoint: str, plain: list[float | str], cell: dict[str, Any]
) -> None:
    alone = make(checkpoint, batch_size=1, **cell)
    truth = answers(alone)
    differing = [mine != pytest.approx(its, abs=1e-2) for mine, its in zip(truth, plain, strict=True)]
    assert sum(differing) >= 9  # All but the few that fit inside the bound, and a text or two.
    for batch_size in (3, "auto"):
        lm = make(checkpoint, batch_size=batch_size, **cell)
        assert_same(answers(lm), truth)
        assert lm.counts.as_dict() == alone.counts.as_dict()
    backwards = make(checkpoint, batch_size=3, **cell)
    assert_same([logprob for logprob, _ in backwards.loglikelihood(SCORED[::-1], True)][::-1], truth[: len(SCORED)])
    texts = backwards.generate_until(GENERATED[::-1], True)[::-1]
    assert texts == truth[-len(GENERATED) :]
    assert backwards.loglikelihood_rolling(ROLLING[::-1], True)[::-1] == pytest.approx(
        truth[len(SCORED) : -len(GENERATED)], abs=2e-3
    )
    assert backwards.counts.as_dict() == alone.counts.as_dict()


class WholeGPT2(SketchGPT2):
    """As lm-eval itself does it: logits of every token, all at once."""

    def _loglikelihood_tokens(self, *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        return HFLM._loglikelihood_tokens(self, *args, **kwargs)

    def _model_call(self, inps: torch.Tensor, attn_mask: Any = None, labels: Any = None) -> torch.Tensor:
        with torch.no_grad():
            return cast(torch.Tensor, self.model(inps, past_key_values=self._new_cache(inps)).logits)


@pytest.fixture(scope="session")
def both(checkpoint: str) -> tuple[SketchGPT2, SketchGPT2]:
    settings: dict[str, Any] = {"pretrained": checkpoint, "device": "cpu", "max_length": 16, "max_cache_size": 5}
    return SketchGPT2(**settings, sinks=1), WholeGPT2(**settings, sinks=1)


# Ids of two tokens alone, one of which is also lm-eval's padding: texts that begin alike, that end in what may be
# padding, that share a pass, that are too long, and that are scored from their first token on.
EITHER = st.lists(st.sampled_from([0, 3]), min_size=1, max_size=12)


@given(st.lists(st.tuples(EITHER, EITHER), min_size=1, max_size=9), st.sampled_from([None, 5]), st.integers(1, 4))
@hypothesis_settings(max_examples=60)
def test_rows_made_where_they_are_scored_answer_as_lm_evals_whole_logits_do(
    both: tuple[SketchGPT2, SketchGPT2], asked: list[tuple[list[int], list[int]]], cap: int | None, batch_size: int
) -> None:
    answers = []
    for lm in both:
        lm.cell, lm.batch_size_per_gpu = CacheConfig(max_cache_size=cap, sinks=1), batch_size
        answers.append(lm._loglikelihood_tokens([(("", ""), *one) for one in asked], disable_tqdm=True))
    ours, theirs = answers
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert [score for score, _ in ours] == pytest.approx([score for score, _ in theirs], abs=1e-4)


def test_logits_are_made_of_the_rows_that_are_scored_and_of_no_batch_at_once(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, made = make(checkpoint, batch_size=8, max_cache_size=16), []
    head = lm._head

    def watch(hidden: torch.Tensor) -> torch.Tensor:
        made.append(len(hidden))
        return head(hidden)

    monkeypatch.setattr(lm, "_head", watch)
    lm.loglikelihood(SCORED, disable_tqdm=True)
    assert sum(made) == sum(len(lm.tok_encode(request.args[1])) for request in SCORED)
    made.clear()
    monkeypatch.setattr("sketch_eval.scored.ROWS", 300)
    lm.loglikelihood_rolling(ROLLING, disable_tqdm=True)
    assert max(made) <= 300 < sum(made)


def test_counts_are_what_the_lengths_of_the_texts_make_them(checkpoint: str) -> None:
    """A text of T tokens leaves a store of C with T - C evictions (docs/design.md §2); padding and probing, none."""
    cap, topk = 16, 5
    lm = make(checkpoint, batch_size="auto", max_cache_size=cap, topk=topk)
    HFLM._detect_batch_size(lm)  # What `auto` does on a GPU: passes over nothing but probes.
    answers(lm)

    def tokens(text: str) -> int:
        return len(lm.tok_encode(text))

    scored = [tokens(context + continuation) - 1 for context, continuation in (r.args for r in SCORED[:-1])]
    scored.append(tokens(SCORED[-1].args[1]))  # The end-of-text token stands in for an empty context.
    passes = [[length] for length in scored]
    for (text,) in (r.args for r in ROLLING):
        full, rest = divmod(tokens(text), lm.max_length)
        # The last window is filled up with what came before it.
        passes.append([lm.max_length] * full + [lm.max_length if full else rest] * (rest > 0))
    prompts = [request.args[0] for request in GENERATED]
    passes += [[tokens(prompt) + answer_tokens(lm, prompt) - 1] for prompt in prompts]
    evictions = [LAYERS * sum(max(length - cap, 0) for length in lengths) for lengths in passes]
    hidden = [
        LAYERS * sum(min(t, cap + 1) - topk for length in lengths for t in range(topk + 1, length + 1))
        for lengths in passes
    ]
    counted: dict[str, Any] = lm.counts.as_dict()
    assert counted["requests"] == len(passes)
    assert counted["binding_requests"] == sum(max(lengths) > topk for lengths in passes)
    assert (counted["evictions"], counted["hidden"], counted["folds"]) == (sum(evictions), sum(hidden), 0)
    assert counted["tasks"].keys() == {"made_up"}


def answer_tokens(lm: SketchGPT2, prompt: str) -> int:
    """Tokens that a prompt's answer takes, the one that completes a stop string included, generated alone."""
    tokens = torch.tensor([lm.tok_encode(prompt)])
    limit = {"max_new_tokens": STOP["max_gen_toks"], "do_sample": False, "pad_token_id": lm.eot_token_id}
    answer = lm.model.generate(tokens, past_key_values=SketchCache(lm.model.config, lm.cell), **limit)[
        0, tokens.shape[1] :
    ]
    stops = [*STOP["until"], "<|endoftext|>"]
    ends = (n for n in range(1, len(answer)) if any(stop in lm.tokenizer.decode(answer[:n]) for stop in stops))
    return next(ends, len(answer))


def test_tasks_that_share_a_prompt_but_not_its_settings_are_counted_apart(checkpoint: str) -> None:
    short = requests("generate_until", (words(20), {"until": [], "max_gen_toks": 2}), task="short")
    long = requests("generate_until", (words(20), {"until": [], "max_gen_toks": 60}), task="long")
    other = requests("generate_until", (words(30), {"until": [], "max_gen_toks": 60}), task="other")
    counted = []
    for order in (short + long + other, other + short + long):
        lm = make(checkpoint, max_cache_size=16)
        lm.generate_until(order, disable_tqdm=True)
        counted.append({task: count.evictions for task, count in lm.counts.tasks.items()})
    assert counted[0] == counted[1]
    assert counted[0]["long"] > counted[0]["short"]


def test_a_request_that_is_repeated_counts_each_time_and_one_that_fills_up_a_process_does_not(checkpoint: str) -> None:
    lm = make(checkpoint, max_cache_size=16)
    twice = Instance("loglikelihood", {}, (words(30), " fox"), 0, ("sampled", 0, 2))
    lm.loglikelihood([twice, twice, *SCORED[:1], *SCORED[:1]], disable_tqdm=True)
    assert {task: count.requests for task, count in lm.counts.tasks.items()} == {"sampled": 2, "made_up": 1}


def test_folds_are_counted(checkpoint: str) -> None:
    lm = make(checkpoint, max_cache_size=16, strategy="aggregate", recent=0.5)
    lm.loglikelihood(SCORED, disable_tqdm=True)
    counted: dict[str, Any] = lm.counts.as_dict()
    assert counted["folds"] == counted["evictions"] > 0


def test_a_response_cache_never_hands_one_cell_anothers_scores(checkpoint: str, tmp_path: Path) -> None:
    database = str(tmp_path / "responses.db")
    first = CachingLM(make(checkpoint, max_cache_size=16), database).loglikelihood(SCORED)
    with pytest.raises(UsageError, match="another cell"):
        CachingLM(make(checkpoint, max_cache_size=32), database)
    again = make(checkpoint, max_cache_size=16)
    assert CachingLM(again, database).loglikelihood(SCORED) == first
    assert again.counts.as_dict()["requests"] == 0
    CachingLM(HFLM(pretrained=checkpoint, device="cpu"), str(tmp_path / "others.db")).loglikelihood(SCORED)
    with pytest.raises(UsageError, match="another cell"):
        CachingLM(make(checkpoint, max_cache_size=16), str(tmp_path / "others.db"))


@pytest.mark.parametrize("precision", [{}, {"dtype": "bfloat16"}, {"mixed_precision_dtype": "bfloat16"}], ids=str)
@pytest.mark.parametrize(("cap", "store"), [(16, "float"), (16, "k8v4"), (None, "float16"), (None, "int4")])
def test_the_ledger_is_of_the_cache_that_runs(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch, precision: dict[str, str], cap: int | None, store: str
) -> None:
    lm = make(checkpoint, batch_size=1, max_cache_size=cap, store=store, **precision)
    made: list[SketchCache | FormatCache] = []
    new_cache = lm._new_cache

    def keep(tokens: torch.Tensor) -> SketchCache | FormatCache:
        cache = new_cache(tokens)
        assert isinstance(cache, SketchCache | FormatCache)
        made.append(cache)
        return cache

    monkeypatch.setattr(lm, "_new_cache", keep)
    lm.loglikelihood_rolling(ROLLING[1:2], disable_tqdm=True)  # Its first window is as long as the model reads.
    assert lm.get_model_info()["sketch_eval"]["ledger"]["peak_bytes"] == sum(made[0].nbytes().values())


def test_results_say_what_is_needed_to_run_them_again(checkpoint: str) -> None:
    lm = make(checkpoint, max_cache_size=16, seed=3)
    lm.loglikelihood(SCORED, disable_tqdm=True)
    info = json.loads(json.dumps(lm.get_model_info()["sketch_eval"]))
    assert info["cell"] == lm.cell.model_dump()
    assert info["device"] == "cpu"
    assert info["ledger"]["tokens"] == 16
    assert info["ledger"]["sketch_bytes"] == LAYERS * 512 * 4 * 4
    assert info["counts"]["tasks"]["made_up"]["requests"] == len(SCORED)
    assert {"sketch-eval", "lm-eval", "torch", "transformers"} <= info["versions"].keys()
    again, other = make(checkpoint), make(checkpoint, dtype="bfloat16")
    assert again.get_model_info()["sketch_eval"]["model_fingerprint"] == info["model_fingerprint"]
    assert other.get_model_info()["sketch_eval"]["model_fingerprint"] != info["model_fingerprint"]


def test_an_adapter_runs_on_the_bounded_cache(checkpoint: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(checkpoint)
    adapted = get_peft_model(base, LoraConfig(target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True))
    adapted.save_pretrained(str(tmp_path))
    scored = [
        make(checkpoint, peft=peft, max_cache_size=cap).loglikelihood(SCORED, disable_tqdm=True)
        for peft, cap in ((str(tmp_path), None), (str(tmp_path), 250), (str(tmp_path), 16), (None, 16))
    ]
    assert_same([logprob for logprob, _ in scored[1]], [logprob for logprob, _ in scored[0]])
    assert scored[1] != scored[2] != scored[3]


def test_a_loaded_adapter_scores_as_its_name_does(checkpoint: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(checkpoint)
    adapted = get_peft_model(base, LoraConfig(target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True))
    adapted.save_pretrained(str(tmp_path))
    for cap in (None, 16):
        named = make(checkpoint, peft=str(tmp_path), max_cache_size=cap)
        loaded = SketchGPT2(
            pretrained=PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(checkpoint), tmp_path),
            tokenizer=named.tokenizer, batch_size=4, max_length=256, max_cache_size=cap,
        )  # fmt: skip
        assert answers(loaded) == answers(named)
        assert fingerprint(loaded.model) == fingerprint(named.model)


def test_whatever_changes_a_pass_changes_the_models_fingerprint(checkpoint: str, tmp_path: Path) -> None:
    """Equal weights in 2 and in 4 heads are two models; a folder's name and the library's version are not."""
    found: dict[str, dict[str, Any]] = {}
    for changes in ({}, {"n_head": 4}, {"scale_attn_weights": False}, {"layer_norm_epsilon": 1e-3}):
        folder = tmp_path / str(len(found))
        shutil.copytree(checkpoint, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))
        found[fingerprint(AutoModelForCausalLM.from_pretrained(folder))] = changes
    assert len(found) == 4
    (tmp_path / "0" / "config.json").write_text(
        json.dumps(config | {"transformers_version": "5.0.0", "use_cache": False})
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "0")
    model.config.layer_norm_epsilon = 1e-5
    assert found[fingerprint(model)] == {}
    model.generation_config.repetition_penalty = 1.5
    assert fingerprint(model) not in found


def test_adapters_that_differ_in_scale_alone_are_two_models(checkpoint: str) -> None:
    found = set()
    for alpha in (8, 16):
        torch.manual_seed(1)
        lora = LoraConfig(target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True, lora_alpha=alpha)
        found.add(fingerprint(get_peft_model(AutoModelForCausalLM.from_pretrained(checkpoint), lora)))
    assert len(found) == 2


def test_a_tokenizer_that_begins_texts_otherwise_is_another_one(checkpoint: str, tmp_path: Path) -> None:
    """The token before a rolling text's first one is in no definition of the tokenizer's own."""
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    said = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps(said | {"bos_token": "a"}))
    one, two = make(checkpoint, max_cache_size=16), make(str(other), max_cache_size=16)
    assert one.prefix_token_id != two.prefix_token_id
    CachingLM(one, str(tmp_path / "responses.db")).loglikelihood_rolling(ROLLING)
    with pytest.raises(UsageError, match="another cell, model or version"):
        CachingLM(two, str(tmp_path / "responses.db"))


def test_an_adapter_that_was_chosen_or_switched_off_is_another_model(checkpoint: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    lora = LoraConfig(target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(checkpoint), lora, adapter_name="one")
    model.add_adapter("two", lora)
    model.set_adapter("one")
    lm = SketchGPT2(pretrained=model, tokenizer=checkpoint, max_cache_size=16, batch_size=4, max_length=256)

    def look() -> tuple[float, str]:
        scores = [score for score, _ in lm.loglikelihood(SCORED, disable_tqdm=True)]
        return sum(scores), json.dumps(lm._identity(), sort_keys=True)

    found = [look()]
    model.set_adapter("two")
    found.append(look())
    cast(LoraModel, model.base_model).disable_adapter_layers()
    found.append(look())
    assert len({score for score, _ in found}) == len({identity for _, identity in found}) == 3


def test_a_response_cache_is_of_one_state_of_the_code(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    CachingLM(make(checkpoint, max_cache_size=16), str(tmp_path / "responses.db")).loglikelihood(SCORED[:1])
    monkeypatch.setattr("sketch_eval.provenance.sources", lambda: "another tree")
    with pytest.raises(UsageError, match="another cell, model or version"):
        CachingLM(make(checkpoint, max_cache_size=16), str(tmp_path / "responses.db"))


def test_counts_are_of_one_evaluation(checkpoint: str) -> None:
    lm, seen = make(checkpoint, max_cache_size=16, recent=0.25), []
    for _ in range(2):
        answers(lm)
        # To look twice changes nothing.
        seen += [lm.get_model_info()["sketch_eval"]["counts"] for _ in range(2)]
    assert seen[0] == seen[1] == seen[2] == seen[3]
    assert seen[0]["requests"] == len([*SCORED, *ROLLING, *GENERATED])
    lm.loglikelihood(SCORED, disable_tqdm=True)  # An evaluation that ended in an error reports nothing.
    answers(lm)
    assert lm.get_model_info()["sketch_eval"]["counts"] == seen[0]
    lm.loglikelihood(SCORED, disable_tqdm=True)
    with pytest.raises(UsageError):
        lm.generate_until(requests("generate_until", (words(4), {"guidance_scale": 2.0})), disable_tqdm=True)
    lm.loglikelihood_rolling(ROLLING, disable_tqdm=True)
    assert lm.get_model_info()["sketch_eval"]["counts"]["requests"] == len(ROLLING)


def test_an_evaluation_that_a_response_cache_answers_counts_nothing(checkpoint: str, tmp_path: Path) -> None:
    lm, counted = make(checkpoint, max_cache_size=16), []
    for _ in range(2):
        CachingLM(lm, str(tmp_path / "responses.db")).loglikelihood(SCORED)
        counted.append(lm.get_model_info()["sketch_eval"]["counts"]["requests"])
    assert counted == [len(SCORED), 0]


RANKS = """
import sys
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from sketch_eval.lm import SketchGPT2

folder, address, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)


class Rank(SketchGPT2):
    _detect_batch_size = HFLM._detect_batch_size

    def all_gather(self, tensor):
        found = [torch.zeros_like(tensor) for _ in range(2)]
        torch.distributed.all_gather(found, tensor)
        return torch.cat(found)


lm = Rank(pretrained=folder, device="cpu", batch_size="auto", max_batch_size=2, max_length=64, max_cache_size=32)
lm._rank, lm._world_size = rank, 2
asked = [("the quick", {"until": [], "max_gen_toks": 2 + i * (rank == 0)}) for i in range(3)]
print(lm.generate_until([Instance("generate_until", {}, one, 0, ("t", i, 1)) for i, one in enumerate(asked)]))
"""


@pytest.mark.slow
def test_processes_with_different_numbers_of_generation_settings_do_not_wait_for_each_other(
    checkpoint: str, tmp_path: Path
) -> None:
    """Three settings on one rank and one on the other, each finding its batch size together with the other."""
    command = [sys.executable, "-c", RANKS, checkpoint, f"file://{tmp_path}/meet"]
    ranks = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    try:
        for process in ranks:
            _, said = process.communicate(timeout=60)
            assert process.returncode == 0, said
    finally:
        for process in ranks:
            process.kill()
