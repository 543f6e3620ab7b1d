"""What the trainer watches: held-out loss, and how often each kind of drill is answered."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import torch
from transformers import PreTrainedModel

from sketch_eval.train.mixture import ANSWER, Mixture, Piece, code_words, key_values, pass_keys, repeats
from sketch_eval.train.precision import mixed
from sketch_eval.train.settings import Settings

KINDS: dict[str, tuple[Callable[[Random, int], list[Piece]], float]] = {
    "code": (code_words, ANSWER),
    "passkey": (pass_keys, ANSWER),
    "kv": (key_values, ANSWER),
    "induction": (repeats, 1.0),
}


@torch.no_grad()
def evaluate(
    model: PreTrainedModel, heldout: Mixture, length: int, settings: Settings, rows: int = 16
) -> dict[str, float]:
    """Held-out loss (nats a token, windows of ``length``), and per drill the share of answer tokens ranked first.

    The books' loss stands by itself, as `heldout_books`. The same rows at every call of one length.
    """
    report: dict[str, float] = {"length": length}
    with mixed(settings.device):
        for name, share in {"heldout": 0.0, "heldout_books": 1.0}.items():
            if share and not len(heldout.books):
                continue
            heldout.book_share = share
            ids, _, positions = heldout.batch(0, rows, length, 0.0, settings.positions)
            logits = model(
                input_ids=ids.to(settings.device), position_ids=positions.to(settings.device), use_cache=False
            ).logits
            losses = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten().to(settings.device)
            )
            report[name] = round(losses.item(), 4)
        for kind, (make, weight) in KINDS.items():
            rng = Random(f"evaluate {kind} {length}")
            right = asked = 0
            for _ in range(rows):
                row, weights = heldout.encode(make(rng, length - 4))
                guess = (
                    model(input_ids=torch.tensor([row[:length]], device=settings.device), use_cache=False)
                    .logits[0]
                    .argmax(-1)
                )
                want = torch.tensor(row[1:length])
                counted = torch.tensor(weights[1:length]) == weight
                right += int((guess.cpu()[:-1] == want)[counted].sum())
                asked += int(counted.sum())
            report[kind] = round(right / max(asked, 1), 4)
    return report
