"""The bundled models, each with its tokenizer, trained by `python -m sketch_eval.train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

NAMES = ("bundled",)
"""What `pretrained` calls them."""


def path() -> str:
    """The folder that transformers' `from_pretrained` loads the GPT-2 and its tokenizer from."""
    return str(Path(__file__).parent)


def resolve(pretrained: Any) -> Any:
    """The folder of a bundled model that goes by its name; anything else as it is."""
    return path() if pretrained == "bundled" else pretrained
