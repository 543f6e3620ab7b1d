"""Training by the clock, for GPUs: the run ends, cooled down, when its time is over, whatever its speed."""

from __future__ import annotations

import json
import math
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel, PreTrainedTokenizerFast

from sketch_eval.train import books
from sketch_eval.train.evaluate import drills, losses
from sketch_eval.train.feed import Feed
from sketch_eval.train.loop import build_optimizers, export, load, read, works_of
from sketch_eval.train.mixture import Mixture
from sketch_eval.train.model import build_model
from sketch_eval.train.precision import mixed
from sketch_eval.train.probe import PROBES, accuracy
from sketch_eval.train.settings import Settings, at_step
from sketch_eval.train.tokenizer import train_tokenizer

REPORT = 10.0  # seconds between two lines of the log
PATIENCE = 120  # seconds that compiling one length may take
TYPOGRAPHY = {"plain": 0.4, "spaced": 0.4, "curly": 0.2}
"""Shares of three ways to set the works: a paragraph a line; blank lines between; these and curly quotation marks."""


def train_by_the_clock(settings: Settings, folder: Path) -> PreTrainedModel:
    """Train for ``settings.seconds``, reading the texts included; returns the float32 model.

    Raises FloatingPointError where the loss is no longer a finite number.

    Writes into folder: tokenizer files, log.jsonl, the model as it was when the cool-down began in folder/level, the
    model in folder/model, and at the end what it can do in results.json. SIGTERM ends the run as it stands. Rows stand
    at the first positions, whatever their length: learned positions want rows of the whole length.
    """
    begun = time.monotonic()
    torch.set_num_threads(settings.threads)
    if settings.device != "cpu":
        torch.set_float32_matmul_precision("high")
        torch.backends.cuda.enable_cudnn_sdp(False)  # It plans anew for each shape; the flash kernel needs no plan.
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = (
        PreTrainedTokenizerFast.from_pretrained(settings.start)
        if settings.start
        else train_tokenizer(settings.vocabulary, settings.positions, works_of(settings, "train"))
    )
    tokenizer.save_pretrained(folder)
    lengths = list(dict.fromkeys(settings.length(first) for first, _ in settings.lengths))
    end = tokenizer.eos_token_id
    feed = Feed(end, str(folder), lengths, settings.workers, settings.seed, settings.device)
    try:
        return _train(settings, folder, tokenizer, feed, begun)
    finally:
        feed.close()


def _train(
    settings: Settings, folder: Path, tokenizer: PreTrainedTokenizerFast, feed: Feed, begun: float
) -> PreTrainedModel:
    model = load(settings.start).to(settings.device) if settings.start else build_model(settings, tokenizer)
    model.set_attn_implementation(CAUSAL)
    optimizers = build_optimizers(model, settings)
    mixture, heldout = read(tokenizer, settings, "train"), read(tokenizer, settings, "heldout")
    texts = streams(mixture, settings)
    feed.hold(texts)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters; tokens: {[len(ids) for _, ids in texts]}")
    print(json.dumps(asdict(settings)), flush=True)
    run = Run(model, tokenizer, optimizers, feed, heldout, settings, folder, begun)
    run.train()
    export(model, tokenizer, folder / "model")
    run.report(run.full() | probes(model, tokenizer, settings))
    return model


