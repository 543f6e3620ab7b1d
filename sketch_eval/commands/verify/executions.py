"""Every execution that this machine can run against the oracle, on random cells and tokens (docs/design.md §5)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast, get_args

import torch

from sketch_eval.call import Call, Trace
from sketch_eval.commands.verify.check import Check
from sketch_eval.config import CacheConfig
from sketch_eval.errors import UsageError
from sketch_eval.execution import Execution, advance
from sketch_eval.foresight import Fitted
from sketch_eval.formats import FORMATS
from sketch_eval.policies import FATES, POLICIES
from sketch_eval.policies.items import ITEMS
from sketch_eval.policies.learned import FEATURES
from sketch_eval.state import LayerState

NEAR_TIE = 1e-5
"""A choice that the oracle made by less than this, relatively, float32 may make otherwise; no more is compared."""

CLOSE = 1e-4
"""Difference of outputs that rounding makes at most; the numbers themselves are about 1."""

ROUNDED = 1e-2
"""The same where folded pairs are rounded to few bits anew: a mean near the middle between two codes may become the
other one where arithmetic differs in its last digit, as a GPU's does from a CPU's."""

SEQUENCES, QUERY_HEADS, KV_HEADS, HEAD_DIM, TOKENS = 2, 4, 2, 16, 48
PREFIX = 32
"""Tokens that come at once; those after it come one at a time, as in decoding."""

PAIRS = tuple((name, fate) for name in ("count_min", "exact", "recency") for fate in ("topk", "aggregate"))
USUAL = 24
"""Random cells that are of these pairs alone: each pair of a ranking and a fate is compiled once, for seconds."""

SPEEDS = torch.tensor([10000.0 ** (-2 * pair / HEAD_DIM) for pair in range(HEAD_DIM // 2)])
"""How rotary positions turn the keys, for the fates that turn them."""


@dataclass
class Followed:
    """How an execution did.

    Attributes:
        cells: cells that it serves.
        tokens: tokens that were compared.
        furthest: the largest difference of an output to the oracle's.
        otherwise: the first cell in which it decided otherwise, or was further off than rounding.
    """

    cells: int = 0
    tokens: int = 0
    furthest: float = 0.0
    otherwise: str = ""


def check(device: str, cells: int) -> Iterator[Check]:
    """A row for every execution on every kind of device that it serves."""
    names = [name for name in get_args(Execution) if name not in ("auto", "oracle")]
    places = list(dict.fromkeys((torch.device(device).type, "cpu")))
    for name in names:
        found = {place: _follow(cast(Execution, name), place, cells) for place in places}
        reasons = [one for one in found.values() if isinstance(one, str)]
        if reasons:
            yield Check("execution", name, "", reasons[0], "skipped")
            continue
        served = {place: one for place, one in found.items() if isinstance(one, Followed) and one.cells}
        if not served:
            yield Check("execution", name, "", f"serves none of the cells on {' or '.join(places)}", "skipped")
        for place, one in served.items():
            text = f"{one.cells} cells, {one.tokens:,} tokens, outputs within {one.furthest:.1g}"
            expected = f"the oracle's decisions, outputs within {CLOSE:g}"
            if one.otherwise:
                yield Check("execution", f"{name} on {place}", expected, one.otherwise, "FAILED")
            else:
                yield Check("execution", f"{name} on {place}", expected, text, "ok")


def _follow(execution: Execution, place: str, cells: int) -> Followed | str:
    """How an execution follows the oracle on a device; or why it cannot be had."""
    followed = Followed()
    for seed in range(cells):
        cell, call = random_cell(seed), random_call(seed)
        truth, standard = advance("oracle", _state(cell, call), call)
        there = call.to(place)
        state, outputs, traces, served = _state(cell, there), [], [], False
        try:
            head, *rest = there.split(PREFIX)
            for number, part in enumerate((head, *(one for tail in rest for one in tail.split(1)))):
                try:
                    output, trace = advance(execution, state, part)
                    served = True
                except UsageError:  # Texts or single tokens that it does not serve go by what serves all.
                    if number and not served:
                        break
                    output, trace = advance("stepwise", state, part)
                outputs.append(output.cpu())
                traces.append(trace)
        except ImportError as error:
            return f"is not installed here: {error}"
        except Exception as error:  # Whatever it is, the report has to say so, and go on.
            followed.otherwise = followed.otherwise or f"{type(error).__name__} in the cell {_spelt(cell)}: {error}"
            followed.cells += 1
            break
        if not served:
            continue
        followed.cells += 1
        tokens, off, alike = _compare(truth, standard, torch.cat(outputs, 1), Trace.join(traces), call.valid)
        followed.tokens += tokens
        followed.furthest = max(followed.furthest, off)
        rounds_folds = place != "cpu" and state.fate.counts and not state.exact
        if not (alike and off <= (ROUNDED if rounds_folds else CLOSE)) and not followed.otherwise:
            what = f"outputs are {off:.2g} off" if alike else "it decided otherwise"
            followed.otherwise = f"{what} in the cell {_spelt(cell)}"
    return followed


def _spelt(cell: CacheConfig) -> str:
    changed = {key: value for key, value in cell.model_dump().items() if value != getattr(CacheConfig(), key)}
    return ", ".join(f"{key}={value}" for key, value in changed.items())


def _compare(
    truth: torch.Tensor, standard: Trace, output: torch.Tensor, trace: Trace, valid: torch.Tensor
) -> tuple[int, float, bool]:
    """(tokens compared, largest difference of an output, whether all decisions are the same) up to a near tie."""
    assert standard.margins is not None
    units = len(standard.margins) // SEQUENCES
    margins = standard.margins.unflatten(0, (SEQUENCES, units)).amin(1)
    compared = (margins >= NEAR_TIE).cumprod(1).bool() & valid
    rows = compared.repeat_interleave(units, 0)
    pairs = ((getattr(trace, kind).cpu(), getattr(standard, kind)) for kind in ("victims", "survivors", "hidden"))
    alike = all(torch.equal(mine[rows], its[rows]) for mine, its in pairs)
    off = (output - truth)[compared].abs()
    return int(compared.sum()), float(off.max()) if off.numel() else 0.0, alike and not bool(off.isnan().any())


def _state(cell: CacheConfig, call: Call) -> LayerState:
    speeds = SPEEDS if FATES[cell.strategy].turns else None
    fitted = None
    if cell.fitted:
        generator = torch.Generator().manual_seed(0)
        fitted = Fitted(torch.randn(KV_HEADS, len(FEATURES), generator=generator).to(call.k.device))
    return LayerState(cell, 0, call.k, QUERY_HEADS // KV_HEADS, speeds=speeds, foresight=fitted)


def random_cell(seed: int) -> CacheConfig:
    """A cell of a small cap: the first `USUAL` have the rankings and fates that most have, those after them any."""
    draw = random.Random(seed)
    if seed < USUAL:
        importance, strategy = PAIRS[seed % len(PAIRS)]
    else:
        rankings = [name for name, kind in POLICIES.items() if not kind.foresees]
        importance, strategy = rankings[seed % len(rankings)], draw.choice(list(FATES))
    kind = POLICIES[importance]
    scope = draw.choice(kind.scopes)
    hides = FATES[strategy].hides and scope in ("layer", "head")
    return CacheConfig.parse(
        max_cache_size=12,
        width=draw.choice([8, 64]),
        depth=draw.choice([2, 4]),
        strategy=strategy,
        topk=draw.choice([None, 8]) if hides else None,
        importance=importance,
        scope=scope,
        item=draw.choice(list(ITEMS)) if "item" in kind.reads else "position",
        sinks=draw.choice([0, 1, 4]),
        recent=draw.choice([1, 4, 0.5]),
        normalize=draw.choice(["none", "age"]),
        decay=draw.choice([1.0, 0.95]),
        conservative="conservative" in kind.reads and draw.random() < 0.3,
        seed=seed,
        store=draw.choice(["float", "float", *FORMATS]),
        store_group=8,
    )


def random_call(seed: int) -> Call:
    """Random tokens, of which the second sequence has fewer: its first columns are padding."""
    draw = torch.Generator().manual_seed(seed)

    def vectors(heads: int, size: float) -> torch.Tensor:
        return size * torch.randn(SEQUENCES, heads, TOKENS, HEAD_DIM, generator=draw)

    valid = torch.ones(SEQUENCES, TOKENS, dtype=torch.bool)
    valid[1, : seed % 7] = False
    tokens = torch.randint(1, 9, (SEQUENCES, TOKENS), generator=draw)
    queries, keys, values = vectors(QUERY_HEADS, 3.0), vectors(KV_HEADS, 1.0), vectors(KV_HEADS, 1.0)
    return Call(queries, keys, values, tokens, valid, HEAD_DIM**-0.5)
