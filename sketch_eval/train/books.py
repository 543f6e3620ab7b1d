"""Works of prose to train on, out of folders of plain text, with Project Gutenberg's licence around them or without."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Literal

from sketch_eval.errors import UsageError
from sketch_eval.text import stdlib
from sketch_eval.text.fitting import read_folder

HELD_OUT = 0.05  # of each book's paragraphs, its last


def prose(text: str) -> list[str]:
    """The paragraphs of a book, each on one line, without the library's licence before and after it."""
    text = re.sub(r"\A.*?\*\*\* ?START OF TH[^\n]*\n", "", text, flags=re.DOTALL)
    text = re.sub(r"\n[^\n]*\*\*\* ?END OF TH.*\Z", "", text, flags=re.DOTALL)
    return [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]


def documents(folders: str, split: Literal["train", "heldout"], kept_out: str = "") -> list[str]:
    """The works to train on, or what is held out of them, one text a work.

    Args:
        folders: where the .txt files are; several with commas between them.
        split: which part.
        kept_out: names of the files that are held out whole, with commas between them; where it is empty, the last
            twentieth of each work is held out instead.

    Raises:
        UsageError: a folder has no .txt files, one is not UTF-8, two have one name, or one that is to be kept out is
            not there.
    """
    works: dict[str, list[str]] = {}
    for folder in _folders(folders):
        for name, text in read_folder(folder):
            if name in works:
                raise UsageError(f"books={folders!r}: {name} is in two of the folders; rename one, or leave it out")
            works[name] = prose(text.replace("\r\n", "\n"))
    whole = [name for name in kept_out.split(",") if name]
    if missing := [name for name in whole if name not in works]:
        raise UsageError(f"kept_out={missing[0]!r}: no such file in {folders}; give names as {min(works)}")
    texts = []
    for name, paragraphs in works.items():
        cut = 0 if name in whole else len(paragraphs)
        if not whole:
            cut -= max(round(HELD_OUT * len(paragraphs)), 1)
        texts.append(paragraphs[:cut] if split == "train" else paragraphs[cut:])
    return ["\n".join(paragraphs) + "\n" for paragraphs in texts if paragraphs]


def curly(text: str) -> str:
    """The text with its straight quotation marks and apostrophes as printers set them: “ ” ‘ ’."""
    text = re.sub(r'(?<![^\s(\[—‘-])"', "“", text).replace('"', "”")
    return re.sub(r"(?<![^\s(\[—“-])'", "‘", text).replace("'", "’")


def checksums(folders: str) -> dict[str, str]:
    """SHA-256 of each work's file, by name: what a model card needs to say."""
    paths = [path for folder in _folders(folders) for path in sorted(Path(folder).glob("*.txt"))]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def library(folder: str, split: stdlib.Split) -> list[str]:
    """One split of the standard library's modules in ``folder``; of the running interpreter's where it is empty.

    Raises UsageError where the folder holds none.
    """
    if not folder:
        return [text for _, text in stdlib.documents(split)]
    found = sorted(stdlib._modules(Path(folder)))
    texts = [text for name, text in found if stdlib.is_heldout(name) == (split == "heldout")]
    if not texts:
        raise UsageError(f"library={folder!r} holds no readable .py files; give a copy of a standard library")
    return texts


def _folders(folders: str) -> list[str]:
    return [folder.strip() for folder in folders.split(",") if folder.strip()]
