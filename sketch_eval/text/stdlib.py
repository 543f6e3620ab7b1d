"""Source text of the running interpreter's standard library: one document a module, split by a hash of the names."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from sketch_eval.errors import UsageError

Split = Literal["train", "heldout"]

# Tests and bundled third-party code are not the library's own text; `encodings` is machine-made character tables.
SKIPPED_FOLDERS = frozenset({"test", "tests", "idlelib", "site-packages", "dist-packages", "__pycache__", "encodings"})


class Document(NamedTuple):
    """One module: its dotted name and its whole source text."""

    name: str
    text: str


def is_heldout(name: str) -> bool:
    """Whether the module of this dotted name is in the held-out tenth: the same answer on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 10 == 0


def documents(split: Split) -> list[Document]:
    """The modules of one split ("train" or "heldout"), in the order of their names.

    Files that are not UTF-8 or are empty are left out. Raises UsageError for another split, or where the interpreter
    has no library sources (a zipped or stripped distribution).
    """
    if split not in ("train", "heldout"):
        raise UsageError(f"split={split!r}: expected 'train' or 'heldout'")
    folder = Path(sysconfig.get_path("stdlib"))
    found = [Document(name, text) for name, text in _modules(folder) if is_heldout(name) == (split == "heldout")]
    if not found:
        raise UsageError(f"the standard library folder {str(folder)!r} holds no readable .py files: use a full Python")
    return sorted(found)


def _modules(folder: Path) -> Iterator[tuple[str, str]]:
    """Every (dotted name, text) under folder; a package goes by its own name, not by `__init__`."""
    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder).with_suffix("").parts
        if SKIPPED_FOLDERS.intersection(parts[:-1]) or not all(part.isidentifier() for part in parts):
            continue
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if text.strip():
            yield name, text


def excerpts(characters: int = 5000) -> list[Document]:
    """The held-out modules of at least ``characters``, each cut at the first line end from there on, in mixed order.

    With the default, every document has more than 1024 tokens of the bundled tokenizer and of GPT-2's, mostly up to
    twice as many. The order is that of a hash of the names, so that the first few are a fair sample. Shorter modules
    are left out: on them a bounded cache is hardly bound.
    """
    found = [
        Document(name, text[: text.find("\n", characters) + 1 or len(text)])
        for name, text in documents("heldout")
        if len(text) >= characters
    ]
    return sorted(found, key=lambda document: hashlib.sha256(f"order {document.name}".encode()).digest())
