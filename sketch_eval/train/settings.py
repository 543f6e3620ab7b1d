"""What one training run is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from sketch_eval.errors import UsageError

Value = TypeVar("Value", int, float)


def at_step(schedule: tuple[tuple[int, Value], ...], step: float) -> Value:
    """The value of the last entry whose first step is not after ``step``."""
    return [value for first, value in schedule if first <= step][-1]


@dataclass(frozen=True)
class Settings:
    """What one run is. Every schedule counts steps, so a run that was paused or resumed is the same run."""

    steps: int = 12000
    cooldown: int = 3000
    """The learning rate falls along a cosine over this many last steps."""
    warmup: int = 100
    lengths: tuple[tuple[int, int], ...] = ((0, 128), (300, 256), (800, 512), (1500, 1024))
    """(first step, row length in tokens): short rows, dense in drills, teach looking back; long ones stretch it."""
    drills: tuple[tuple[int, float], ...] = ((0, 0.5), (900, 0.3), (3000, 0.2))
    """(first step, share of rows that are drills)."""
    tokens: int = 8192
    """Tokens a step."""
    micro: int = 2048
    """Tokens a forward pass: a step is tokens / micro passes, and a pass has at least one row. Small passes stay in a
    processor's caches: a step of the bundled model's size took 3.2 s on a CPU in passes of 2048 tokens, and 4.6 s in
    one of 8192. A GPU may want larger ones."""
    rate: float = 2e-3
    decay: float = 0.1
    seed: int = 0
    shape: str = "gpt2"
    """The kind of model: "gpt2", with learned positions, or "llama", with rotary ones and grouped queries."""
    vocabulary: int = 8192
    positions: int = 1024
    layers: int = 6
    width: int = 256
    heads: int = 4
    kv_heads: int = 0
    """Key/value heads of a "llama"; as many as there are heads where it is 0."""
    device: str = "cpu"
    """"cpu", "cuda" or "cuda:0" and so on."""
    threads: int = 2
    every: int = 100
    """Steps between two evaluations."""
    save_every: int = 50
    books: str = ""
    """Folders of .txt works to train on as well, with commas between them; none where it is empty."""
    kept_out: str = ""
    """Names of files in these folders that are kept out of training, with commas between them: the held-out loss is
    taken on them. Where it is empty, the last twentieth of each work is."""
    book_share: float = 0.8
    """Share of the text windows that come from the books, where there are any."""
    start: str = ""
    """A folder that holds a model and its tokenizer to train further; a new model where it is empty."""
    limit: float = math.inf
    """Seconds after which this process saves and stops, to be resumed later."""
    seconds: float = 0.0
    """Where it is not 0, the run takes so many seconds, its beginning included, whatever its speed: `steps` is then the
    number of equal parts of this time, and every schedule counts them (`sketch_eval.train.timed`)."""
    fall: str = "cosine"
    """How the rate falls at the end: "cosine", to a fiftieth, or "linear", to 0."""
    workers: int = 4
    """Processes that make drills for a run of so many ``seconds``."""
    library: str = ""
    """A folder with a standard library's sources; those of the running interpreter where it is empty."""

    def __post_init__(self) -> None:
        if self.heads < 3 or self.width % (2 * self.heads):
            raise UsageError(
                f"heads={self.heads!r}: expected 3 or more, with twice the number dividing width={self.width}"
            )
        for name in ("steps", "tokens", "micro", "layers", "every", "save_every", "threads", "workers"):
            if getattr(self, name) < (2 if name == "layers" else 1):
                raise UsageError(f"{name}={getattr(self, name)!r}: expected {2 if name == 'layers' else 1} or more")
        if self.fall not in ("cosine", "linear"):
            raise UsageError(f"fall={self.fall!r}: expected cosine or linear")
        if self.seconds < 0:
            raise UsageError(f"seconds={self.seconds!r}: expected 0 or more")
        if self.shape not in ("gpt2", "llama"):
            raise UsageError(f"shape={self.shape!r}: expected gpt2 or llama")
        if self.kept_out and not self.books:
            raise UsageError(f"kept_out={self.kept_out!r}: there are no books that it could be kept out of; give books")
        if self.kv_heads and (self.shape != "llama" or self.kv_heads < 0 or self.heads % self.kv_heads):
            raise UsageError(f"kv_heads={self.kv_heads!r}: expected a divisor of heads={self.heads}, and shape=llama")
        if not 0 <= self.book_share <= 1:
            raise UsageError(f"book_share={self.book_share!r}: expected a share of 0 to 1")
        if self.start and not (Path(self.start) / "config.json").is_file():
            raise UsageError(
                f"start={self.start!r}: expected a folder that `train` or save_pretrained wrote a model to"
            )
        if self.device != "cpu" and not torch.cuda.is_available():
            raise UsageError(f"device={self.device!r}: this machine has no CUDA device; use device=cpu")

    def length(self, step: float) -> int:
        """Tokens a row at this step."""
        return min(at_step(self.lengths, step), self.positions)

    def learning_rate(self, step: float) -> float:
        """Warm-up, then level, then the fall: a run can be made longer or shorter until the cool-down begins."""
        if step < self.warmup:
            # A part of the time begins at nothing; the first of a number of steps is a step already.
            return self.rate * (step if self.seconds else step + 1) / self.warmup
        left = (self.steps - step) / max(self.cooldown, 1)
        if self.fall == "linear":
            return self.rate * min(left, 1.0)
        return self.rate * (1.0 if left >= 1 else 0.02 + 0.98 * (1 - math.cos(math.pi * left)) / 2)
