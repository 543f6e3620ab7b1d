"""What the trainer watches: held-out loss, and how often each kind of drill is answered."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import torch
from transformers import PreTrainedModel

from sketch_eval.train.mixture import (
    ANSWER,
    Mixture,
    Piece,
    code_words,
    key_values,
    pass_keys,
    repeats,
    two_word_keys,
)
from sketch_eval.train.precision import mixed
from sketch_eval.train.settings import Settings

KINDS: dict[str, tuple[Callable[[Random, int], list[Piece]], float]] = {
    "code": (code_words, ANSWER),
    "passkey": (pass_keys, ANSWER),
    "kv": (key_values, ANSWER),
    "kv2": (two_word_keys, ANSWER),
    "induction": (repeats, 1.0),
}


def evaluate(
    model: PreTrainedModel, heldout: Mixture, length: int, settings: Settings, rows: int = 16
) -> dict[str, float]:
    """Held-out loss (nats a token, windows of ``length``), and per drill the share of answer tokens ranked first.

    The books' loss stands by itself, as `heldout_books`. The same rows at every call of one length.
    """
    return {
        "length": length,
        **losses(model, heldout, length, settings, rows),
        **drills(model, heldout, length, settings, rows),
    }


@torch.no_grad()
def losses(
    model: PreTrainedModel, heldout: Mixture, length: int, settings: Settings, rows: int = 16
) -> dict[str, float]:
    """Nats a token of held-out modules and of held-out works, and, as `bytes` and `bytes_books`, perplexity a byte."""
    report: dict[str, float] = {}
    for name, share in {"": 0.0, "_books": 1.0}.items():
        if share and not len(heldout.books):
            continue
        heldout.book_share = share
        ids, _, positions = heldout.batch(0, rows, length, 0.0, settings.positions)
        asked = ids.to(settings.device)
        with mixed(settings.device):
            logits = model(input_ids=asked, position_ids=positions.to(settings.device), use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), asked[:, 1:].flatten())
        letters = sum(len(text.encode()) for text in heldout.tokenizer.batch_decode(ids[:, 1:]))
        report[f"heldout{name}"] = round(loss.item(), 4)
        report[f"bytes{name}"] = round((loss * rows * (length - 1) / letters).exp().item(), 4)
    return report


@torch.no_grad()
def drills(
    model: PreTrainedModel, heldout: Mixture, length: int, settings: Settings, rows: int = 16
) -> dict[str, float]:
    """The share of answer tokens ranked first, by kind of drill."""
    report: dict[str, float] = {}
    for kind, (make, weight) in KINDS.items():
        rng = Random(f"evaluate {kind} {length}")
        right = asked = 0
        for _ in range(rows):
            row, weights = heldout.encode(make(rng, length - 4))
            with mixed(settings.device):
                logits = model(input_ids=torch.tensor([row[:length]], device=settings.device), use_cache=False).logits
            want = torch.tensor(row[1:length])
            counted = torch.tensor(weights[1:length]) == weight
            right += int((logits[0].argmax(-1).cpu()[:-1] == want)[counted].sum())
            asked += int(counted.sum())
        report[kind] = round(right / max(asked, 1), 4)
    return report
