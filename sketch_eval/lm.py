"""`--model sketch_gpt2`: lm-eval's own Hugging Face model, whose every pass goes through the bounded cache."""

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
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows

from sketch_eval import attention, bundled, provenance
from sketch_eval.arguments import (
    check_arguments,
    check_generation,
    check_loaded,
    check_tokenizer,
    find_device,
    unwrap,
)
from sketch_eval.cache import SketchCache
from sketch_eval.config import CacheConfig, nearest
from sketch_eval.counts import Count, Counts, passed
from sketch_eval.errors import UsageError, report_in_one_line, sentence
from sketch_eval.families import check
from sketch_eval.ledger import ledger

report_in_one_line()  # lm-eval's command line imports this module when it is asked for the model.

_HARMLESS = {"batch_size", "max_batch_size", "logits_cache", "max_cpu_memory", "max_memory_per_gpu", "offload_folder"}
"""Arguments of HFLM that decide no score."""

_NOTHING_SCORED: tuple[SketchCache | None, torch.Tensor, Iterator[int]] = (None, torch.empty(0), iter(()))

_CPU_BATCH = 8
"""What batch_size=auto is on a CPU."""

_log = logging.getLogger(__name__)

_CACHE_OWNER = "sketch_eval:owner"


class SketchGPT2(HFLM):
    """GPT-2 with a KV cache of at most `max_cache_size` pairs a layer (DESIGN §2).

    Args:
        pretrained: a GPT-2 by hub name or folder, a loaded one (with a PEFT adapter or without), or `bundled` for the
            model in this package.
        backend: `causal`, or `default`, which is the same here.
        device: as in HFLM, or the number of a CUDA device; by default CUDA where there is one, else the CPU.
        **arguments: those of `CacheConfig`, and HFLM's own.

    Raises:
        UsageError: a bad argument, a model that is not GPT-2 or cannot be had, a tokenizer that is not its own; before
            any weights are loaded.
    """

    families: ClassVar[tuple[str, ...]] = ("gpt2",)
    """Names in `families.FAMILIES` of the models that it takes."""

    def __init__(
        self, pretrained: Any = "gpt2", backend: str = "default", device: str | int | None = None, **arguments: Any
    ) -> None:
        given = {name: arguments.pop(name) for name in list(arguments) if name in CacheConfig.model_fields}
        self.cell = CacheConfig.parse(**given)
        check_arguments(backend, arguments)
        device = find_device(device)
        self._adapted = bool(arguments.get("peft"))
        self._options = {name: str(value) for name, value in sorted(arguments.items()) if name not in _HARMLESS}
        self._length_asked = arguments.get("max_length")
        if pretrained == "bundled":
            pretrained = bundled.path()
        elif not isinstance(pretrained, str):
            model = unwrap(pretrained)
            check(model.config, self.families, self._length_asked)
            check_loaded(model, arguments)
        try:
            super().__init__(pretrained=pretrained, backend="causal", device=device, **arguments)
        except OSError as error:
            raise UsageError(
                f"pretrained={pretrained!r}{nearest(str(pretrained), ['bundled'])} could not be loaded: "
                f"{sentence(error)} Check the name, the other arguments and the network, or use pretrained=bundled, "
                "which is in this package"
            ) from error
        self._gpt2 = unwrap(self.model)
        if self.cell.max_cache_size is not None:
            attention.enable(self._gpt2)
            if not self.cell.ranks:
                _log.warning(self.cell.no_choice)
        self._forget_counts()
        self._asked: list[Count] = []
        self._scored = _NOTHING_SCORED
        self._passes: dict[bytes, Count] = {}
        self._contexts: list[str] = []
        self._answers: defaultdict[str, deque[Count]] = defaultdict(deque)

    def _detect_batch_size(self, requests: Any = None, pos: int = 0) -> int:
        """HFLM's on a device whose memory it can fill; a CPU would spend minutes on probes that find no limit."""
        if self.device.type == "cpu":
            return min(_CPU_BATCH, self.max_batch_size)
        return super()._detect_batch_size(requests, pos)

    def _get_config(self, pretrained: str, **arguments: Any) -> None:
        """HFLM's; other models than GPT-2 are refused here, before their weights are loaded."""
        try:
            super()._get_config(pretrained, **arguments)
        except ValueError as error:
            raise UsageError(
                f"pretrained={pretrained!r} is no GPT-2: {sentence(error)} Give the name or the folder of one, or "
                "use pretrained=bundled, which is in this package"
            ) from error
        check(self._config, self.families, self._length_asked)

    def _create_tokenizer(self, pretrained: Any, tokenizer: Any, **arguments: Any) -> None:
        """HFLM's, held to the model; an adapter by name may bring tokens, for which HFLM enlarges the embedding."""
        try:
            super()._create_tokenizer(pretrained, tokenizer, **arguments)
        except (OSError, ValueError, TypeError, KeyError, AssertionError) as error:
            what = f"tokenizer={tokenizer!r}" if tokenizer else f"the tokenizer of pretrained={pretrained!r}"
            raise UsageError(
                f"{what} could not be loaded: {sentence(error)} Give tokenizer the name or the folder of the model's "
                "own"
            ) from error
        check_tokenizer(self.tokenizer, None if self._adapted else self._config.vocab_size)

    def _create_model(self, *args: Any, **arguments: Any) -> None:
        """HFLM's; what fails after the model itself is there is the fault of what is added to it."""
        try:
            super()._create_model(*args, **arguments)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            added = next((name for name in ("peft", "delta") if arguments.get(name)), None)
            if added is None or not hasattr(self, "_model"):
                raise
            raise UsageError(
                f"{added}={arguments[added]!r} could not be added to the model: {sentence(error)} Give one that was "
                "made for it"
            ) from error

    # Scoring. HFLM pads a batch on the right and tells `_model_call` no lengths; it then selects each row's logits,
    # in order, and says how long the row is. Calls that only probe for a batch size select nothing.

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

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        self._passes = {}
        answers = super()._loglikelihood_tokens(requests, *args, **kwargs)
        for _, context, continuation in requests:
            # Requests with the same input share one pass.
            sequence = (context + continuation)[-(self.max_length + 1) :][:-1]
            self._asked.append(self._passes[_key(torch.tensor(sequence))])
        self._scored = _NOTHING_SCORED  # Nothing outlives a request.
        return answers

    def _model_call(
        self, inps: torch.Tensor, attn_mask: torch.Tensor | None = None, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        cache = self._new_cache()
        self._scored = (cache, inps, iter(range(len(inps))))
        if cache is None:
            return super()._model_call(inps, attn_mask, labels)
        autocast = torch.autocast(
            self.device.type, dtype=self.mixed_precision_dtype, enabled=self.mixed_precision_dtype is not None
        )
        with torch.no_grad(), autocast:
            return self.model(inps, past_key_values=cache).logits

    def _select_cont_toks(
        self, logits: torch.Tensor, contlen: int | None = None, inplen: int | None = None
    ) -> torch.Tensor:
        cache, inps, rows = self._scored
        row = next(rows)
        self._passes[_key(inps[row, :inplen])] = passed(cache, row, inplen)
        return super()._select_cont_toks(logits, contlen=contlen, inplen=inplen)

    # Generation. HFLM pads on the left, and goes on with every row until all have met a stop string.

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        with self._evaluating("generate_until"):
            return self._generate_until(requests, disable_tqdm)

    def _generate_until(self, requests: list[Instance], disable_tqdm: bool) -> list[str]:
        """HFLM batches requests with the same settings; one call for each setting tells their counts apart as well."""
        groups: defaultdict[str, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            check_generation(request.args[1], self._gpt2.generation_config, self.max_length)
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
        padded = context.shape[1]
        for row, text in enumerate(self._contexts):
            # The last token of an answer is never fed back.
            columns = padded + max(self._answer_length(tokens[row, padded:].tolist(), stop) - 1, 0)
            self._answers[text].append(passed(cache, row * generation.get("num_beams", 1), columns))
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
        report = {
            **self._identity(),
            "device": str(self.device),
            "ledger": ledger(
                self.cell, self._gpt2.config, self.mixed_precision_dtype or self.model.dtype, self.max_length
            ),
            "counts": self.counts.as_dict(),
            "peak_device_memory_bytes": provenance.peak_device_memory(self.device),
        }
        return super().get_model_info() | {"sketch_eval": report}

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

    def _new_cache(self) -> SketchCache | None:
        """A cache for one batch, dropped after it; None where the model keeps its own, full one."""
        return None if self.cell.max_cache_size is None else SketchCache(self._gpt2.config, self.cell, traced=True)

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


def _check_tokens(string: str, tokens: int) -> None:
    if string and not tokens:
        raise UsageError(f"tokenizer: no tokens for {string[:40]!r}, which would seem certain; give another")


def _key(tokens: torch.Tensor) -> bytes:
    return tokens.cpu().numpy().tobytes()
