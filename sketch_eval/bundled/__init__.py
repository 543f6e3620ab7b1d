"""The bundled models, each with its tokenizer, trained by `python -m sketch_eval.train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_FOLDERS = {"bundled": ".", "bundled-rotary": "rotary"}

NAMES = tuple(_FOLDERS)
"""What `pretrained` calls them: a GPT-2 of 1024 positions, and a Llama of 4096 whose queries share keys in groups."""


def path(name: str = "bundled") -> str:
    """The folder that transformers' `from_pretrained` loads a bundled model and its tokenizer from."""
    return str(Path(__file__).parent / _FOLDERS[name])


def resolve(pretrained: Any) -> Any:
    """The folder of a bundled model that goes by its name; anything else as it is."""
    return path(pretrained) if isinstance(pretrained, str) and pretrained in _FOLDERS else pretrained
