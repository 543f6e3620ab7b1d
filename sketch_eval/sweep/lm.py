"""The model of a sweep: one load for all cells, and one tokenization for all of a task's runs."""

from __future__ import annotations

import time
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance

from sketch_eval import attention
from sketch_eval.config import CacheConfig
from sketch_eval.counts import Count, Counts
from sketch_eval.lm import SketchGPT2

Answers = dict[str, tuple[float, bool]]
"""The full cache's answer to each request, (log-likelihood in nats, whether greedy), by `key`."""


def key(context: list[int], continuation: list[int]) -> str:
    """Names a request by its tokens."""
    ids = np.array([len(context), *context, *continuation], dtype=np.int64)
    return sha256(ids.tobytes()).hexdigest()[:32]


class SweepLM(SketchGPT2):
    """`SketchGPT2` whose cell can be changed, and which need not ask the model what the full cache has answered.

    A request whose tokens fit into a cell's cap, and into its topk, meets no bound: every pair is kept and seen, so it
    is the full cache's by definition (DESIGN §1, `binding`).

    Attributes:
        answers: what the full cache answered, filled by its own runs.
        pass_seconds: time in the model's passes since `take`.
        tokens: tokens that these passes took in, without padding.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._encoded: dict[tuple[Any, ...], Any] = {}
        self.take(self.cell, {})

    def take(self, cell: CacheConfig, answers: Answers) -> None:
        """Become another cell; nothing of the last one is kept but the model and the tokenized requests."""
        self.cell, self.counts, self.answers = cell, Counts(), answers
        self.pass_seconds, self.tokens = 0.0, 0
        if cell.max_cache_size is not None:
            attention.enable(self._gpt2)

    def fits(self, context: list[int], continuation: list[int]) -> bool:
        """Whether a request meets no bound of the cell."""
        cap = self.cell.max_cache_size
        length = min(len(context) + len(continuation) - 1, self.max_length)
        return cap is not None and length <= min(cap, self.cell.visible or cap)

    def tok_encode(self, string: str, *args: Any, **kwargs: Any) -> list[int]:
        asked = (string, *args, *sorted(kwargs.items()))
        if asked not in self._encoded:
            self._encoded[asked] = super().tok_encode(string, *args, **kwargs)
        return list(self._encoded[asked])

    # A sweep has a progress bar of its own.

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        return super().generate_until(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        named = [(key(context, continuation), context, continuation) for _, context, continuation in requests]
        reused = [name in self.answers and self.fits(*tokens) for name, *tokens in named]
        before, self._asked = self._asked, []
        asked = [request for request, known in zip(requests, reused, strict=True) if not known]
        kwargs["disable_tqdm"] = True
        computed = iter(super()._loglikelihood_tokens(asked, **kwargs) if asked else [])
        counted = iter(self._asked)
        self._asked, answers = before, []
        for (name, *_), known in zip(named, reused, strict=True):
            answers.append(self.answers[name] if known else next(computed))
            self._asked.append(Count() if known else next(counted))
            if self.cell.max_cache_size is None:
                self.answers[name] = answers[-1]
        return answers

    def _model_call(self, inps: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        start = time.perf_counter()
        logits = super()._model_call(inps, *args, **kwargs)
        self._clock(start)
        return logits

    def _select_cont_toks(
        self, logits: torch.Tensor, contlen: int | None = None, inplen: int | None = None
    ) -> torch.Tensor:
        self.tokens += inplen or 0
        return super()._select_cont_toks(logits, contlen=contlen, inplen=inplen)

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **generation: Any
    ) -> torch.Tensor:
        start = time.perf_counter()
        tokens = super()._model_generate(context, max_length, stop, **generation)
        self._clock(start)
        self.tokens += tokens.numel()
        return tokens

    def _clock(self, start: float) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # A pass is asynchronous there.
        self.pass_seconds += time.perf_counter() - start
