"""How given texts are scored: each goes through the model once, and logits are made where a continuation is scored.

lm-eval's own way makes the logits `[batch, tokens, vocabulary]` of a batch and their log-softmax, and then goes through
its requests one by one, each of which asks the device a few times. A continuation is the last few of up to a thousand
tokens, so here logits are made of its rows alone, some at a time, and a batch is asked once for all that its requests
want to know.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from sketch_eval.counts import Count, passed
from sketch_eval.errors import UsageError
from sketch_eval.families import family_of
from sketch_eval.transfer import Fetched, send

T = TypeVar("T")

Request = tuple[Any, list[int], list[int]]
"""lm-eval's: the name that its answer is kept under, the tokens of the context and those of the continuation."""

ROWS = 1024
"""Rows whose logits are in memory at once, or those of one text where it has more."""

LEAST = 16
"""Rows that the head is given at least: products of fewer round otherwise than those of a whole text."""


@contextmanager
def headless(model: PreTrainedModel) -> Iterator[list[torch.Tensor]]:
    """Passes of the model make no logits; what its head would be given, `[batch, tokens, width]`, is collected."""
    collected: list[torch.Tensor] = []

    def collect(module: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        collected.append(given[0])
        return (given[0][:, :0], *given[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(collect)
    try:
        yield collected
    finally:
        hook.remove()


def logits_of(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """The logits `[rows, vocabulary]` of what `headless` collected, `[rows, width]`, as a whole pass makes them."""
    rows = len(hidden)
    if rows < LEAST:
        hidden = torch.cat([hidden, hidden[-1:].expand(LEAST - rows, -1)])
    return family_of(model.config).finish(model.config, model.get_output_embeddings()(hidden)[:rows])


@dataclass
class Text:
    """What the model is given once, and the requests that it answers.

    Attributes:
        tokens: what the model is given.
        whole: all tokens of the first of its requests, by which texts are ordered.
        requests: their numbers.
        continuations: their continuations, in the same order.
    """

    tokens: list[int]
    whole: list[int]
    requests: list[int] = field(default_factory=list)
    continuations: list[list[int]] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """How many of its last rows are scored."""
        return max(map(len, self.continuations))


def texts_of(requests: Sequence[Request], longest: int, shared: bool = True) -> list[Text]:
    """The texts that the model is given for requests, in HFLM's order: the longest first.

    Requests that are given the same tokens share a text, as one-token answers to one question do. Of what is longer
    than the model reads, the first tokens are left out.

    Args:
        requests: the requests.
        longest: tokens that the model reads.
        shared: False gives every request a text of its own, as HFLM's logits_cache=False does.

    Raises:
        UsageError: a context or a continuation has no tokens, or a continuation has more than the model reads.
    """
    texts: dict[Hashable, Text] = {}
    for number, (name, context, continuation) in enumerate(requests):
        if not context or not 0 < len(continuation) <= longest:
            raise UsageError(
                f"a request has a context of {len(context)} tokens and a continuation of {len(continuation)}, and "
                f"max_length={longest}: it takes at least one of each, and a continuation that the model reads whole; "
                f"look at the task's document{'' if name is None else f' {str(name)[:60]!r}'}"
            )
        whole = context + continuation
        tokens = whole[-(longest + 1) : -1]
        text = texts.setdefault(array("q", tokens).tobytes() if shared else number, Text(tokens, whole))
        text.requests.append(number)
        text.continuations.append(continuation)
    return sorted(texts.values(), key=lambda text: (-len(text.whole), text.whole))


def ahead(begun: Iterable[T], count: int) -> Iterator[T]:
    """Yield what an iterable begins, each once `count` more have begun: a GPU then works on the next pass while the
    answers of the last one are made."""
    waiting: deque[T] = deque()
    for one in begun:
        waiting.append(one)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


def pad(texts: Sequence[Text], device: torch.device) -> torch.Tensor:
    """The ids of a batch, int64 `[batch, tokens]`, with zeros on the right."""
    return send(pad_sequence([torch.tensor(text.tokens) for text in texts], batch_first=True), device)


@dataclass(frozen=True)
class Begun:
    """A batch whose pass has begun.

    Attributes:
        texts: those that it has.
        found: of each token of each continuation its log-probability, and whether it is the likeliest (`score`); and
            what the cache counts of each text (`counts.tally`).
        rounded: as in `counts.passed`.
    """

    texts: list[Text]
    found: Fetched
    rounded: bool

    def finish(self) -> Iterator[tuple[int, tuple[float, bool], Count]]:
        """Of every request its number, lm-eval's answer (log-likelihood in nats, whether greedy) and its count."""
        logprobs, greedy, tallied = self.found.arrived()
        first = 0
        for text, count in zip(self.texts, passed(tallied, self.rounded), strict=True):
            for number, continuation in zip(text.requests, text.continuations, strict=True):
                last = first + len(continuation)
                yield number, (logprobs[first:last].sum().item(), bool(greedy[first:last].all())), count
                first = last


def score(
    hidden: torch.Tensor,
    texts: Sequence[Text],
    head: Callable[[torch.Tensor], torch.Tensor],
    dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of every token of every continuation, text by text: its log-probability, and whether it is the likeliest, bool.

    Args:
        hidden: what the model's head is given, `[batch, tokens, width]`.
        texts: those of the batch.
        head: the logits `[rows, vocabulary]` of its rows.
        dtype: of the log-softmax; None is the logits' own.
    """
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for first, last in _groups(texts):
        rows: list[int] = []
        at: list[int] = []
        ids: list[int] = []
        for row in range(first, last):
            text = texts[row]
            end = row * hidden.shape[1] + len(text.tokens)
            rows += range(end - text.rows, end)
            for continuation in text.continuations:
                at += range(len(rows) - len(continuation), len(rows))
                ids += continuation
        logits = head(hidden.flatten(0, 1)[send(torch.tensor(rows), hidden.device)])
        which, token = (send(torch.tensor(each), logits.device) for each in (at, ids))
        # In place where it can be: new memory of that size takes a CPU longer than the log-softmax does.
        into = logits if dtype in (None, logits.dtype) else None
        likely = torch.log_softmax(logits, dim=-1, dtype=dtype, out=into)
        found.append((likely[which, token], _likeliest(likely)[which] == token))
    logprobs, greedy = (torch.cat(each) for each in zip(*found, strict=True))
    return logprobs, greedy


def _likeliest(likely: torch.Tensor) -> torch.Tensor:
    """The first of a row's largest numbers, int64 `[rows]`: on a CPU NumPy finds it seven times as fast as torch."""
    if likely.device.type == "cpu" and likely.dtype == torch.float32:
        return torch.from_numpy(likely.numpy().argmax(-1))
    return likely.argmax(-1)


def _groups(texts: Sequence[Text]) -> Iterator[tuple[int, int]]:
    """The texts, from the first to before the last, whose rows are in memory at once."""
    first, rows = 0, 0
    for row, text in enumerate(texts):
        if rows and rows + text.rows > ROWS:
            yield first, row
            first, rows = row, 0
        rows += text.rows
    yield first, len(texts)
