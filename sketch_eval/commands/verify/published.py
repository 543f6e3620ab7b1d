"""GPT-2's published answers with the full cache, where its weights and the texts can be had (docs/design.md §7)."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import lm_eval
import torch

from sketch_eval.commands.verify.check import Check
from sketch_eval.errors import UsageError, first_line
from sketch_eval.lm import SketchGPT2

PUBLISHED: tuple[tuple[str, str, float, float], ...] = (
    ("lambada_openai", "acc,none", 0.3256, 0.0065),
    ("wikitext", "word_perplexity,none", 37.37, 0.02),
)
"""Task, metric, value and how far off it may be: the first's standard error, the second's last digit twice."""

HUB, SECONDS = ("huggingface.co", 443), 3.0


def check(device: str) -> Iterator[Check]:
    """A row for every published answer; skipped, with the reason, where GPT-2 or a text cannot be had."""
    reason = unreachable()
    lm: SketchGPT2 | None = None
    for task, metric, value, tolerance in PUBLISHED:
        name, expected = f"gpt2: {task} {metric.partition(',')[0]}", f"{value:g} ± {tolerance:g}"
        if not reason:
            try:
                lm = lm or _gpt2(device)
                found = _score(lm, task, metric)
            except (UsageError, OSError, ValueError, RuntimeError) as error:
                reason = first_line(error)
        if reason:
            yield Check("published", name, expected, reason, "skipped")
        else:
            verdict = "ok" if abs(found - value) <= tolerance else "FAILED"
            yield Check("published", name, expected, f"{found:.4f}", verdict)  # type: ignore[arg-type]


def unreachable() -> str:
    """Why the hub is not to be asked; empty where it answers, or where all that is wanted is said to be here."""
    if os.environ.get("HF_HUB_OFFLINE") or os.environ.get("HF_ENDPOINT"):
        return ""
    try:
        socket.create_connection(HUB, timeout=SECONDS).close()
    except OSError as error:
        return f"{HUB[0]} does not answer ({error})"
    return ""


def _gpt2(device: str) -> SketchGPT2:
    batch = 32 if torch.device(device).type == "cuda" else 8
    return SketchGPT2(pretrained="gpt2", device=device, batch_size=batch, dtype="float32", max_cache_size=None)


def _score(lm: SketchGPT2, task: str, metric: str) -> float:
    found: Any = lm_eval.simple_evaluate(model=lm, tasks=[task], log_samples=False, bootstrap_iters=0)
    return float(found["results"][task][metric])
