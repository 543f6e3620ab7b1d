"""`--model sketch_gpt2`: lm-eval's own Hugging Face model, whose every pass goes through the bounded cache."""

from __future__ import annotations

import bisect
import inspect
import itertools
import json
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows

from sketch_eval import attention, bundled, provenance
from sketch_eval.cache import SketchCache
from sketch_eval.config import CacheConfig, nearest
from sketch_eval.counts import Count, Counts, passed
from sketch_eval.errors import UsageError, first_line, report_in_one_line
from sketch_eval.ledger import ledger

report_in_one_line()  # lm-eval's command line imports this module when it is asked for the model.

_HFLM_ARGUMENTS = set(inspect.signature(HFLM.__init__).parameters) - {"self", "kwargs"}
_LOADING_ARGUMENTS = {
    "cache_dir", "code_revision", "force_download", "local_files_only", "low_cpu_mem_usage", "proxies",
    "quantization_config", "token", "torch_dtype", "use_safetensors", "variant", "weights_only",
}  # fmt: skip
"""What HFLM passes on to `from_pretrained`."""

_HARMLESS = {"batch_size", "max_batch_size", "logits_cache", "max_cpu_memory", "max_memory_per_gpu", "offload_folder"}
"""Arguments of HFLM that decide no score."""

_NOTHING_SCORED: tuple[SketchCache | None, torch.Tensor, Iterator[int]] = (None, torch.empty(0), iter(()))

_CPU_BATCH = 8
"""What batch_size=auto is on a CPU."""

_CACHE_OWNER = "sketch_eval:owner"


class SketchGPT2(HFLM):
    """GPT-2 with a KV cache of at most `max_cache_size` pairs a layer (DESIGN §2).

    Args:
        pretrained: a GPT-2 by hub name or folder, a loaded one, or `bundled` for the model in this package.
        backend: `causal`, or `default`, which is the same here.
        device: as in HFLM; by default CUDA where there is one, else the CPU.
        **arguments: those of `CacheConfig`, and HFLM's own.

    Raises:
        UsageError: a bad argument, a model that is not GPT-2 or cannot be had; before any weights are loaded.
    """

    def __init__(
        self, pretrained: Any = "gpt2", backend: str = "default", device: str | None = None, **arguments: Any
    ) -> None:
        given = {name: arguments.pop(name) for name in list(arguments) if name in CacheConfig.model_fields}
        self.cell = CacheConfig.parse(**given)
        _check_arguments(backend, arguments)
        self._options = {name: str(value) for name, value in sorted(arguments.items()) if name not in _HARMLESS}
        # lm-eval's command line says cuda:0 where nobody asked for a device.
        if device is None or (device.startswith("cuda") and not torch.cuda.is_available()):
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if pretrained == "bundled":
            pretrained = bundled.path()
        elif not isinstance(pretrained, str):
            attention.check(pretrained.config)
        try:
            super().__init__(pretrained=pretrained, backend="causal", device=device, **arguments)
        except OSError as error:
            raise UsageError(
                f"pretrained={pretrained!r}{nearest(str(pretrained), ['bundled'])} could not be loaded: "
                f"{first_line(error)} Check the name, the other arguments and the network, or use pretrained=bundled, "
                "which is in this package"
            ) from error
        # PEFT wraps the GPT-2 that has the layers.
        self._gpt2 = self.model.get_base_model() if self.peft else self.model
        if self.cell.max_cache_size is not None:
            attention.enable(self._gpt2)
        self.counts = Counts()
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
                f"pretrained={pretrained!r} is no GPT-2: {first_line(error)} Give the name or the folder of one, or "
                "use pretrained=bundled, which is in this package"
            ) from error
        attention.check(self._config)

    # Scoring. HFLM pads a batch on the right and tells `_model_call` no lengths; it then selects each row's logits,
    # in order, and says how long the row is. Calls that only probe for a batch size select nothing.

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self._asked = []
        answers = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        self._count(requests, [1] * len(requests))
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        self._asked = []
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
        # HFLM batches requests with the same settings; one call for each setting tells their counts apart as well.
        groups: defaultdict[str, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            groups[repr(request.args[1])].append(index)
        answers, asked = [""] * len(requests), [Count()] * len(requests)
        for group in groups.values():
            self._answers.clear()
            texts = super().generate_until([requests[index] for index in group], disable_tqdm=disable_tqdm)
            for index, text in zip(group, texts, strict=True):
                answers[index] = text
                asked[index] = self._answers[requests[index].args[0]].popleft()
        self._asked = asked
        self._count(requests, [1] * len(requests))
        return answers

    def tok_batch_encode(self, strings: list[str], *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        self._contexts = list(strings)  # The rows of the batch that is generated next.
        return super().tok_batch_encode(strings, *args, **kwargs)

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
        """HFLM's, and under `sketch_eval` the cell, the ledger, the counts and what identifies the run."""
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
        }

    @cached_property
    def _origin(self) -> dict[str, Any]:
        """The part of `_identity` that takes a while to find, and that no cell changes."""
        return {
            "model_fingerprint": provenance.fingerprint(self.model),
            "tokenizer_fingerprint": provenance.tokenizer_fingerprint(self.tokenizer),
            "versions": provenance.versions(),
            "commit": provenance.commit(),
        }

    def _new_cache(self) -> SketchCache | None:
        """A cache for one batch, dropped after it; None where the model keeps its own, full one."""
        return None if self.cell.max_cache_size is None else SketchCache(self._gpt2.config, self.cell, traced=True)

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


def _key(tokens: torch.Tensor) -> bytes:
    return tokens.cpu().numpy().tobytes()


def _check_arguments(backend: str, arguments: dict[str, Any]) -> None:
    if backend not in ("default", "causal"):
        raise UsageError(f"backend={backend!r}: GPT-2 is a causal language model; leave backend out")
    if arguments.get("tp_plan") is not None:
        raise UsageError(f"tp_plan={arguments['tp_plan']!r}: a layer's heads share one sketch; leave tp_plan out")
    for name in ("dtype", "softmax_dtype", "mixed_precision_dtype"):
        dtype = arguments.get(name)
        if isinstance(dtype, str) and dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise UsageError(f"{name}={dtype!r} is no dtype of torch; give float32, bfloat16 or float16")
    known = {*CacheConfig.model_fields, *_HFLM_ARGUMENTS, *_LOADING_ARGUMENTS}
    for name, value in arguments.items():
        if name not in known:
            raise UsageError(f"{name}={value!r} is not an argument of sketch_gpt2{nearest(name, known)}")
