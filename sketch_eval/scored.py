"""The logits of a pass, made where lm-eval scores a continuation and nowhere else.

lm-eval asks a model for logits `[batch, tokens, vocabulary]`, takes the log-softmax of them all, and then selects of
each text the rows that it scores: the last few of up to a thousand where a task asks for a continuation. Here it is
given `Logits` instead, which stand for the same numbers and are computed for the selected rows, some at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from sketch_eval.families import family_of

Span = tuple[int, int]
"""Rows of a text, from the first to before the last."""

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


class Asked:
    """How many of a text's last rows are scored, for the texts that lm-eval is about to batch."""

    def __init__(self) -> None:
        self._rows: defaultdict[int, dict[bytes, int]] = defaultdict(dict)  # By length, in bytes, and by text.

    def add(self, text: bytes, rows: int) -> None:
        """Rows of a text, int64 ids as bytes; the most of them, where it is asked several times."""
        same = self._rows[len(text)]
        same[text] = max(rows, same.get(text, 0))

    def spans(self, batch: torch.Tensor) -> list[Span]:
        """The rows of each text of a batch that are likely to be scored; all where that is not known.

        A text that ends in the padding's token cannot be told from a shorter one; `Logits` make up for a wrong guess.

        Args:
            batch: ids, int64 `[batch, tokens]`, padded on the right with zeros.
        """
        found, lengths, item = [], sorted(self._rows, reverse=True), batch.element_size()
        for row in batch.cpu().numpy():
            filled, text = item * (int(row.nonzero()[0].max(initial=-1)) + 1), row.tobytes()
            likely = (n for n in lengths if filled <= n <= len(text) and text[:n] in self._rows[n])
            n = next(likely, 0)
            rows = self._rows[n][text[:n]] if n else len(row)
            end = n // item if n else len(row)
            found.append((end - rows, end))
        return found


class Logits:
    """What stands for the logits of a batch: it can be given to `log_softmax`, and gone through text by text.

    Args:
        hidden: what the model's head is given, `[batch, tokens, width]`.
        head: the logits `[rows, vocabulary]` of its rows.
        expected: the rows of each text that will be asked for; a wrong guess costs time only.
    """

    def __init__(
        self, hidden: torch.Tensor, head: Callable[[torch.Tensor], torch.Tensor], expected: list[Span]
    ) -> None:
        self._hidden, self._head, self._expected = hidden, head, expected
        self._dtype: torch.dtype | None = None
        self._ready: dict[int, torch.Tensor] = {}

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, arguments: tuple[Any, ...] = (), settings: dict[str, Any] | None = None
    ) -> Any:
        """torch's protocol for what is given to its functions in place of a tensor."""
        if function is not F.log_softmax:
            return NotImplemented
        logits: Logits = arguments[0]
        logits._dtype = (settings or {}).get("dtype")
        logits._prepare(0)  # lm-eval looks for the largest batch that fits into memory by this call alone.
        return logits

    def __iter__(self) -> Iterator[Row]:
        return (Row(self, text) for text in range(len(self._hidden)))

    def row_count(self) -> int:
        """Rows that each text has, padding included."""
        return self._hidden.shape[1]

    def log_softmax(self, text: int, rows: Span) -> torch.Tensor:
        """Of one text's rows, `[rows, vocabulary]`."""
        if text not in self._ready:
            self._prepare(text)
        first, last = self._expected[text]
        if first <= rows[0] and rows[1] <= last:
            return self._ready[text][rows[0] - first : rows[1] - first]
        return self._log_softmax([self._hidden[text, slice(*rows)]])

    def _prepare(self, text: int) -> None:
        """Make those of a text and of as many after it as fit, in place of those that were there."""
        self._ready = {}
        texts: list[torch.Tensor] = []
        sizes: list[int] = []
        for following in range(text, len(self._hidden)):
            first, last = self._expected[following]
            if texts and sum(sizes) + last - first > ROWS:
                break
            texts.append(self._hidden[following, first:last])
            sizes.append(last - first)
        self._ready = dict(enumerate(self._log_softmax(texts).split(sizes), text))

    def _log_softmax(self, hidden: list[torch.Tensor]) -> torch.Tensor:
        return F.log_softmax(self._head(torch.cat(hidden)), dim=-1, dtype=self._dtype)


@dataclass(frozen=True)
class Row:
    """One text of a batch's `Logits`, in the place of its logits `[tokens, vocabulary]`."""

    logits: Logits
    text: int

    @property
    def shape(self) -> tuple[int]:
        """As many rows as it stands for."""
        return (self.logits.row_count(),)
