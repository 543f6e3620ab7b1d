"""The bundled model: a small GPT-2 with its own tokenizer, trained by `python -m sketch_eval.train`."""

from __future__ import annotations

from pathlib import Path


def path() -> str:
    """The folder that transformers' `from_pretrained` loads the model and the tokenizer from."""
    return str(Path(__file__).parent)
