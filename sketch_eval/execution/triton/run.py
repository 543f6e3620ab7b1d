"""All rows of a call through the kernel, in one launch."""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch

from sketch_eval.call import Call, Trace
from sketch_eval.execution.triton.plan import (
    FATES,
    FIXED,
    KNORM,
    LARGEST_CAP,
    LARGEST_HEAD,
    LONGEST,
    SOURCES,
    Plan,
    plan_for,
    power_of_two,
)
from sketch_eval.formats import Parts
from sketch_eval.state import LayerState, Vectors

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@lru_cache
def installed() -> bool:
    """Whether Triton can be imported."""
    return find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernel, on CPU tensors too: the environment asked for it."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def serves(state: LayerState, call: Call) -> bool:
    """Calls on a CUDA device for the policies and fates that the kernel has branches for."""
    return not why_not(state, call)


def why_not(state: LayerState, call: Call) -> str:
    """Why it does not serve a call, in words for a user; empty where it does."""
    cell, head_dim = state.cell, call.q.shape[-1]
    assert cell.max_cache_size is not None
    if not installed():
        return "Triton is not installed (pip install 'sketch_eval[gpu]')"
    if call.q.device.type != "cuda" and not interpreted():
        return f"the kernel runs on CUDA devices, and this is {call.q.device}"
    if call.q.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return "the kernel asks how long a text is, which a step that is being captured as a CUDA graph cannot"
    if cell.importance not in SOURCES or cell.strategy not in FATES or state.owners is not None or cell.conservative:
        return (
            f"the kernel has no importance={cell.importance}, strategy={cell.strategy}, scope={cell.scope}, "
            f"conservative={cell.conservative}"
        )
    if state.fate.counts and not state.exact:
        return f"the kernel does not fold pairs of store={cell.store}, which are rounded anew at each fold"
    if call.q.dtype not in DTYPES or call.k.dtype not in DTYPES:
        return f"the kernel takes {', '.join(map(str, DTYPES))}, and this is {call.q.dtype}"
    if cell.max_cache_size > LARGEST_CAP or head_dim > LARGEST_HEAD:
        return (
            f"the kernel goes to max_cache_size={LARGEST_CAP} and heads of {LARGEST_HEAD} numbers, and these are "
            f"{cell.max_cache_size} and {head_dim}"
        )
    if 2 * call.length * call.q.shape[1] * head_dim >= 2**31:  # Offsets within a row are int32.
        return f"the kernel takes less than {call.length} tokens of these heads at once"
    if state.columns + call.length > LONGEST:
        return f"the kernel takes texts of up to {LONGEST} tokens"
    return ""


def advance(state: LayerState, call: Call) -> tuple[torch.Tensor, Trace]:
    """The kernel's counterpart of `stepwise.advance`, which see: same arguments, same results."""
    from sketch_eval.execution.triton.kernel import scan

    batch, query_heads, length, _ = call.q.shape
    output = torch.zeros(batch, length, query_heads, call.q.shape[-1], dtype=call.v.dtype, device=call.q.device)
    scratch = Scratch(state, call)
    arguments, constants = scratch.arguments(output)
    scan[(len(state.positions),)](**arguments, **constants, num_warps=scratch.plan.warps, num_stages=1)
    return output, scratch.finish()


def constants(plan: Plan, by_age: bool, half: bool) -> dict[str, Any]:
    """What the kernel is compiled for."""
    return {
        "SOURCE": plan.source, "FOLD": plan.fold, "HIDE": plan.hide, "FADES": plan.fades, "BY_AGE": by_age,
        "HALF": half,
        "CAP": plan.cap, "HEADS": plan.heads, "QUERIES": plan.queries, "D": plan.head_dim,
        "DP": max(power_of_two(plan.head_dim), 16), "HP": power_of_two(plan.heads), "QP": power_of_two(plan.queries),
        "B": plan.chunk, "W": plan.columns, "BW": plan.block, "DEPTH": plan.depth, "RP": power_of_two(plan.depth),
        "WARPS": plan.warps,
    }  # fmt: skip