class Run:
    """One run: what it trains, on what, and where its clock stands."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        optimizers: list[torch.optim.Optimizer],
        feed: Feed,
        heldout: Mixture,
        settings: Settings,
        folder: Path,
        begun: float,
    ) -> None:
        self.model, self.tokenizer, self.optimizers, self.feed = model, tokenizer, optimizers, feed
        self.heldout, self.settings, self.folder, self.begun = heldout, settings, folder, begun
        self.loss = Loss(model, settings.device)
        self.first = time.monotonic() - begun  # seconds that went by before the first step
        self.steps = self.tokens = 0
        self.running, self.stopped = float("nan"), False

    def now(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.begun

    def part(self) -> float:
        """How many of the `steps` equal parts of the time after reading are over: what schedules count."""
        settings = self.settings
        return settings.steps * max(self.now() - self.first, 0.0) / max(settings.seconds - self.first, 1.0)

    def train(self) -> None:
        """Steps until the time is over."""
        settings = self.settings
        previous = signal.signal(signal.SIGTERM, self._stop)
        fell, said, evaluated = settings.steps - settings.cooldown, 0.0, 0.0
        before: Tensor | None = None
        while (part := self.part()) < settings.steps and not self.stopped:
            if part >= fell:
                export(self.model, self.tokenizer, self.folder / "level")
                fell = settings.steps + 1
            loss = self.step(part)
            # The loss of the step before: to wait for this step's would leave the device idle.
            if before is not None:
                value = before.item()
                if not math.isfinite(value):
                    raise FloatingPointError(f"the loss of step {self.steps - 1} is {value}; give a lower rate")
                self.running = value if math.isnan(self.running) else 0.98 * self.running + 0.02 * value
            before = loss
            if part - evaluated >= settings.every:
                evaluated = part - part % settings.every  # However long the evaluation before took.
                export(self.model, self.tokenizer, self.folder / "model")
                self.report(self.full())
            elif self.now() - said >= REPORT:
                said = self.now()
                self.report(losses(self.model, self.heldout, settings.length(part), settings))
        signal.signal(signal.SIGTERM, previous)

    def step(self, part: float) -> Tensor:
        """One step of the optimisers; returns the weighted mean loss in nats a token, on the device."""
        settings = self.settings
        length = settings.length(part)
        rows = max(settings.tokens // length, 1)
        ids, weights = self.feed.batch(rows, length, at_step(settings.drills, part))
        loss = self.loss.backward(ids, weights, max(settings.micro // length, 1))
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate(part)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        self.tokens += rows * length
        return loss

    def full(self) -> dict[str, float]:
        """Held-out losses and drills at the model's full length."""
        settings = self.settings
        length = settings.positions
        found = losses(self.model, self.heldout, length, settings, max(65_536 // length, 1))
        return {"length": length, **found, **drills(self.model, self.heldout, length, settings)}

    def report(self, found: dict[str, float]) -> None:
        """A line of the log, and of the output; the last one is results.json as well."""
        settings, spent = self.settings, self.now()
        line = {
            "step": self.steps,
            "seconds": round(spent, 1),
            "tokens": self.tokens,
            "speed": round(self.tokens / max(spent - self.first, 1e-3)),
            "rate": self.optimizers[0].param_groups[0]["lr"],
            "train_loss": round(self.running, 4),
            "drills": {length: pool.count for length, pool in self.feed.pools.items()},
            **found,
        }
        if settings.device != "cpu":
            line["gigabytes"] = round(torch.cuda.max_memory_allocated() / 1e9, 1)
        print(json.dumps(line), flush=True)
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        (self.folder / "results.json").write_text(json.dumps(line, indent=1) + "\n", encoding="utf-8")

    def _stop(self, *_: Any) -> None:
        self.stopped = True


class Loss:
    """The loss and its gradients, compiled on a GPU as long as that works."""

    def __init__(self, model: PreTrainedModel, device: str) -> None:
        self.model, self.device = model, device
        self.compiled: Any = torch.compile(self.forward, dynamic=False) if device != "cpu" else None
        self.shapes: set[torch.Size] = set()

    def forward(self, ids: Tensor, weights: Tensor) -> Tensor:
        """Sum of weight × cross-entropy (nats) of each token given those before it; both are [rows, length]."""
        hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        logits = self.model.get_output_embeddings()(hidden).flatten(0, 1)
        # All places, the last of a row without weight: to choose places would make shapes that change.
        wanted, weight = F.pad(ids[:, 1:], (0, 1)).flatten(), F.pad(weights[:, 1:], (0, 1)).flatten()
        return (F.cross_entropy(logits.float(), wanted, reduction="none") * weight).sum()

    def backward(self, ids: Tensor, weights: Tensor, most: int) -> Tensor:
        """Add the gradients of a batch, ``most`` rows at a time; returns its weighted mean loss, on the device.

        There must be none yet: where the compiled loss fails, what was added by then is cleared, for it may be half a
        part, and the batch is begun again without it.
        """
        total = weights[:, 1:].sum()
        parts = list(zip(ids.split(most), weights.split(most), strict=True))
        if self.compiled is not None:
            try:
                return torch.stack([self._compiled(some, weight, total) for some, weight in parts]).sum()
            except Exception as error:
                print(f"goes on without torch.compile: {type(error).__name__}: {str(error)[:2000]}", flush=True)
                self.compiled = None
                self.model.zero_grad(set_to_none=True)
        return torch.stack([self._run(self.forward, some, weight, total) for some, weight in parts]).sum()

    def _compiled(self, ids: Tensor, weights: Tensor, total: Tensor) -> Tensor:
        if ids.shape in self.shapes:
            return self._run(self.compiled, ids, weights, total)
        begun = time.monotonic()
        previous = signal.signal(signal.SIGALRM, _give_up)
        signal.alarm(PATIENCE)
        try:
            loss = self._run(self.compiled, ids, weights, total)
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, previous)
        self.shapes.add(ids.shape)
        print(f"compiled for {[*ids.shape]} in {time.monotonic() - begun:.0f} s", flush=True)
        return loss

    def _run(self, forward: Any, ids: Tensor, weights: Tensor, total: Tensor) -> Tensor:
        with mixed(self.device):
            loss = forward(ids, weights) / total
        loss.backward()
        return loss.detach()


def _give_up(*_: Any) -> None:
    raise TimeoutError(f"compiling took more than {PATIENCE} s")


def streams(mixture: Mixture, settings: Settings) -> list[tuple[float, np.ndarray]]:
    """(share, ids) of the library and of the works in each typography."""
    if not len(mixture.books):
        return [(1.0, mixture.stream)]
    share = settings.book_share
    curly = mixture.tokens([books.curly(text) for text in works_of(settings, "train")])
    works = {
        "plain": mixture.books,
        "spaced": blank_lines(mixture.books, mixture.tokenizer),
        "curly": blank_lines(curly, mixture.tokenizer),
    }
    return [(1 - share, mixture.stream), *((share * TYPOGRAPHY[name], ids) for name, ids in works.items())]


def blank_lines(ids: np.ndarray, tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """The same text with each end of a line twice."""
    (end,) = tokenizer("\n", add_special_tokens=False)["input_ids"]
    return np.repeat(ids, np.where(ids == end, 2, 1))


@torch.no_grad()
def probes(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, settings: Settings, rows: int = 40
) -> dict[str, float]:
    """Of each probe at the model's full length, the share of answers that are wholly right."""
    length = settings.positions * 15 // 16
    with mixed(settings.device):
        return {name: accuracy(model, tokenizer, probe, length, rows)[0] for name, probe in PROBES.items()}


def attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, _: Any, scaling: float | None = None, **__: Any
) -> tuple[Tensor, None]:
    """Causal attention over whole rows; query, key and value are [rows, heads, length, channels].

    transformers' own "sdpa" writes out a mask wherever it is compiled, and then no fast kernel serves.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    # Rotary positions turn queries and keys in float32.
    query, key = query.to(value.dtype), key.to(value.dtype)
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling).transpose(1, 2), None


CAUSAL = "causal-rows"
AttentionInterface.register(CAUSAL, attend)
