"""Novels to train on, out of a folder of plain text as Project Gutenberg has it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Literal

from sketch_eval.text.fitting import read_folder

HELD_OUT = 0.05  # of each book's paragraphs, its last


def prose(text: str) -> list[str]:
    """The paragraphs of a book, each on one line, without the library's licence before and after it."""
    text = re.sub(r"\A.*?\*\*\* ?START OF TH[^\n]*\n", "", text, flags=re.DOTALL)
    text = re.sub(r"\n[^\n]*\*\*\* ?END OF TH.*\Z", "", text, flags=re.DOTALL)
    return [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]


def documents(folder: str, split: Literal["train", "heldout"]) -> list[str]:
    """One text a book: its beginning to train on, or its held-out end.

    Raises UsageError for a folder without .txt files, or where one is not UTF-8.
    """
    texts = []
    for _, text in read_folder(folder):
        paragraphs = prose(text.replace("\r\n", "\n"))
        cut = len(paragraphs) - max(round(HELD_OUT * len(paragraphs)), 1)
        texts.append("\n".join(paragraphs[:cut] if split == "train" else paragraphs[cut:]) + "\n")
    return texts


def checksums(folder: str) -> dict[str, str]:
    """SHA-256 of each book's file, by name: what a model card needs to say."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).glob("*.txt"))}
