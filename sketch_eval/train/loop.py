"""The training loop: curriculum, optimiser, checkpoints."""

from __future__ import annotations

import copy
import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from sketch_eval.allocator import keep_memory, trim_memory
from sketch_eval.errors import UsageError
from sketch_eval.text import stdlib
from sketch_eval.train import books
from sketch_eval.train.evaluate import evaluate
from sketch_eval.train.mixture import Mixture
from sketch_eval.train.model import build_model
from sketch_eval.train.settings import Settings, at_step
from sketch_eval.train.tokenizer import train_tokenizer


def build_optimizer(model: GPT2LMHeadModel, settings: Settings) -> torch.optim.AdamW:
    """AdamW; only matrices other than the embeddings decay."""
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "wte" not in name and "wpe" not in name]
    kept = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in kept]
    groups = [{"params": matrices, "weight_decay": settings.decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.rate, betas=(0.9, 0.95), fused=True)


def weighted_loss(model: GPT2LMHeadModel, ids: Tensor, weights: Tensor, positions: Tensor) -> Tensor:
    """Sum of weight × cross-entropy (nats) of each token given those before it; weightless tokens are skipped.

    ids, weights and positions are [rows, length].
    """
    hidden = model.transformer(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state[:, :-1]
    counted = weights[:, 1:] > 0
    logits = model.lm_head(hidden[counted])
    return (F.cross_entropy(logits.float(), ids[:, 1:][counted], reduction="none") * weights[:, 1:][counted]).sum()


def train(settings: Settings, folder: Path) -> GPT2LMHeadModel:
    """Train, or go on from ``folder/checkpoint.pt``, until the last step or the time limit; returns the float32 model.

    Writes into folder: tokenizer files, checkpoint.pt, log.jsonl (one object an evaluation) and, at the end, the model
    and its tokenizer in folder/model, ready for from_pretrained.
    """
    keep_memory()
    torch.set_num_threads(settings.threads)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    else:
        tokenizer = (
            PreTrainedTokenizerFast.from_pretrained(settings.start)
            if settings.start
            else train_tokenizer(settings.vocabulary, settings.positions)
        )
        tokenizer.save_pretrained(folder)
    mixture, heldout = (_mixture(tokenizer, settings, split) for split in ("train", "heldout"))
    model = load(settings.start).to(settings.device) if settings.start else build_model(settings, tokenizer)
    optimizer = build_optimizer(model, settings)
    first, seconds_before = 0, 0.0
    if (folder / "checkpoint.pt").exists():
        state = torch.load(folder / "checkpoint.pt", map_location=settings.device, weights_only=True)
        try:
            model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise UsageError(
                f"out={str(folder)!r}: its checkpoint is of a model of another size; use a new folder"
            ) from error
        optimizer.load_state_dict(state["optimizer"])
        first, seconds_before = state["step"], state["seconds"]
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(mixture.stream):,} tokens of the library, "
        f"{len(mixture.books):,} of books",
        flush=True,
    )
    print(json.dumps(asdict(settings)), flush=True)
    if settings.books:
        print(json.dumps(books.checksums(settings.books)), flush=True)

    start, running = time.monotonic(), 0.0
    for step in range(first, settings.steps):
        loss = train_step(model, optimizer, mixture, settings, step)
        running = loss if running == 0 else 0.95 * running + 0.05 * loss
        done, seconds = step + 1, time.monotonic() - start
        last = done == settings.steps or seconds > settings.limit
        if done % 20 == 0 or last:
            speed = (done - first) * settings.tokens / seconds
            print(f"step {done} loss {running:.3f} {speed:.0f} tokens/s {seconds:.0f} s", flush=True)
        if done % settings.every == 0 or last:
            length = settings.length(step)
            report = {"step": done, "seconds": round(seconds_before + seconds), "train_loss": round(running, 4)}
            report |= evaluate(model, heldout, length, settings)
            print(json.dumps(report), flush=True)
            with open(folder / "log.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps(report) + "\n")
        if done % settings.save_every == 0 or last:
            save(model, optimizer, folder, done, seconds_before + seconds)
            trim_memory()
        if last:
            break
    export(model, tokenizer, folder / "model")
    return model


def _mixture(tokenizer: PreTrainedTokenizerFast, settings: Settings, split: stdlib.Split) -> Mixture:
    """One split of the text that the settings name."""
    texts = [text for _, text in stdlib.documents(split)]
    novels = books.documents(settings.books, split) if settings.books else []
    # A seed of its own: the drills that the held-out loss is taken on are not those trained on.
    return Mixture(tokenizer, texts, settings.seed + (split == "heldout"), novels, settings.book_share)


def load(folder: str) -> GPT2LMHeadModel:
    """A GPT-2 to train further, in float32 and without dropout."""
    return GPT2LMHeadModel.from_pretrained(
        folder, dtype=torch.float32, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    ).train()


def train_step(
    model: GPT2LMHeadModel, optimizer: torch.optim.AdamW, mixture: Mixture, settings: Settings, step: int
) -> float:
    """One optimiser step on batch number ``step``; returns the weighted mean loss in nats a token."""
    length = settings.length(step)
    rows = max(settings.tokens // length, 1)
    drills = at_step(settings.drills, step)
    batch = [part.to(settings.device) for part in mixture.batch(step, rows, length, drills, settings.positions)]
    total = batch[1][:, 1:].sum()
    loss = 0.0
    for ids, weights, positions in zip(*(part.split(max(settings.micro // length, 1)) for part in batch), strict=True):
        with torch.autocast(settings.device.split(":")[0], torch.bfloat16):
            part = weighted_loss(model, ids, weights, positions) / total
        part.backward()
        loss += part.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate(step)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss


def save(
    model: GPT2LMHeadModel,
    optimizer: torch.optim.AdamW,
    folder: Path,
    step: int,
    seconds: float,
) -> None:
    """The checkpoint, whole or not at all."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "seconds": seconds}
    torch.save(state, folder / "checkpoint.tmp")
    os.replace(folder / "checkpoint.tmp", folder / "checkpoint.pt")


def export(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """The model and its tokenizer as transformers loads them: float16 on disk, float32 when loaded."""
    half = copy.deepcopy(model).half()
    half.save_pretrained(folder)
    half.config.dtype = torch.float32
    half.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
