"""What the model is trained on: standard-library text, works of prose where given, and drills that take looking back.

A row is ``length`` token ids with a loss weight for each: how much predicting that token counts. What nobody could
predict (random words, the first copy of a fact) weighs nothing; the answers weigh most.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from sketch_eval.text.recall import code_question, digits, filler, pairs, passkey_question, segment, units
from sketch_eval.text.words import ANSWERS, KEYS, PEOPLE, PLACES, QUALITIES, THINGS, between, draw, pick

Piece = tuple[str, float]
ANSWER = 3.0  # an answer's weight beside a standard-library token's 1


class Mixture:
    """Draws batches; number ``step`` is a function of (seed, step) alone, so that a resumed run sees the same data."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        texts: list[str],
        seed: int,
        books: list[str] | None = None,
        book_share: float = 0.0,
    ) -> None:
        self.tokenizer, self.seed, self.book_share = tokenizer, seed, book_share if books else 0.0
        self.end: int = tokenizer.eos_token_id
        self.stream, self.books = self.tokens(texts), self.tokens(books or [])

    def tokens(self, texts: list[str]) -> np.ndarray:
        """All texts as one run of ids, each after an end-of-text token."""
        if not texts:
            return np.empty(0, np.int32)
        parts = []
        for at in range(0, len(texts), 64):  # As Python's numbers, all of them at a time would take gigabytes.
            fast = self.tokenizer.backend_tokenizer.encode_batch_fast(texts[at : at + 64], add_special_tokens=False)
            parts += [np.array([self.end, *text.ids], dtype=np.int32) for text in fast]
        return np.concatenate(parts)

    def batch(self, step: int, rows: int, length: int, drills: float, positions: int) -> tuple[Tensor, Tensor, Tensor]:
        """(ids, weights, position_ids), each [rows, length]; ``drills`` is the share of rows that are drills.

        Short rows stand at random offsets within ``positions``, so that every learned position is trained.
        """
        rng = Random(f"mixture {self.seed} {step}")
        made = [
            self.drill_row(rng, length) if rng.random() < drills else self.text_row(rng, length) for _ in range(rows)
        ]
        ids = torch.tensor(np.stack([row for row, _ in made]), dtype=torch.long)
        weights = torch.tensor(np.stack([weight for _, weight in made]), dtype=torch.float32)
        offsets = torch.tensor([between(rng, 0, positions - length) for _ in range(rows)])
        return ids, weights, offsets[:, None] + torch.arange(length)

    def text_row(self, rng: Random, length: int) -> tuple[np.ndarray, np.ndarray]:
        """A window of the library's text or of a book; half begin with the end-of-text token, as in scoring."""
        stream = self.books if self.book_share and rng.random() < self.book_share else self.stream
        at = between(rng, 0, len(stream) - length)
        ids = stream[at : at + length].copy()
        if rng.random() < 0.5:
            ids[0] = self.end
        return ids, np.ones(length, np.float32)

    def drill_row(self, rng: Random, length: int) -> tuple[np.ndarray, np.ndarray]:
        """One drill, then text up to ``length``."""
        ids, weights = self.drill(rng, length)
        tail_ids, tail_weights = self.text_row(rng, length)
        tail_ids[0] = self.end
        row = np.concatenate([np.array(ids, np.int32), tail_ids])[:length]
        weight = np.concatenate([np.array(weights, np.float32), tail_weights])[:length]
        return row, weight

    def drill(self, rng: Random, length: int) -> tuple[list[int], list[float]]:
        """Ids and weights of one drill of about ``length`` tokens, more or fewer; half begin with end-of-text."""
        start = [self.end] if rng.random() < 0.5 else []
        if rng.random() < 0.1:
            ids, weights = random_ids(rng, length - len(start), len(self.tokenizer))
        else:
            ids, weights = self.encode(pick(rng, DRILLS)(rng, length - len(start) - 4))
        return start + ids, [0.0] * len(start) + weights

    def encode(self, pieces: list[Piece]) -> tuple[list[int], list[float]]:
        """Ids and weights of pieces that each begin where the tokenizer splits anyway."""
        fast = self.tokenizer.backend_tokenizer.encode_batch_fast  # A fifth of the time of a call of the tokenizer.
        encoded = [piece.ids for piece in fast([text for text, _ in pieces], add_special_tokens=False)]
        ids = [token for piece in encoded for token in piece]
        return ids, [weight for piece, (_, weight) in zip(encoded, pieces, strict=True) for _ in piece]


def assemble(rng: Random, room: int, facts: list[list[Piece]], asked: list[list[Piece]]) -> list[Piece]:
    """Filler for ``room`` units with the facts at random places, then the questions with their answers."""
    plain = 0.3 if rng.random() < 0.2 else 0.0
    body: list[list[Piece]] = [[(line, plain)] for line in filler(rng, max(room, 0))]
    for fact in facts:
        body.insert(between(rng, 0, len(body)), fact)
    flat = [piece for group in body + asked for piece in group]
    return [
        (text if number == 0 or text[0] in " .:\n" else " " + text, weight)
        for number, (text, weight) in enumerate(flat)
    ]


