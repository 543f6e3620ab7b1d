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
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from sketch_eval.allocator import keep_memory, trim_memory
from sketch_eval.errors import UsageError
from sketch_eval.text import stdlib
from sketch_eval.train import books
from sketch_eval.train.evaluate import evaluate
from sketch_eval.train.mixture import Mixture
from sketch_eval.train.model import build_model
from sketch_eval.train.muon import Muon
from sketch_eval.train.precision import fast_dtype, mixed
from sketch_eval.train.settings import Settings, at_step
from sketch_eval.train.tokenizer import train_tokenizer

DECIDES = ("shape", "heads", "kv_heads", "seed", "tokens", "books", "kept_out", "book_share")
"""Settings that a run keeps to its end, whose change no size of a weight would tell."""


def build_optimizers(model: PreTrainedModel, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, and AdamW for the embeddings, the norms and the biases, which do not decay.

    Muon's steps are scaled to the size of AdamW's, so that one rate does for both.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    matrices = [weight for weight in model.parameters() if weight.dim() == 2 and id(weight) not in embeddings]
    taken = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in taken]
    return [
        Muon(matrices, lr=settings.rate, weight_decay=settings.decay, dtype=fast_dtype(settings.device)),
        torch.optim.AdamW(others, lr=settings.rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def weighted_loss(model: PreTrainedModel, ids: Tensor, weights: Tensor, positions: Tensor) -> Tensor:
    """Sum of weight × cross-entropy (nats) of each token given those before it; weightless tokens are skipped.

    ids, weights and positions are [rows, length].
    """
    hidden = model.base_model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state[:, :-1]
    counted = weights[:, 1:] > 0
    logits = model.get_output_embeddings()(hidden[counted])
    return (F.cross_entropy(logits.float(), ids[:, 1:][counted], reduction="none") * weights[:, 1:][counted]).sum()


def train(settings: Settings, folder: Path) -> PreTrainedModel:
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
            else train_tokenizer(settings.vocabulary, settings.positions, works_of(settings, "train"))
        )
        tokenizer.save_pretrained(folder)
    mixture, heldout = (read(tokenizer, settings, split) for split in ("train", "heldout"))
    model = load(settings.start).to(settings.device) if settings.start else build_model(settings, tokenizer)
    optimizers = build_optimizers(model, settings)
    first, seconds_before = 0, 0.0
    if (folder / "checkpoint.pt").exists():
        state = torch.load(folder / "checkpoint.pt", map_location=settings.device, weights_only=True)
        try:
            model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise UsageError(
                f"out={str(folder)!r}: its checkpoint is of a model of another size; use a new folder"
            ) from error
        if "optimizers" not in state:
            raise UsageError(f"out={str(folder)!r}: its checkpoint is of an older trainer; use a new folder")
        for name, value in state.get("decides", {}).items():
            if getattr(settings, name) != value:
                raise UsageError(
                    f"{name}={getattr(settings, name)!r}: the checkpoint in out={str(folder)!r} was trained with "
                    f"{value!r}; give that, or use a new folder"
                )
        for optimizer, held in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(held)
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
        loss = train_step(model, optimizers, mixture, settings, step)
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
            save(model, optimizers, settings, folder, done, seconds_before + seconds)
            trim_memory()
        if last:
            break
    export(model, tokenizer, folder / "model")
    return model


def read(tokenizer: PreTrainedTokenizerFast, settings: Settings, split: stdlib.Split) -> Mixture:
    """One split of the text that the settings name."""
    texts = books.library(settings.library, split)
    works = works_of(settings, split)
    # A seed of its own: the drills that the held-out loss is taken on are not those trained on.
    return Mixture(tokenizer, texts, settings.seed + (split == "heldout"), works, settings.book_share)


def works_of(settings: Settings, split: stdlib.Split) -> list[str]:
    """One split of the works that the settings name; none where they name no folder."""
    return books.documents(settings.books, split, settings.kept_out) if settings.books else []


def load(folder: str) -> PreTrainedModel:
    """A model to train further, in float32 and without dropout."""
    config = AutoConfig.from_pretrained(folder)
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    return AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32).train()


def train_step(
    model: PreTrainedModel, optimizers: list[torch.optim.Optimizer], mixture: Mixture, settings: Settings, step: int
) -> float:
    """One optimiser step on batch number ``step``; returns the weighted mean loss in nats a token."""
    length = settings.length(step)
    rows = max(settings.tokens // length, 1)
    drills = at_step(settings.drills, step)
    batch = [part.to(settings.device) for part in mixture.batch(step, rows, length, drills, settings.positions)]
    total = batch[1][:, 1:].sum()
    loss = 0.0
    for ids, weights, positions in zip(*(part.split(max(settings.micro // length, 1)) for part in batch), strict=True):
        with mixed(settings.device):
            part = weighted_loss(model, ids, weights, positions) / total
        part.backward()
        loss += part.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate(step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss


def save(
    model: PreTrainedModel,
    optimizers: list[torch.optim.Optimizer],
    settings: Settings,
    folder: Path,
    step: int,
    seconds: float,
) -> None:
    """The checkpoint, whole or not at all."""
    held = [optimizer.state_dict() for optimizer in optimizers]
    decides = {name: getattr(settings, name) for name in DECIDES}
    state = {"model": model.state_dict(), "optimizers": held, "decides": decides, "step": step, "seconds": seconds}
    torch.save(state, folder / "checkpoint.tmp")
    os.replace(folder / "checkpoint.tmp", folder / "checkpoint.pt")


def export(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """The model and its tokenizer as transformers loads them: float16 on disk, float32 when loaded."""
    half = copy.deepcopy(model).half()
    half.save_pretrained(folder)
    half.config.dtype = torch.float32
    half.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
