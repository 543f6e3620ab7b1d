"""The bundled model's scores of a text, against those that are known: the whole way from lm-eval's request on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance

from sketch_eval import bundled
from sketch_eval.commands.verify.check import Check
from sketch_eval.config import CONTROLS, CacheConfig
from sketch_eval.errors import UsageError
from sketch_eval.evaluate.model import SweepLM

KNOWN = Path(__file__).parent / "known.json"
"""Scores by the name of their cell, and the SHA-256 of the weights that they are of. `write_known` makes it."""

TEXT = Path(__file__).parent / "text.txt"
"""What is scored: the beginning of docs/extending.md, as it was then. Another text needs new scores too."""

TOLERANCE = 1e-3
"""Relative difference that another machine's arithmetic may make, a near tie that it decides otherwise included."""

CELLS: dict[str, dict[str, Any]] = {
    "full": {"max_cache_size": None},
    "int8": {"max_cache_size": None, "store": "int8"},
    "window, cap 64": CONTROLS["window"] | {"max_cache_size": 64},
    "window aggregate, cap 64": CONTROLS["window"] | {"max_cache_size": 64, "strategy": "aggregate"},
    "h2o, cap 64": CONTROLS["h2o"] | {"max_cache_size": 64},
    "count_min 512×4, cap 64": {"max_cache_size": 64},
    "count_min 512×4, cap 64, topk 32": {"max_cache_size": 64, "topk": 32},
    "count_min 512×4 aggregate, cap 64": {"max_cache_size": 64, "strategy": "aggregate"},
}


def check(device: str, known: Path = KNOWN) -> Iterator[Check]:
    """A row for every score that is known.

    Raises:
        UsageError: the file of known scores cannot be read.
    """
    try:
        record = json.loads(known.read_text(encoding="utf-8"))
        of, scores = record["weights_sha256"], dict(record["bits_per_byte"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{known} holds no known scores; sketch-eval verify --write-known makes them") from error
    if of != weights():
        reason = f"{of[:12]}…, and the weights here are {weights()[:12]}…: sketch-eval verify --write-known"
        yield Check("score", "known scores", "those of the bundled weights", reason, "FAILED")
        return
    found = measure(device, [name for name in CELLS if name in scores])
    for name, expected in scores.items():
        if name not in found:
            yield Check("score", name, f"{expected:.5f}", "no such cell any more", "FAILED")
            continue
        alike = math.isclose(found[name], expected, rel_tol=TOLERANCE)
        text = f"{found[name]:.5f} ({found[name] / expected - 1:+.1e})"
        yield Check("score", name, f"{expected:.5f} bits a byte", text, "ok" if alike else "FAILED")


def measure(device: str, names: list[str]) -> dict[str, float]:
    """Bits a byte of the text in some of the `CELLS`, by their names."""
    text, scores = TEXT.read_text(encoding="utf-8"), {}
    request = Instance("loglikelihood_rolling", {}, (text,), 0, ("verify", 0, 1))
    lm = SweepLM(pretrained="bundled", device=device, batch_size=1, dtype="float32")
    for name in names:
        lm.take(CacheConfig.parse(**CELLS[name]), {})
        (nats,) = lm.loglikelihood_rolling([request])
        scores[name] = -nats / math.log(2) / len(text.encode())
    return scores


def weights() -> str:
    """SHA-256 of the bundled model's file of weights."""
    return sha256(Path(bundled.path(), "model.safetensors").read_bytes()).hexdigest()


def write_known(device: str, known: Path = KNOWN) -> dict[str, float]:
    """Measure the known scores anew and write them, for whoever changed the bundled model; return them."""
    scores = {name: round(score, 6) for name, score in measure(device, list(CELLS)).items()}
    record = {"weights_sha256": weights(), "bits_per_byte": scores}
    known.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return scores