class Scratch:
    """The memory of one launch: a state's pairs and a call's tokens as the kernel wants them, and what it writes."""

    def __init__(self, state: LayerState, call: Call) -> None:
        self.state, self.call = state, call
        heads, slots = state.held_keys.parts[0].shape[1:3]
        rows, length, device = len(state.positions), call.length, call.q.device
        self.slots = slots
        first, valid = state.by_row(state.seen.clone()), state.by_row(call.valid)
        place = first[:, None] + valid.cumsum(1) - 1
        new = state.arrive(call)
        arriving = state.show(place, state.by_row(call.tokens), new.keys, new.values)
        items = state.policy.items(arriving)
        tags, held = state.policy.tags(items, arriving), state.tags()

        # The pool: what is stored, then what arrives, then room for what is folded.
        self.key_parts, self.value_parts = (
            tuple(torch.cat((part, more.to(part.dtype)), 2) for part, more in zip(vectors.parts, parts, strict=True))
            for vectors, parts in ((state.held_keys, new.key_parts), (state.held_values, new.value_parts))
        )
        if state.fate.counts:
            self.key_parts, self.value_parts = _with_room(self.key_parts, length), _with_room(self.value_parts, length)
        self.keys = state.held_keys.format.decode(self.key_parts)
        self.values = state.held_values.format.decode(self.value_parts)
        self.items = None if state.items is None else torch.cat((state.items, items.int()), 1)
        self.half = call.q.dtype == self.keys.dtype != torch.float32
        self.plan = plan_for(state.cell, heads, call.q.shape[1] // state.units, call.q.shape[-1], not self.half)

        # The columns, with the pairs leading.
        columns = self.plan.columns
        order = (state.positions < 0).int().argsort(dim=1, stable=True)[:, : self.plan.cap]

        def by_column(of_slots: torch.Tensor, rest: float) -> torch.Tensor:
            leading = of_slots.gather(1, order)
            return torch.nn.functional.pad(leading, (0, columns - leading.shape[1]), value=rest).contiguous()

        self.positions = by_column(state.positions, -1)
        self.src = by_column(torch.arange(slots, dtype=torch.int32, device=device).expand(rows, -1), -1)
        self.own = self.src.clone()
        ones = torch.ones_like(state.positions, dtype=torch.float32)
        self.counts = by_column(ones if state.counts is None else state.counts, 1.0)
        memory = state.policy.tensors()
        self.table = memory.get("sketch", torch.zeros(rows, 1, 1, device=device))
        self.owners = torch.empty_like(self.table, dtype=torch.int32)
        self.cells = torch.zeros(1, dtype=torch.int32, device=device)
        self.new_scores = torch.zeros(1, dtype=torch.float32, device=device)
        scores = memory.get("scores", torch.zeros_like(ones))
        if "sketch" in memory:
            self.cells = torch.cat((held, tags), 1).int().contiguous()
        elif self.plan.source in (FIXED, KNORM):
            scores, self.new_scores = held.float(), tags.float().contiguous()
        self.scores = by_column(scores, 0.0)
        square = columns if state.fate.counts else 1
        self.gram = torch.empty(rows, 2, square, square, dtype=torch.float32, device=device)
        self.moves = torch.empty_like(self.src)
        shape = (rows, self.plan.queries, self.plan.chunk, columns)
        self.logits = torch.empty(shape, dtype=torch.float32, device=device)
        self.decided = Trace.empty(rows, length, device)  # Of the tokens that are no padding, which lead.
        self.tokens = call.valid.int().argsort(dim=1, descending=True, stable=True).int()
        self.count = call.valid.sum(1).int()

    def arguments(self, output: torch.Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
        """The kernel's arguments, and what it is compiled for."""
        state, call, cell = self.state, self.call, self.state.cell
        assert cell.max_cache_size is not None
        q = call.q if call.q.stride(3) == 1 else call.q.contiguous()
        sinks, recent = cell.protected(cell.max_cache_size)
        visible = cell.visible or 0
        visible_sinks, visible_recent = cell.protected(visible)
        given: dict[str, Any] = {
            "q": q, "keys": self.keys.contiguous(), "values": self.values.contiguous(), "out": output,
            "columns": self.tokens, "count": self.count, "seen": state.seen, "new_scores": self.new_scores,
            "cells": self.cells, "table": self.table, "owners": self.owners, "src": self.src, "own": self.own,
            "positions": self.positions,
            "scores": self.scores, "counts": self.counts, "moves": self.moves, "logits": self.logits, "gram": self.gram,
            "victims": self.decided.victims, "survivors": self.decided.survivors, "hidden": self.decided.hidden,
            "length": call.length, "places": self.keys.shape[2], "slots": self.slots, "width": self.table.shape[2],
            "q_batch": q.stride(0), "q_head": q.stride(1), "q_token": q.stride(2), "out_batch": output.stride(0),
            "out_head": output.stride(2), "out_token": output.stride(1), "units": state.units,
            "scaling": call.scaling, "decay": cell.decay, "sinks": sinks, "recent": recent, "visible": visible,
            "visible_sinks": visible_sinks, "visible_recent": visible_recent, "zero": 0,
        }  # fmt: skip
        self.keys, self.values = given["keys"], given["values"]
        return given, constants(self.plan, cell.normalize == "age", self.half)

    def finish(self) -> Trace:
        """Bring the state up to what the kernel left in the columns; what was decided, on the columns of the input."""
        state = self.state
        places, slots = self.src[:, : self.slots].long().clamp(min=0), self.slots
        if state.fate.counts:  # Folding wrote to the pool, of vectors that are kept as they are.
            self.key_parts, self.value_parts = (self.keys,), (self.values,)
        for vectors, parts in ((state.held_keys, self.key_parts), (state.held_values, self.value_parts)):
            _take(vectors, parts, places)
        state.positions.copy_(self.positions[:, :slots])
        if state.counts is not None:
            state.counts.copy_(self.counts[:, :slots])
        if state.items is not None and self.items is not None:
            owners = (self.own if self.plan.fold else self.src)[:, :slots].long().clamp(min=0)
            wide = owners.view(*owners.shape, *(1 for _ in self.items.shape[2:])).expand(-1, -1, *self.items.shape[2:])
            state.items.copy_(self.items.gather(1, wide))
        if "scores" in state.policy.tensors():
            state.policy.tensors()["scores"].copy_(self.scores[:, :slots])
        state.seen += self.count
        at = state.by_row(self.tokens).long()
        decided = (self.decided.victims, self.decided.survivors, self.decided.hidden)
        return Trace(*(torch.empty_like(each).scatter_(1, at, each) for each in decided))


def _with_room(parts: Parts, places: int) -> Parts:
    """Parts with so many places more."""
    return tuple(torch.cat((part, part.new_zeros(*part.shape[:2], places, *part.shape[3:])), 2) for part in parts)


def _take(vectors: Vectors, parts: Parts, places: torch.Tensor) -> None:
    """Put the pool's vectors at places int64 `[rows, slots]` in the slots."""
    for held, pool in zip(vectors.parts, parts, strict=True):
        at = places[:, None, :].expand(-1, pool.shape[1], -1)
        held.copy_(pool.gather(2, at.view(*at.shape, *(1 for _ in pool.shape[3:])).expand(*at.shape, *pool.shape[3:])))