def code_words(rng: Random, budget: int) -> list[Piece]:
    """One or several code words among filler, one or several of them asked for at the end."""
    most = min(budget // 24, len(PLACES), 24)
    count = 1 if rng.random() < 0.35 else between(rng, 1, max(most, 1))
    known = list(zip(draw(rng, PLACES, count), draw(rng, ANSWERS, count), strict=True))
    return labelled(rng, budget, code_question, known)


def pass_keys(rng: Random, budget: int) -> list[Piece]:
    """One nameless pass key of five digits, or several that go by place."""
    if rng.random() < 0.5:
        return labelled(rng, budget, lambda _: passkey_question(), [("", digits(rng))])
    count = between(rng, 1, max(min(budget // 40, 10), 1))
    return labelled(rng, budget, passkey_question, [(place, digits(rng)) for place in draw(rng, PLACES, count)])


def labelled(rng: Random, budget: int, ask: Callable[[str], str], known: list[tuple[str, str]]) -> list[Piece]:
    """The facts ``ask(label) value.`` among filler; then some of them, or all, asked for."""
    facts: list[list[Piece]] = [[(f"{ask(label)} {value}.", 0.0)] for label, value in known]
    wanted = draw(rng, known, between(rng, 1, len(known)))
    asked: list[list[Piece]] = [[(ask(label), 0.1), (f" {value}", ANSWER), (".", 0.1)] for label, value in wanted]
    spent = sum(units(text) for group in facts + asked for text, _ in group)
    return assemble(rng, budget - spent, facts, asked)


def key_values(rng: Random, budget: int) -> list[Piece]:
    """A list of ``key: value`` lines, some of whose keys come again at the end; sometimes after filler."""
    most = min(budget // 4, len(KEYS))
    asked = between(rng, 1, max(most // 3, 1))
    count = between(rng, max((most - asked) // 2, 1), max(most - asked, 1))
    return listed(rng, budget, pairs(rng, count), asked)


def two_word_keys(rng: Random, budget: int) -> list[Piece]:
    """A list as that of `key_values`, of any length, whose keys are of two words: "quiet harbor".

    The words come from few enough that most stand in several keys: only both of them together name a line.
    """
    names = PLACES + PEOPLE + THINGS
    most = min(budget // 5, len(QUALITIES) * len(names) // 2)
    asked = between(rng, 1, max(most // 3, 1))
    count = between(rng, max((most - asked) // 2, 1), max(most - asked, 1))
    firsts = draw(rng, QUALITIES, between(rng, min(math.isqrt(count) + 1, len(QUALITIES)), len(QUALITIES)))
    seconds = draw(rng, names, min(-(-2 * count // len(firsts)), len(names)))
    keys = draw(rng, [f"{first} {second}" for first in firsts for second in seconds], count)
    return listed(rng, budget, [(key, pick(rng, ANSWERS)) for key in keys], asked)


def listed(rng: Random, budget: int, known: list[tuple[str, str]], asked: int) -> list[Piece]:
    """The known ``key: value`` lines, and ``asked`` of them again; half of the time after filler, if there is room."""
    pieces: list[Piece] = [(f"{key}: {value}\n", 0.0) for key, value in known]
    for key, value in draw(rng, known, min(asked, len(known))):
        pieces += [(f"{key}:", 0.0), (f" {value}", ANSWER), ("\n", 0.1)]
    room = budget - sum(units(text) for text, _ in pieces)
    if room > 30 and rng.random() < 0.5:
        pieces = [(" ".join(filler(rng, room - 1)) + "\n", 0.0), *pieces]
    return pieces


def repeats(rng: Random, budget: int) -> list[Piece]:
    """A segment of random words, other random words or filler, and the segment again, until the room is used up."""
    size = between(rng, 4, max(budget // 3, 4))
    words = segment(rng, size)
    pieces: list[Piece] = [(" " + word, 0.0) for word in words]
    while (room := budget - len(pieces) - size) >= 0:
        gap = between(rng, 0, room) if rng.random() < 0.7 else 0
        if gap > 20 and rng.random() < 0.5:
            pieces += [(" " + line, 0.0) for line in filler(rng, gap)]
        else:
            pieces += [(" " + word, 0.0) for word in segment(rng, gap)]
        # The first word of a copy comes from nowhere; all others follow from the copy before.
        pieces += [(" " + word, 1.0 if number else 0.0) for number, word in enumerate(words)]
        if gap > 20:
            break
    return pieces


def random_ids(rng: Random, length: int, vocabulary: int) -> tuple[list[int], list[float]]:
    """A segment of uniformly random token ids, repeated at some distance: looking back with no help from meaning."""
    size = between(rng, 4, max(length // 3, 4))
    copied = [between(rng, 1, vocabulary - 1) for _ in range(size)]
    gap = between(rng, 0, length - 2 * size) if rng.random() < 0.7 else 0
    between_copies = [between(rng, 1, vocabulary - 1) for _ in range(gap)]
    ids, weights = copied + between_copies, [0.0] * (size + gap)
    while len(ids) + size <= length:
        ids, weights = ids + copied, weights + [0.0] + [1.0] * (size - 1)
        if gap:
            break
    return ids, weights


DRILLS: tuple[Callable[[Random, int], list[Piece]], ...] = (
    code_words,
    code_words,
    pass_keys,
    key_values,
    two_word_keys,
    repeats,
)
