"""`--model sketch_hf` and `--model sketch_gpt2`: lm-eval's own Hugging Face model, through a bounded cache."""

from __future__ import annotations

import bisect
import itertools
import json
import logging
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.utils import get_rolling_token_windows

from sketch_eval import provenance
from sketch_eval.arguments import check_generation
from sketch_eval.bounded import BoundedLM
from sketch_eval.counts import Count, Counts, passed, tally
from sketch_eval.errors import UsageError, report_in_one_line
from sketch_eval.ledger import ledger

report_in_one_line()  # lm-eval's command line imports this module when it is asked for the model.

_log = logging.getLogger(__name__)

_CACHE_OWNER = "sketch_eval:owner"


class SketchHF(BoundedLM):
    """A causal language model with a KV cache of at most `max_cache_size` pairs a layer (docs/design.md §2).

    Every pass goes through the bounded cache, and what it met there is counted by task. The arguments and what is
    raised are `LoadedLM`'s.
    """

    alias: ClassVar[str] = "sketch_hf"

    def __init__(self, *args: Any, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self._forget_counts()
        self._contexts: list[str] = []
        self._answers: defaultdict[str, deque[Count]] = defaultdict(deque)

    # Scoring.

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        with self._evaluating("loglikelihood"):
            answers = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
            self._count(requests, [1] * len(requests))
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        with self._evaluating("loglikelihood_rolling"):
            answers = super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
            self._count(requests, [self._windows(request.args[0]) for request in requests])
        return answers

    def _windows(self, text: str) -> int:
        """Number of windows in which HFLM scores a document."""
        tokens, prefix = self.tok_encode(text), self.prefix_token_id
        windows = get_rolling_token_windows(
            token_list=tokens, prefix_token=prefix, max_seq_len=self.max_length, context_len=1
        )
        return sum(1 for _ in windows)

    # Generation. HFLM pads on the left, and goes on with every row until all have met a stop string.

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        if self.cell.foresees:
            raise UsageError(
                f"importance={self.cell.importance!r} has to know the text before it begins, and cannot generate; name "
                "tasks that score given texts"
            )
        with self._evaluating("generate_until"):
            return self._generate_until(requests, disable_tqdm)

    def _generate_until(self, requests: list[Instance], disable_tqdm: bool) -> list[str]:
        """HFLM batches requests with the same settings; one call for each setting tells their counts apart as well."""
        groups: defaultdict[str, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            check_generation(request.args[1], self.transformer.generation_config, self.max_length)
            groups[repr(request.args[1])].append(index)
        answers, asked = [""] * len(requests), [Count()] * len(requests)
        size: Any = self.batch_size_per_gpu  # type: ignore[has-type]
        if size == "auto":
            # Once, and not in each call: processes find the least of their sizes together, and need not have as many
            # settings.
            self.batch_size_per_gpu = self._detect_batch_size()
        try:
            for group in groups.values():
                self._answers.clear()
                texts = super().generate_until([requests[index] for index in group], disable_tqdm=disable_tqdm)
                for index, text in zip(group, texts, strict=True):
                    answers[index] = text
                    asked[index] = self._answers[requests[index].args[0]].popleft()
        finally:
            self.batch_size_per_gpu = size
        self._asked = asked
        self._count(requests, [1] * len(requests))
        return answers

    def tok_batch_encode(self, strings: list[str], *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        self._contexts = list(strings)  # The rows of the batch that is generated next.
        tokens, mask = super().tok_batch_encode(strings, *args, **kwargs)
        for string, length in zip(strings, mask.sum(1).tolist(), strict=True):
            _check_tokens(string, length)
        return tokens, mask

    def tok_encode(self, string: str, *args: Any, **kwargs: Any) -> list[int]:
        tokens = super().tok_encode(string, *args, **kwargs)
        _check_tokens(string, len(tokens))
        return tokens

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **generation: Any
    ) -> torch.Tensor:
        cache = self._new_cache()
        if cache is not None:
            generation["past_key_values"] = cache
        tokens = super()._model_generate(context, max_length, stop, **generation)
        padded, beams = context.shape[1], generation.get("num_beams", 1)
        # The last token of an answer is never fed back.
        fed = [max(self._answer_length(answer, stop) - 1, 0) for answer in tokens[:, padded:].tolist()]
        columns = [padded + count for count in fed for _ in range(beams)]
        counts = passed(tally(cache, columns, self.device).cpu(), self.rounds)
        for text, count in zip(self._contexts, counts[::beams], strict=True):
            self._answers[text].append(count)
        return tokens

    def _answer_length(self, tokens: list[int], stop: list[str]) -> int:
        """Tokens up to the one that ends the answer: what follows depends on the other rows of the batch."""
        if self.eot_token_id in tokens:
            tokens = tokens[: tokens.index(self.eot_token_id) + 1]

        def ended(length: int) -> bool:
            text = self.tok_decode(tokens[:length])
            return any(string in text for string in stop)

        return bisect.bisect_left(range(len(tokens)), True, key=ended)

    # What lm-eval's results say of the run.

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Refuse an lm-eval response cache (`--use_cache`) that holds other scores than this cell's.

        lm-eval keys a response by its request alone (lm_eval.api.model.hash_args), so a cache is stamped with what
        filled it.

        Raises:
            UsageError: the file was filled by another cell, model or version; or there are several processes.
        """
        super().set_cache_hook(cache_hook)
        self._forget_counts()  # An evaluation begins, all of whose answers may be in the file.
        if cache_hook.dbdict is None:
            return
        if self.world_size > 1:
            raise UsageError("use_cache: not with several processes, whose counts would wait for each other; leave it")
        owner = json.dumps(self._identity(), sort_keys=True)
        if len(cache_hook.dbdict) == 0:
            cache_hook.dbdict[_CACHE_OWNER] = owner
        elif cache_hook.dbdict.get(_CACHE_OWNER) != owner:
            raise UsageError(
                "use_cache: the file holds the scores of another cell, model or version; give each its own file"
            )

    def get_model_info(self) -> dict[str, Any]:
        """HFLM's, and under `sketch_eval` the cell, the ledger, the counts and what identifies the run.

        The counts are of one evaluation: the requests since the last report, and each kind of request once, as lm-eval
        asks for them.
        """
        self._reported = True
        counts = self.counts.as_dict()
        if self.cell.max_cache_size is not None and counts["requests"] and not counts["binding_requests"]:
            self._say_that_nothing_was_bound()
        report = {
            **self._identity(),
            "device": str(self.device),
            "ledger": ledger(
                self.cell, self.transformer.config, self.mixed_precision_dtype or self.model.dtype, self.max_length
            ),
            "counts": counts,
            "peak_device_memory_bytes": provenance.peak_device_memory(self.device),
        }
        return super().get_model_info() | {"sketch_eval": report}

    def _say_that_nothing_was_bound(self) -> None:
        _log.warning(
            f"max_cache_size={self.cell.max_cache_size}: no request was longer than the cache holds, so these are the "
            "full cache's scores; give fewer pairs, or tasks of longer texts"
        )

    def _identity(self) -> dict[str, Any]:
        """Everything that decides a score, but the request."""
        return {
            "cell": self.cell.model_dump(),
            **self._origin,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "options": self._options,
            "max_length": self.max_length,
            **provenance.adapters(self.model),
        }

    @cached_property
    def _origin(self) -> dict[str, Any]:
        """The part of `_identity` that takes a while to find, and that no cell changes."""
        return {
            "model_fingerprint": provenance.fingerprint(self.model),
            "tokenizer_fingerprint": provenance.tokenizer_fingerprint(self.tokenizer),
            "versions": provenance.versions(),
            "sources": provenance.sources(),
            "commit": provenance.commit(),
        }

    @contextmanager
    def _evaluating(self, kind: str) -> Iterator[None]:
        """A kind of request is at work; where it came before, or the counts were reported, it is another evaluation's.

        An evaluation that fails takes its counts along.
        """
        if self._reported or kind in self._kinds:
            self._forget_counts()
        self._kinds.add(kind)
        self._asked = []
        try:
            yield
        except BaseException:
            self._forget_counts()
            raise

    def _forget_counts(self) -> None:
        self.counts, self._kinds, self._reported = Counts(), set[str](), False

    def _count(self, requests: list[Instance], passes: list[int]) -> None:
        """Count what was asked for, but not what lm-eval asks for once more to give each process as much to do."""
        asked, times, counts = iter(self._asked), Counter[int](), Counts()
        for request, number in zip(requests, passes, strict=True):
            total = sum(itertools.islice(asked, number), Count())
            times[id(request)] += 1
            if times[id(request)] <= (request.repeats or 1):
                counts.add(request.task_name or "", total.as_request())
        for gathered in self.gather_object(counts) or []:
            self.counts.merge(gathered)


class SketchGPT2(SketchHF):
    """`SketchHF` for GPT-2 alone, whose weights it loads where no model is named."""

    alias: ClassVar[str] = "sketch_gpt2"
    families: ClassVar[tuple[str, ...]] = ("gpt2",)

    def __init__(self, pretrained: Any = "gpt2", *args: Any, **arguments: Any) -> None:
        super().__init__(pretrained, *args, **arguments)


def _check_tokens(string: str, tokens: int) -> None:
    if string and not tokens:
        raise UsageError(f"tokenizer: no tokens for {string[:40]!r}, which would seem certain; give another")
