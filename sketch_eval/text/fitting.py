"""Texts of an exact number of a model's own tokens, and the .txt files that may fill them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import accumulate, islice
from pathlib import Path
from random import Random
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from sketch_eval import bundled
from sketch_eval.errors import UsageError, first_line
from sketch_eval.text.words import QUALITIES, between, pick, sentence

PIECE_WORDS = 12  # of a folder's text between two places where a fact can be planted


class Ruler:
    """Measures text in one model's tokens.

    Args:
        name: what the tokenizer was asked for by, for errors.
        tokenizer: the model's.
        positions: tokens that the model can take.
    """

    def __init__(self, name: str, tokenizer: Any, positions: int) -> None:
        self.name, self.tokenizer, self.positions = name, tokenizer, positions

    def encode(self, text: str) -> list[int]:
        """The token ids, with no special tokens."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def counts(self, texts: list[str]) -> list[int]:
        """Tokens of each text."""
        return [len(ids) for ids in self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]

    def single(self, words: list[str]) -> list[str]:
        """Those of the words that are one token after a space."""
        return [word for word, count in zip(words, self.counts([f" {w}" for w in words]), strict=True) if count == 1]

    def check(self, length: Any) -> int:
        """The length, where the model can take so many tokens; else UsageError."""
        if type(length) is not int or not 1 <= length <= self.positions:
            raise UsageError(
                f"length={length!r}: expected 1 to {self.positions}, which {self.name} and max_length allow"
            )
        return length

    def _costed(self, lines: Iterator[str]) -> Iterator[tuple[str, int]]:
        """Each line with its tokens after a space; measured in batches, which is much faster."""
        while True:
            batch = list(islice(lines, 64))
            yield from zip(batch, self.counts([f" {line}" for line in batch]), strict=True)

    def fill(self, length: int, lines: Iterator[str], write: Callable[[list[str]], str]) -> list[str]:
        """Lines of filler with which ``write(lines)`` has exactly ``length`` tokens.

        What whole lines leave open is filled with adjectives in one of them, the last where that works. Raises
        UsageError where the rest alone is too long, or the tokenizer allows no text of that length.
        """
        self.check(length)

        def count(body: list[str]) -> int:
            return self.counts([write(body)])[0]

        room = length - count([])
        if room < 0:
            raise UsageError(f"length={length!r}: expected at least {length - room} for the facts and the question")
        taken: list[str] = []
        for line, cost in self._costed(lines):
            room -= cost
            if room < 0:
                break
            taken.append(line)
        while count(taken) > length:
            taken.pop()
        if count(taken) == length:
            return taken
        for body in [taken] if taken else [["Once."], [""]]:
            for at in reversed(range(len(body))):
                padded = self._padded(body, at, length, count)
                if padded is not None:
                    return padded
        raise UsageError(f"tokenizer={self.name!r}: makes no text of exactly {length} tokens; expected GPT-2's kind")

    def _padded(self, body: list[str], at: int, length: int, count: Callable[[list[str]], int]) -> list[str] | None:
        """The body with adjectives after the first word of line ``at``, so that it counts ``length``; or None.

        A first adjective may part what were one token, or take a space from it: hence the corrections.
        """
        words = self.single(QUALITIES)
        first, _, rest = body[at].partition(" ")
        number = length - count(body)
        for _ in range(8):
            if number < 0 or not words:
                break
            padding = [words[n % len(words)] for n in range(number)]
            padded = [*body[:at], " ".join(filter(None, [first, *padding, rest])), *body[at + 1 :]]
            missing = length - count(padded)
            if not missing:
                return padded
            number += missing
        return None


def place(costs: list[int], depth: float) -> int:
    """How many lines of so many tokens each come before what stands at ``depth`` of them, as near as lines allow."""
    before = [0, *accumulate(costs)]
    return min(range(len(before)), key=lambda at: abs(before[at] - depth * before[-1]))


def ruler(pretrained: Any = "gpt2", tokenizer: Any = None, max_length: Any = None, **_: Any) -> Ruler:
    """The ruler of the model that lm-eval is given: its arguments of these names, `bundled` the model in this package.

    The model's other arguments are of no use here. Raises UsageError for a model or tokenizer that is not at hand, or
    is not given by name or folder, and for a ``max_length`` that is no number of tokens.
    """
    if max_length is not None and (type(max_length) is not int or max_length < 1):
        raise UsageError(f"max_length={max_length!r}: expected a number of tokens, 1 or more")
    return _ruler(_location("pretrained", pretrained), _location("tokenizer", tokenizer or pretrained), max_length)


def _location(argument: str, name: Any) -> str:
    if not isinstance(name, str):
        raise UsageError(
            f"{argument}={type(name).__name__}: this task cuts texts to length, and needs a name or folder"
        )
    return bundled.resolve(name)


@lru_cache(maxsize=8)
def _ruler(pretrained: str, tokenizer: str, max_length: int | None) -> Ruler:
    try:
        positions = AutoConfig.from_pretrained(pretrained).max_position_embeddings
        return Ruler(tokenizer, AutoTokenizer.from_pretrained(tokenizer), min(positions, max_length or positions))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"pretrained={pretrained!r}, tokenizer={tokenizer!r}: this task needs them to cut its texts to length, and "
            f"they are not at hand ({first_line(error)}); offline, use pretrained=bundled"
        ) from error


def read_folder(folder: Any) -> list[tuple[str, str]]:
    """(file name, text) of a folder's own .txt files, in the order of their names; blank files are left out.

    Raises UsageError where there is no such folder, no text in it, or a file that cannot be read or is not UTF-8.
    """
    if not isinstance(folder, str) or not folder:
        raise UsageError(f"text_folder={folder!r}: expected the name of a folder that holds .txt files")
    return _read_folder(folder)


@lru_cache(maxsize=8)
def _read_folder(folder: str) -> list[tuple[str, str]]:
    if not Path(folder).is_dir():
        raise UsageError(f"text_folder={folder!r} is no folder; expected one that holds .txt files")
    found = []
    for path in sorted(Path(folder).glob("*.txt")):
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise UsageError(
                f"text_folder: {str(path)!r} is not UTF-8 ({error.reason}); convert or remove it"
            ) from error
        except OSError as error:
            raise UsageError(f"text_folder: {str(path)!r} cannot be read ({first_line(error)}); remove it") from error
        if text.strip():
            found.append((path.name, text))
    if not found:
        raise UsageError(f"text_folder={folder!r} holds no .txt file with text in it")
    return found


def filler(rng: Random, text_folder: Any, avoid: tuple[str, ...] = ()) -> Iterator[str]:
    """Lines of filler without end: generated sentences, or a folder's text from a random place on.

    A folder's text has its white space collapsed and comes in pieces of 12 words; pieces that hold one of the words of
    ``avoid`` are left out. Raises UsageError as `read_folder`, or where nothing is left.
    """
    if text_folder is None:
        while True:
            yield sentence(rng)
    words = pick(rng, read_folder(text_folder))[1].split()
    pieces = [" ".join(words[at : at + PIECE_WORDS]) for at in range(0, len(words), PIECE_WORDS)]
    kept = [piece for piece in pieces if not any(word in piece.lower() for word in avoid)]
    if not kept:
        raise UsageError(f"text_folder={text_folder!r}: every piece of a file holds an answer; expected longer files")
    start = between(rng, 0, len(kept) - 1)
    while True:
        yield from kept[start:]
        start = 0
