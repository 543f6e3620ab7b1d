"""Batches for a device that is faster than Python: texts lie on it whole, and other processes make the drills."""

from __future__ import annotations

import multiprocessing
import os
import queue
from itertools import count
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from sketch_eval.errors import UsageError
from sketch_eval.train.mixture import Mixture

CHUNK = 65_536  # tokens of drills that a worker hands over at a time
STOCK = 8  # chunks of drills of a length without which no batch of it begins
Chunk = tuple[int, np.ndarray, np.ndarray, np.ndarray]  # length; ids, weights; tokens of each row


class Feed:
    """Draws batches on the device. What they hold depends on the seed and on how fast the workers are.

    The workers begin at once, so that they are ready when `hold` has been given the texts.

    Args:
        end: the end-of-text token.
        tokenizer: folder that the workers load the tokenizer from.
        lengths: all lengths that will be asked for, in the order in which they will be.
        workers: processes that make drills.
        device: where batches are wanted.
    """

    def __init__(
        self,
        end: int,
        tokenizer: str,
        lengths: list[int],
        workers: int,
        seed: int,
        device: str,
    ) -> None:
        self.end, self.device = end, torch.device(device)
        self.random = torch.Generator(self.device).manual_seed(seed)
        self.coin = Random(f"feed {seed}")
        self.pools = {length: Pool(length, self.device) for length in lengths}
        context: Any = multiprocessing.get_context("spawn")  # A fork of a process that uses CUDA cannot use it.
        self.phase = context.Value("i", 0)
        self.made = context.Queue(2 * workers)
        self.workers = [
            context.Process(
                target=make_drills, args=(tokenizer, f"{seed} {one}", lengths, self.phase, self.made), daemon=True
            )
            for one in range(workers)
        ]
        for worker in self.workers:
            worker.start()
        self.lengths = lengths

    def hold(self, texts: list[tuple[float, np.ndarray]]) -> None:
        """Put the streams of text, (share, token ids) each, on the device.

        Raises UsageError where a stream that is drawn from is shorter than the longest row.
        """
        shortest, longest = min(len(ids) for share, ids in texts if share), max(self.lengths)
        if shortest < longest:
            raise UsageError(
                f"a text of {shortest} tokens: rows are of up to {longest}; give more text, or less length"
            )
        self.shares = torch.tensor([share for share, _ in texts], device=self.device)
        self.sizes = torch.tensor([len(ids) for _, ids in texts], device=self.device)
        self.starts = self.sizes.cumsum(0) - self.sizes
        self.stream = torch.from_numpy(np.concatenate([ids for _, ids in texts])).to(self.device)

    def batch(self, rows: int, length: int, drills: float) -> tuple[Tensor, Tensor]:
        """(ids, weights), both [rows, length], as of `Mixture.batch`: int64 and float32, the drills last.

        The share of drills is met on average, since a batch has whole rows.
        """
        self.phase.value = self.lengths.index(length)
        pool = self.pools[length]
        self._take(4)
        while drills and pool.count < STOCK * pool.chunk:
            self._take(1, 5.0)
        wanted = int(rows * drills + self.coin.random())
        ids, weights = self._text(rows, length), torch.ones(rows, length, device=self.device)
        if wanted:
            which = torch.randint(pool.count, (wanted,), generator=self.random, device=self.device)
            size, places = pool.sizes[which, None], torch.arange(length, device=self.device)
            drilled = places < size
            text = torch.where(places == size, self.end, ids[-wanted:])
            ids[-wanted:] = torch.where(drilled, pool.ids[which].long(), text)
            weights[-wanted:] = torch.where(drilled, pool.weights[which].float(), 1.0)
        return ids, weights

    def _text(self, rows: int, length: int) -> Tensor:
        """Windows of the streams; half begin with the end-of-text token."""
        which = torch.multinomial(self.shares, rows, replacement=True, generator=self.random)
        # In float64: a float32 has too few digits for the places in a stream.
        where, coin = torch.rand(2, rows, generator=self.random, device=self.device, dtype=torch.float64)
        at = self.starts[which] + (where * (self.sizes[which] - length + 1)).long()
        ids = self.stream[at[:, None] + torch.arange(length, device=self.device)].long()
        ids[:, 0] = torch.where(coin < 0.5, self.end, ids[:, 0])
        return ids

    def _take(self, most: int, wait: float = 0.0) -> None:
        """Put into the pools what the workers have made, ``most`` chunks at most; wait for one up to ``wait`` seconds.

        Raises RuntimeError where there is nothing to wait for: all workers have ended.
        """
        for _ in range(most):
            try:
                length, *arrays = self.made.get(timeout=wait) if wait else self.made.get_nowait()
            except queue.Empty:
                if wait and not any(worker.is_alive() for worker in self.workers):
                    raise RuntimeError("the processes that make drills have ended; their errors stand above") from None
                return
            self.pools[length].put(*arrays)

    def close(self) -> None:
        """End the workers."""
        for worker in self.workers:
            worker.terminate()


class Pool:
    """Drills of one length on the device: the newest of them, in place of the oldest."""

    def __init__(self, length: int, device: torch.device, tokens: int = 2**26) -> None:
        self.chunk = max(CHUNK // length, 1)  # rows
        self.room = max(tokens // (self.chunk * length), STOCK) * self.chunk
        self.ids = torch.zeros(self.room, length, dtype=torch.int32, device=device)
        self.weights = torch.zeros(self.room, length, dtype=torch.float16, device=device)
        self.sizes = torch.zeros(self.room, dtype=torch.int32, device=device)
        self.count = self.at = 0

    def put(self, *arrays: np.ndarray) -> None:
        """Ids, weights and sizes of one chunk of rows."""
        rows = slice(self.at, self.at + self.chunk)
        for held, array in zip((self.ids, self.weights, self.sizes), arrays, strict=True):
            new = torch.from_numpy(array)
            # From pinned memory, so that Python need not wait until the device has done all that it was told before.
            held[rows].copy_(new.pin_memory() if held.is_cuda else new, non_blocking=True)
        self.count = max(self.count, rows.stop)
        self.at = rows.stop % self.room


def make_drills(tokenizer: str, seed: str, lengths: list[int], phase: Any, made: Any) -> None:
    """A worker: chunk after chunk of drills, by turns of each length that is still to come, from ``phase`` on."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    mixture = Mixture(PreTrainedTokenizerFast.from_pretrained(tokenizer), [], 0)
    for number in count():
        rng = Random(f"drills {seed} {number}")
        left = lengths[phase.value :]
        length = left[number % len(left)]
        made.put(chunk(mixture, rng, length))


def chunk(mixture: Mixture, rng: Random, length: int) -> Chunk:
    """Drills of one length, of `CHUNK` tokens together; what they leave open of a row is 0."""
    rows = max(CHUNK // length, 1)
    ids, weights = np.zeros((rows, length), np.int32), np.zeros((rows, length), np.float16)
    sizes = np.zeros(rows, np.int32)
    for row in range(rows):
        tokens, weight = mixture.drill(rng, length)
        size = sizes[row] = min(len(tokens), length)
        ids[row, :size], weights[row, :size] = tokens[:size], weight[:size]
    return length, ids, weights, sizes
