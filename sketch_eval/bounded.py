"""How a model runs for lm-eval: a new cache for every batch, and given texts scored through it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from tqdm import tqdm
from transformers import Cache

from sketch_eval.attention import foresee, in_parts
from sketch_eval.cache import SketchCache
from sketch_eval.centres import Centres, mean_keys, tokens_for
from sketch_eval.counts import Count, tally
from sketch_eval.loading import LoadedLM
from sketch_eval.scored import ROWS, Begun, Text, ahead, headless, logits_of, pad, score, texts_of
from sketch_eval.transfer import Fetched
from sketch_eval.unbounded import FormatCache

_log = logging.getLogger(__name__)


class BoundedLM(LoadedLM):
    """A model whose passes go through its cell's cache; the arguments and what is raised are `LoadedLM`'s."""

    def __init__(self, *args: Any, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self._asked: list[Count] = []
        self._mentioned: set[tuple[int, int]] = set()

    @property
    def rounds(self) -> bool:
        """Whether the cell keeps pairs in other numbers than the model's own."""
        dtype = self.mixed_precision_dtype or self.model.dtype
        return self.cell.store != "float" and not (self.cell.store == "float16" and dtype == torch.float16)

    def _new_cache(self, tokens: torch.Tensor | None = None) -> Cache | None:
        """A cache for one batch, dropped after it; None where the model keeps its own, full one as it is.

        A policy that foresees needs the batch's tokens.
        """
        if self.cell.untouched:
            return None
        means = self.centres if self.cell.centred else None
        if self.cell.max_cache_size is None:
            return FormatCache(self.transformer.config, self.cell, means)
        seen = None
        if self.cell.foresees and tokens is not None:
            seen = foresee(self.transformer, tokens, self.cell.foresees)
        return SketchCache(self.transformer.config, self.cell, traced=True, foresight=seen, centres=means)

    @cached_property
    def centres(self) -> Centres:
        """The model's mean keys, for a cell with `centred=True`."""
        with self._autocast():
            return mean_keys(self.transformer, tokens_for(self.tokenizer, self.max_length))

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """HFLM's answers, of whose logits only those are made that are asked for (`scored`).

        They differ where requests are the same tokens, divided between context and continuation at different places:
        HFLM gives the shorter continuation the log-probabilities of the longer one's first tokens.
        """
        longest = self.max_length
        self._mention_cut(requests, longest)
        answers: dict[int, tuple[float, bool]] = {}
        asked: dict[int, Count] = {}
        batches = self._batches(texts_of(requests, longest, self.logits_cache), override_bs)
        with tqdm(
            total=len(requests), disable=disable_tqdm or self.rank != 0, desc="Running loglikelihood requests"
        ) as progress:
            for batch in ahead(map(self._begin, batches), int(self.device.type == "cuda")):
                for number, answer, count in batch.finish():
                    answers[number], asked[number] = answer, count
                    name = requests[number][0]
                    if name is not None:  # Windows of a text have no name: the whole text's is kept where they meet.
                        self.cache_hook.add_partial("loglikelihood", name, answer)
                    progress.update(1)
        self._asked += [asked[number] for number in range(len(requests))]
        return [answers[number] for number in range(len(requests))]

    def _mention_cut(self, requests: Any, longest: int) -> None:
        """Say that texts are longer than the model reads, but not for each cell of a sweep."""
        longer = sum(len(context) + len(continuation) > longest + 1 for _, context, continuation in requests)
        if longer and (longer, len(requests)) not in self._mentioned:
            self._mentioned.add((longer, len(requests)))
            _log.warning(
                f"max_length={longest}: {longer} of {len(requests)} requests are longer, and their first tokens are "
                "left out"
            )

    def _batches(self, texts: list[Text], override: int | None) -> Iterator[list[Text]]:
        """Texts that go through the model together, in batches as large as HFLM's."""
        given = [(None, text.tokens, text.continuations[0][-1:]) for text in texts]
        self.batch_sizes: dict[int, int] = {}
        batch: list[Text] = []
        for place, text in enumerate(texts):
            size: Any = self.batch_size
            if self.cell.foresees:  # Padding after a text's end must not be foreseen: one text at a time.
                size = 1
            elif size == "auto":  # HFLM's schedule has to be asked at each place.
                size = override or self._batch_scheduler(place, given)
            batch.append(text)
            if len(batch) >= size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _begin(self, texts: list[Text]) -> Begun:
        """A batch's pass, of which nothing has been asked for yet: a GPU may still be at it."""
        hidden, cache = self._pass(pad(texts, self.device))
        logprobs, greedy = score(hidden, texts, self._head, self.softmax_dtype)
        tallied = tally(cache, [len(text.tokens) for text in texts], self.device)
        return Begun(texts, Fetched((logprobs, greedy, tallied)), self.rounds)

    def _pass(self, tokens: torch.Tensor) -> tuple[torch.Tensor, Cache | None]:
        """What the model's head would be given, `[batch, tokens, width]`, and the cache of the pass, as `_new_cache`
        makes it."""
        cache = self._new_cache(tokens)
        with headless(self.transformer) as hidden, torch.no_grad(), self._autocast():
            if cache is None:
                self.model(tokens)
            else:
                for _ in in_parts(self.model, tokens, cache):
                    pass
        return torch.cat(hidden, dim=1), cache

    def _model_call(
        self, inps: torch.Tensor, attn_mask: torch.Tensor | None = None, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As many logits of a pass as are in memory at once, `[rows, vocabulary]`.

        HFLM looks for the largest batch that fits into memory by this call, and asks it for nothing else.
        """
        hidden, _ = self._pass(inps)
        return self._head(hidden.flatten(0, 1)[: max(ROWS, inps.shape[1])])

    def _head(self, hidden: torch.Tensor) -> torch.Tensor:
        """The logits of the last layer's output."""
        with torch.no_grad(), self._autocast():
            return logits_of(self.transformer, hidden).to(self.device)

    def _autocast(self) -> torch.autocast:
        dtype = self.mixed_precision_dtype
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)
