"""How given texts are scored in batches, what a batch counts, and what a GPU is asked meanwhile."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from hub import words
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2LMHeadModel

from sketch_eval import UsageError
from sketch_eval.attention import enable, foresee
from sketch_eval.cache import SketchCache
from sketch_eval.config import CacheConfig
from sketch_eval.counts import passed, tally
from sketch_eval.evaluate.model import MOST_TEXTS, SweepLM
from sketch_eval.execution import choose
from sketch_eval.lm import SketchHF
from sketch_eval.scored import Begun, Text, ahead, score, texts_of

BOUNDED = CacheConfig(max_cache_size=16, recent=0.25)
LONGEST = 128


def requests(kind: str, *arguments: tuple[str, ...]) -> list[Instance]:
    return [Instance(kind, {}, argument, 0, ("made_up", i, 1)) for i, argument in enumerate(arguments)]


MANY = requests(
    "loglikelihood",
    *((words(i + 1), " " + words(choice + 1)) for i in range(20) for choice in range(2)),
    *((" ".join(pair), " fox") for pair in itertools.product(words(11).split(), repeat=2)),
)
ROLLING = requests("loglikelihood_rolling", (words(15),), (words(300, 3),), (words(90, 1),))


@pytest.fixture
def lm(checkpoint: str) -> SweepLM:
    return SweepLM(pretrained=checkpoint, device="cpu", batch_size=2, max_length=LONGEST, max_cache_size=None)


def answers(lm: SweepLM) -> list[float]:
    lm.take(BOUNDED, {})
    return [said for said, _ in lm.loglikelihood(MANY)] + lm.loglikelihood_rolling(ROLLING)


def watched(monkeypatch: pytest.MonkeyPatch, order: list[str]) -> list[list[Text]]:
    """The batches that a model is given, from now on; order is told when each begins."""
    seen: list[list[Text]] = []
    begin = SweepLM._begin

    def watch(self: SweepLM, texts: list[Text]) -> Begun:
        seen.append(texts)
        order.append("begin")
        return begin(self, texts)

    monkeypatch.setattr(SweepLM, "_begin", watch)
    return seen


def test_on_a_gpu_a_sweeps_batch_has_the_tokens_of_as_many_of_the_longest_texts(
    lm: SweepLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says what batches of as many texts say."""
    plain, counted = answers(lm), lm.counts.as_dict()
    batches = watched(monkeypatch, [])
    lm._by_tokens = True
    assert answers(lm) == pytest.approx(plain, abs=2e-3, rel=1e-5)
    assert lm.counts.as_dict() == counted
    assert lm.tokens == sum(len(text.tokens) for batch in batches for text in batch)
    assert lm.batch_size == 2
    most = MOST_TEXTS * 2
    sizes = [(len(batch), len(batch) * max(len(text.tokens) for text in batch)) for batch in batches]
    assert max(texts for texts, _ in sizes) == most
    assert all(tokens <= 2 * LONGEST for _, tokens in sizes)
    # One more text would have been too much, but for the last batch of each kind of request.
    full = [texts == most or tokens + tokens // texts > 2 * LONGEST for texts, tokens in sizes]
    assert full.count(False) <= 2
    lm.take(CacheConfig(max_cache_size=16, importance="clairvoyant", recent=0.25), {})
    batches.clear()
    lm.loglikelihood(MANY[:4])
    assert [len(batch) for batch in batches] == [1] * 4


@given(st.lists(st.integers()), st.integers(0, 3))
def test_nothing_that_was_begun_ahead_is_lost_or_out_of_turn(numbers: list[int], count: int) -> None:
    begun: list[int] = []
    finished = []

    def begin() -> Iterator[int]:
        for each in numbers:
            begun.append(each)
            yield each

    for one in ahead(begin(), count):
        finished.append(one)
        assert len(begun) == min(len(finished) + count, len(numbers))
    assert finished == numbers


def test_a_batch_that_is_begun_before_the_last_one_is_finished_changes_no_answer(
    lm: SweepLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, counted = answers(lm), lm.counts.as_dict()
    order: list[str] = []
    finish = Begun.finish

    def note(self: Begun) -> Any:
        order.append("finish")
        return finish(self)

    batches = watched(monkeypatch, order)
    monkeypatch.setattr(Begun, "finish", note)
    monkeypatch.setattr("sketch_eval.bounded.ahead", lambda begun, _: ahead(begun, 1))
    assert answers(lm) == plain
    assert lm.counts.as_dict() == counted
    assert order.count("begin") == order.count("finish") == len(batches)
    assert order[:5] == ["begin", "begin", "finish", "begin", "finish"]


@pytest.mark.parametrize(
    "changes",
    [
        {"topk": 4},
        {"strategy": "aggregate"},
        {"scope": "head", "topk": 4},
        {"scope": "head", "strategy": "aggregate"},
        {"scope": "budget", "importance": "exact"},
    ],
    ids=str,
)
def test_a_tally_is_the_sum_over_what_was_decided_of_each_sequence(
    model: GPT2LMHeadModel, changes: dict[str, Any]
) -> None:
    cell = CacheConfig.parse(max_cache_size=8, sinks=1, recent=0.25, width=16, depth=2, **changes)
    cache = SketchCache(model.config, cell, traced=True)
    enable(model)
    tokens = torch.randint(1, 61, (3, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model(tokens, past_key_values=cache)
    columns = [20, 13, 5]
    counts = passed(tally(cache, columns, torch.device("cpu")), rounded=False)
    for sequence, (count, end) in enumerate(zip(counts, columns, strict=True)):
        rows = range(sequence * cache.units, (sequence + 1) * cache.units)
        evictions = folds = hidden = 0
        for layer, row, column in itertools.product(range(len(cache.layers)), rows, range(end)):
            trace = cache.trace(layer)
            evictions += int(trace.victims[row, column] >= 0)
            folds += int(trace.survivors[row, column] >= 0)
            hidden += int(trace.hidden[row, column])
        assert (count.evictions, count.folds, count.hidden, count.requests, count.rounded) == (
            evictions, folds, hidden, 0, 0,
        )  # fmt: skip
    assert counts[0].evictions > counts[1].evictions > counts[2].evictions
    assert passed(tally(None, [3], torch.device("cpu")), rounded=True)[0].rounded == 1


@pytest.mark.parametrize(
    ("context", "continuation"), [([], [1]), ([1], []), ([1], [2] * 17)], ids=["context", "none", "long"]
)
def test_what_cannot_be_scored_is_refused_by_its_name(context: list[int], continuation: list[int]) -> None:
    with pytest.raises(UsageError, match="'the document'"):
        texts_of([("the document", context, continuation)], 16)


@pytest.mark.parametrize("precision", [None, "float64"])
def test_answers_are_those_of_lm_evals_own_loop_in_the_precision_that_is_asked(
    checkpoint: str, precision: str | None
) -> None:
    arguments: dict[str, Any] = {"pretrained": checkpoint, "device": "cpu", "batch_size": 4, "softmax_dtype": precision}
    ours, theirs = SketchHF(max_cache_size=None, **arguments), HFLM(logits_cache=False, **arguments)
    said, says = ours.loglikelihood(MANY, True), theirs.loglikelihood(MANY, disable_tqdm=True)
    assert [greedy for _, greedy in said] == [greedy for _, greedy in says]
    assert [logprob for logprob, _ in said] == pytest.approx([logprob for logprob, _ in says], abs=1e-5)
    assert any(torch.tensor(logprob).item() != logprob for logprob, _ in said) == (precision == "float64")
    assert ours.loglikelihood_rolling(ROLLING, True) == pytest.approx(
        theirs.loglikelihood_rolling(ROLLING, disable_tqdm=True), rel=1e-7
    )


def test_a_continuation_is_scored_by_its_own_rows_where_another_one_of_the_same_text_is_longer(lm: SweepLM) -> None:
    """lm-eval's own loop takes the longer one's first rows."""
    splits: list[Any] = [(None, [5, 6, 7], [8, 9, 10]), (None, [5, 6, 7, 8, 9], [10])]
    together = lm._loglikelihood_tokens(splits)
    alone = [lm._loglikelihood_tokens([one])[0] for one in splits]
    assert together == alone
    lm.logits_cache = False
    assert [text.requests for text in texts_of(splits, LONGEST, shared=False)] == [[0], [1]]
    assert [score for score, _ in lm._loglikelihood_tokens(splits)] == pytest.approx([score for score, _ in alone])


def one_row(logits: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """A head that says the same of each row."""
    return logits.repeat(len(hidden), 1)


def test_the_first_of_equally_likely_tokens_is_the_greedy_one() -> None:
    texts = texts_of([(None, [1], [token]) for token in (2, 4)], LONGEST)
    tied = torch.tensor([0.0, 1.0, 3.0, 2.0, 3.0])
    for logits in (tied, tied.bfloat16()):
        _, greedy = score(torch.zeros(1, 1, 2), texts, partial(one_row, logits))
        assert greedy.tolist() == [True, False]


@pytest.mark.parametrize("probes", [3, 4, 40])
def test_a_schedule_of_batch_sizes_is_asked_at_each_place(
    lm: SweepLM, monkeypatch: pytest.MonkeyPatch, probes: int
) -> None:
    monkeypatch.setattr(lm, "batch_size_per_gpu", "auto")
    monkeypatch.setattr(lm, "batch_schedule", probes)
    monkeypatch.setattr(lm, "max_batch_size", 8)
    lengths: list[int] = []

    def detect(requests: Any, place: int) -> int:
        _, context, continuation = requests[place]
        lengths.append(len(context + continuation) - 1)
        return 7

    monkeypatch.setattr(lm, "_detect_batch_size", detect)
    texts = texts_of([(None, [1] * length, [2]) for length in range(1, 21)], LONGEST)
    assert [len(batch) for batch in lm._batches(texts, None)] == [7, 7, 6]
    step = len(texts) // min(probes, len(texts))
    assert lengths == [len(text.tokens) for text in texts[::step]]
    assert [len(batch) for batch in lm._batches(texts, 9)] == [9, 9, 2]


def test_a_probe_for_a_batch_size_makes_as_many_logits_as_a_batch(lm: SweepLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sketch_eval.bounded.ROWS", 50)
    assert len(lm._model_call(torch.ones(3, 40, dtype=torch.int64))) == 50
    assert len(lm._model_call(torch.ones(3, 60, dtype=torch.int64))) == 60


def test_the_seconds_of_a_pass_hold_what_a_clairvoyant_reads_before(
    lm: SweepLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(*args: Any) -> Any:
        time.sleep(0.2)
        return foresee(*args)

    monkeypatch.setattr("sketch_eval.bounded.foresee", slowly)
    lm.take(CacheConfig(max_cache_size=16, importance="clairvoyant", recent=0.25), {})
    lm.loglikelihood(MANY[:4])
    assert lm.pass_seconds > 0.8


def test_texts_that_are_cut_are_mentioned_once(lm: SweepLM, caplog: pytest.LogCaptureFixture) -> None:
    lm._loglikelihood_tokens([(None, [5] * LONGEST, [6]), (None, [5] * LONGEST, [6, 7])], disable_tqdm=True)
    lm._loglikelihood_tokens([(None, [5] * LONGEST, [6]), (None, [5] * LONGEST, [6, 7])], disable_tqdm=True)
    assert [record.message for record in caplog.records if "left out" in record.message] == [
        f"max_length={LONGEST}: 1 of 2 requests are longer, and their first tokens are left out"
    ]


class Asked(TorchDispatchMode):
    """Notes the operations whose result the processor would have to wait for if a GPU made it."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(function) for name in ("_local_scalar_dense", "nonzero", "aten.equal", "masked_select")):
            self.operations.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "changes",
    [{}, {"scope": "head"}, {"strategy": "aggregate"}, {"importance": "exact"}, {"importance": "knorm"},
     {"importance": "random"}, {"store": "k8v4"}],
    ids=str,
)  # fmt: skip
def test_a_pass_through_the_kernel_asks_the_device_nothing_until_it_is_finished(
    lm: SweepLM, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """So that the next batch can begin while a GPU is still at this one."""
    pytest.importorskip("triton", reason="Triton is not installed: pip install -e '.[gpu]' -c constraints.txt")
    monkeypatch.setattr(choose, "FASTEST_FIRST", ("triton",))
    lm.take(CacheConfig.parse(max_cache_size=8, sinks=1, recent=0.25, width=8, depth=2, **changes), {})
    texts = texts_of([(None, [1, 2, 3, 4, 5, 6, 7, 8, 9, last], [3, 4]) for last in (1, 2)], LONGEST)
    with Asked() as asked:
        begun = lm._begin(texts)
    assert asked.operations == []
    with asked:
        found = list(begun.finish())
    assert asked.operations
    assert {number for number, _, _ in found} == {0, 1}
    assert all(count.evictions > 0 for *_, count in found)


def test_each_of_several_prompts_that_are_searched_by_beams_counts_its_own(checkpoint: str) -> None:
    settings = {"until": [], "max_gen_toks": 4, "num_beams": 2}
    prompts = [Instance("generate_until", {}, (words(n), settings), 0, (str(n), 0, 1)) for n in (25, 40, 33)]
    counted = []
    for batch_size in (1, 3):
        lm = SketchHF(pretrained=checkpoint, device="cpu", batch_size=batch_size, max_length=LONGEST, max_cache_size=16)
        lm.generate_until(prompts, disable_tqdm=True)
        counted.append({task: count.evictions for task, count in lm.counts.tasks.items()})
    assert counted[0] == counted[1]
    assert counted[0]["25"] < counted[0]["33"] < counted[0]["40"]
