"""Texts of an exact number of a model's own tokens, and the .txt files that may fill them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from sketch_eval import bundled
from sketch_eval.errors import UsageError
from sketch_eval.text.words import QUALITIES, between, pick, sentence

PIECE_WORDS = 24  # of a folder's text between two places where a fact can be planted


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
        if not isinstance(length, int) or not 1 <= length <= self.positions:
            raise UsageError(f"length={length!r}: expected 1 to {self.positions}, the positions of {self.name}")
        return length

    def _costed(self, lines: Iterator[str]) -> Iterator[tuple[str, int]]:
        """Each line with its tokens after a space; measured in batches, which is much faster."""
        while True:
            batch = list(islice(lines, 64))
            yield from zip(batch, self.counts([f" {line}" for line in batch]), strict=True)

    def fill(self, length: int, lines: Iterator[str], write: Callable[[list[str]], str]) -> list[str]:
        """Lines of filler with which ``write(lines)`` has exactly ``length`` tokens.

        ``write`` joins the lines to the rest of the text with spaces. What whole lines leave open is filled with
        adjectives in the last one. Raises UsageError where the rest alone is too long, or the tokenizer has no
        one-token words.
        """
        self.check(length)
        room = length - self.counts([write([])])[0]
        if room < 0:
            raise UsageError(f"length={length!r}: expected at least {length - room} for the facts and the question")
        taken: list[str] = []
        for line, cost in self._costed(lines):
            room -= cost
            if room < 0:
                break
            taken.append(line)
        while (missing := length - self.counts([write(taken)])[0]) < 0:
            taken.pop()
        words = self.single(QUALITIES)
        if missing and words:
            first, _, rest = (taken.pop() if taken else "").partition(" ")
            padding = [words[number % len(words)] for number in range(missing)]
            taken.append(" ".join(filter(None, [first, *padding, rest])))
        if self.counts([write(taken)])[0] != length:
            raise UsageError(
                f"tokenizer={self.name!r}: makes no text of exactly {length} tokens; expected GPT-2's kind"
            )
        return taken


def ruler(pretrained: Any = "gpt2", tokenizer: Any = None, max_length: Any = None) -> Ruler:
    """The ruler of the model that lm-eval is given: its arguments of these names, `bundled` the model in this package.

    Raises UsageError for a model or tokenizer that is not at hand, or is not given by name or folder.
    """
    return _ruler(_location("pretrained", pretrained), _location("tokenizer", tokenizer or pretrained), max_length)


def _location(argument: str, name: Any) -> str:
    if not isinstance(name, str):
        raise UsageError(
            f"{argument}={type(name).__name__}: this task cuts texts to length, and needs a name or folder"
        )
    return bundled.path() if name == "bundled" else name


@lru_cache(maxsize=8)
def _ruler(pretrained: str, tokenizer: str, max_length: int | None) -> Ruler:
    try:
        positions = AutoConfig.from_pretrained(pretrained).max_position_embeddings
        return Ruler(tokenizer, AutoTokenizer.from_pretrained(tokenizer), min(positions, max_length or positions))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"pretrained={pretrained!r}, tokenizer={tokenizer!r}: this task needs them to cut its texts to length, and "
            f"they are not at hand ({str(error).splitlines()[0]}); offline, use pretrained=bundled"
        ) from error


@lru_cache(maxsize=8)
def read_folder(folder: str) -> list[tuple[str, str]]:
    """(file name, text) of a folder's .txt files, in the order of their names; blank files are left out.

    Raises UsageError where there is no such folder, no text in it, or a file that is not UTF-8.
    """
    if not Path(folder).is_dir():
        raise UsageError(f"text_folder={folder!r} is no folder; expected one that holds .txt files")
    found = []
    for path in sorted(Path(folder).glob("*.txt")):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(
                f"text_folder: {str(path)!r} is not UTF-8 ({error.reason}); convert or remove it"
            ) from error
        if text.strip():
            found.append((path.name, text))
    if not found:
        raise UsageError(f"text_folder={folder!r} holds no .txt file with text in it")
    return found


def filler(rng: Random, text_folder: str | None, avoid: tuple[str, ...] = ()) -> Iterator[str]:
    """Lines of filler without end: generated sentences, or a folder's text from a random place on.

    A folder's text has its white space collapsed and comes in pieces of 24 words; pieces that hold one of the words of
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
