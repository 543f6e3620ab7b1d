"""What the kernel should cost on a GPU, computed from its machine code: nothing here is measured, and no GPU is needed.

    python benchmarks/gpu_roofline.py [--output benchmarks/gpu_roofline.md]

GPT-2 (124M), texts of 1024 tokens, bfloat16. The kernel is compiled for each architecture by the compiler inside
Triton's wheel. Its loops' instructions are then issued one after the other, in order, each when what it reads is ready
(`cycles`): that is how long a step takes a program that has an SM to itself. Several programs share an SM as far as
registers, warps and shared memory let them, and then the step takes as long as its instructions occupy the schedulers,
where that is longer. Latencies and rates are the ones of `Device` and `COST`, from published microbenchmarks, rounded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from sketch_eval.execution.triton.build import Built, compiled

LENGTH, LAYERS, HEADS, HEAD_DIM, WIDTH, VOCABULARY = 1024, 12, 12, 64, 768, 50257
BLOCK_WEIGHTS = LAYERS * 12 * WIDTH * WIDTH
BATCHES = (8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Device:
    """What is assumed of a GPU.

    Attributes:
        clock: GHz that it holds; matmul: TFLOP/s of dense bfloat16 at its peak; memory, cache: TB/s of its memory and
            of its second cache.
        shared: bytes of shared memory of an SM; second: bytes of the second cache.
        far: cycles until a number from the second cache is there.
    """

    name: str
    architecture: int
    units: int
    clock: float
    matmul: float
    memory: float
    cache: float
    shared: int
    second: int
    far: int


A100 = Device("A100 (SXM, 80 GB)", 80, 108, 1.41, 312, 2.04, 4.5, 164 * 1024, 40 * 2**20, 220)
H100 = Device("H100 (SXM)", 90, 132, 1.755, 989, 3.35, 5.5, 228 * 1024, 50 * 2**20, 260)
REGISTERS, WARPS, PROGRAMS, SCHEDULERS = 65536, 64, 32, 4
"""Of an SM, of both."""

SHARE = 0.5
"""Of the peak, what the full pass's matrix products and its attention reach, and of the memory's, what streams reach
0.8 of."""
STREAM = 0.8
LAUNCH = 4e-6
"""Seconds of a launch and of the small operations that go before a kernel's; PREPARE of them a layer."""
PREPARE = 60

COST: tuple[tuple[str, int, int], ...] = (
    # Instructions, the cycles that one occupies a scheduler, and the cycles until its result may be read.
    ("HMMA", 8, 34),
    ("MUFU", 8, 24),
    ("SHFL", 4, 24),
    ("LDSM|LDS|STS", 4, 28),
    ("LDG|LD|STG|ST|RED|ATOM|ATOMG|LDGSTS", 4, 0),  # The latency is the device's.
    ("F2F|I2F|F2I|F2FP|I2FP", 4, 12),
    ("BAR|MEMBAR|ERRBAR|CCTL|DEPBAR|LDGDEPBAR", 1, 30),
    ("FADD|FMUL|FFMA|IMAD|MOV|CS2R|HFMA2|HADD2", 1, 4),
    ("BRA|BSSY|BSYNC|WARPSYNC|NOP", 1, 8),
    ("", 2, 5),  # Integers, comparisons and selections: half the lanes.
)


def cost(code: str, device: Device) -> tuple[int, int]:
    """Cycles of a scheduler, and until the result is there."""
    name = code.split()[0].split(".")[0]
    busy, latency = next((busy, late) for kinds, busy, late in COST if name in kinds.split("|") or not kinds)
    return busy, latency or device.far


def operands(code: str) -> tuple[list[str], list[str]]:
    """The registers and predicates that an instruction writes, and those that it reads."""
    name, _, rest = code.partition(" ")
    parts = [part.strip() for part in rest.split(",")]
    found = [re.findall(r"\b(?:UR|UP|R|P)\d+\b", part) for part in parts]
    count = 2 if name.startswith(("ISETP", "FSETP", "UISETP", "PLOP3", "SHFL", "LOP3.LUT.P", "R2P")) else 1
    if name.split(".")[0] in (
        "STG",
        "STS",
        "ST",
        "RED",
        "LDGSTS",
        "LDGDEPBAR",
        "DEPBAR",
        "BAR",
        "BRA",
        "BSSY",
        "BSYNC",
        "NOP",
        "EXIT",
        "WARPSYNC",
    ):
        count = 0
    writes, reads = list(chain(*found[:count])), list(chain(*found[count:]))
    wide = 4 if ".128" in name else 2 if ".64" in name or ".WIDE" in name or name.startswith("CS2R") else 1
    if name.startswith("HMMA"):
        wide = 4
        reads = [f"R{int(each[1:]) + k}" if each[0] == "R" else each for each in reads for k in range(4)]
    more = [f"R{int(each[1:]) + k}" for each in writes if each.startswith("R") for k in range(1, wide)]
    return writes + more, reads


def cycles(body: Sequence[str], device: Device, rounds: int = 6) -> tuple[float, int]:
    """Cycles of a round of a loop for one warp alone, once it is under way; and those that it occupies a scheduler."""
    ready: dict[str, float] = {}
    clock, ends, copied = 0.0, [0.0], [0.0]
    decoded = [(code, operands(code), cost(code, device)) for code in body]
    for _ in range(rounds):
        copies = 0.0
        for code, (writes, reads), (busy, latency) in decoded:
            clock = max([clock, *(ready.get(each, 0.0) for each in reads)])
            if code.startswith("LDGSTS"):
                copies = clock + device.far
            elif code.startswith("DEPBAR"):  # Copies are waited for a turn after they were asked for.
                clock = max(clock, copied[-1])
            ready |= dict.fromkeys(writes, clock + latency)
            clock += 1 if busy < 4 else 2
        ends.append(clock)
        copied.append(copies)
    return ends[-1] - ends[-2], sum(busy for _, _, (busy, _) in decoded)


@dataclass(frozen=True)
class Scan:
    """What a layer's scan should take."""

    resident: int
    waves: int
    step: float
    bound: str
    seconds: float


def phases(built: Built) -> list[tuple[tuple[str, ...], float]]:
    """The loops beside the one over tokens that a chunk goes through, with the rounds of each, and what is in none."""
    plan = built.plan
    step = next((start, end) for start, end, body in built.loops if body == built.step)
    around = [loop for loop in built.loops if loop[0] <= step[0] and step[1] <= loop[1] and loop[:2] != step]
    start, end, whole = min(around, key=lambda loop: loop[1] - loop[0])
    within = [loop for loop in built.loops if start <= loop[0] and loop[1] <= end and loop[:2] != (start, end)]
    inner = [
        loop
        for loop in within
        if not any(loop[0] <= other[0] and other[1] <= loop[1] and other != loop for other in within)
    ]
    multiplied = [loop for loop in inner if any(code.startswith("HMMA") for code in loop[2])]
    before, after = (
        [loop for loop in multiplied if loop[0] < step[0]],
        [loop for loop in multiplied if loop[0] > step[1]],
    )
    fresh, every = math.ceil((plan.cap + plan.chunk) / plan.block), math.ceil(plan.used / plan.block)
    tiles = plan.chunk / 16 * plan.block / 8 * plan.head_dim / 16 / plan.warps  # Matrix instructions of a turn.
    found = []

    def add(loop: tuple[int, int, tuple[str, ...]], turns: int, a_turn: float) -> None:
        at_once = max(sum(code.startswith("HMMA") for code in loop[2]) / max(a_turn, 1), 1)
        found.append((loop[2], turns / at_once))

    # A loop of few turns may have been unrolled: then it is part of what is in no loop.
    for number, loop in enumerate(before):
        add(loop, (plan.heads if number else plan.queries) * fresh, tiles)
    for loop in after[:1]:
        add(loop, plan.queries * every, 2 * tiles)  # Weights come in two halves.
    if plan.fold:  # The products of the keys that are left move to the front.
        moving = (loop for loop in inner if loop not in multiplied and loop[0] > step[1])
        found += [(body, plan.cap / plan.chunk) for _, _, body in list(moving)[:1]]
    rest = (
        code
        for index, code in enumerate(whole)
        if not any(first <= start + 16 * index <= last for first, last, _ in inner)  # An instruction has 16 bytes.
    )
    return [*found, (tuple(rest), 1.0)]


def scan(built: Built, device: Device, rows: int) -> Scan:
    """A layer of so many rows."""
    plan, threads = built.plan, 32 * built.plan.warps
    registers = math.ceil(built.registers / 8) * 8 * threads
    room = min(
        REGISTERS // registers, WARPS // plan.warps, device.shared // (built.shared + 1024), PROGRAMS
    )  # fmt: skip
    resident = max(min(room, math.ceil(rows / device.units)), 1)
    waves = math.ceil(rows / (device.units * room))

    def together(body: Sequence[str], times: float) -> tuple[float, str]:
        """Cycles of so many rounds of a loop in all programs that share an SM, and what bounds them."""
        alone, busy = cycles(body, device)
        shared = busy * plan.warps * resident / SCHEDULERS
        return times * max(alone, shared), "latency" if alone > shared else "issue"

    step, bound = together(built.step, 1)
    products = sum(together(body, times)[0] for body, times in phases(built)) / plan.chunk
    chunks = LENGTH / plan.chunk

    # Bytes: vectors gathered for each chunk, and logits and weights, each written once and read once.
    vectors = chunks * plan.heads * 2 * plan.used * HEAD_DIM * 2
    numbers = LENGTH * plan.queries * plan.used * 4 * 4
    scratch = rows * plan.queries * plan.chunk * plan.used * 4
    speed = device.cache if scratch < device.second else device.memory
    moving = rows * (vectors / device.cache + numbers / speed) / STREAM / 1e12
    pool = rows * plan.heads * (LENGTH * (2 if plan.fold else 1) + plan.cap) * HEAD_DIM * 2 * 2 * 2
    seconds = max(waves * LENGTH * (step + products) / device.clock / 1e9, moving)
    seconds += pool / device.memory / STREAM / 1e12 + PREPARE * LAUNCH
    return Scan(resident, waves, step + products, bound if seconds > moving else "bytes", seconds)


def full_pass(device: Device, batch: int) -> tuple[float, float]:
    """Seconds of the full-cache pass, logits of all tokens included, and those of its attention."""
    tokens = batch * LENGTH
    work = device.matmul * SHARE * 1e12
    attention = LAYERS * 4 * tokens * LENGTH / 2 * WIDTH / work
    logits = max(2 * tokens * WIDTH * VOCABULARY / work, 2 * tokens * VOCABULARY / device.memory / STREAM / 1e12)
    return 2 * tokens * BLOCK_WEIGHTS / work + logits + attention, attention


def ratio(device: Device, kernel: Built, scope: str, batch: int) -> float:
    """Of the bounded pass to the full one."""
    full, attention = full_pass(device, batch)
    rows = batch * (HEADS if scope == "head" else 1)
    return (full - attention + LAYERS * scan(kernel, device, rows).seconds) / full


KINDS: dict[str, dict[str, Any]] = {
    "exact": {"importance": "exact"},
    "count_min": {"importance": "count_min"},
    "count_min, folding": {"importance": "count_min", "strategy": "aggregate"},
}


def kernels(device: Device) -> dict[tuple[str, int, str], Built]:
    """Compiled for every kind, cap and scope."""
    wanted = [(scope, cap, kind) for scope in ("head", "layer") for cap in (64, 256) for kind in KINDS]
    requests = [
        {
            "cell": {"max_cache_size": cap, "scope": scope, **KINDS[kind]},
            "heads": 1 if scope == "head" else HEADS,
            "queries": 1 if scope == "head" else HEADS,
            "head_dim": HEAD_DIM,
            "architecture": device.architecture,
        }
        for scope, cap, kind in wanted
    ]
    return dict(zip(wanted, compiled(requests), strict=True))


def table(device: Device, built: dict[tuple[str, int, str], Built]) -> list[str]:
    lines = [
        f"## {device.name}, sm_{device.architecture}",
        "",
        "| scope | cap | kernel | warps | registers | spilled bytes | shared bytes | instructions a step | alone | shared | "
        "products | programs an SM at batch 64 | waves | bound by |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for (scope, cap, kind), kernel in built.items():
        rows = 64 * (HEADS if scope == "head" else 1)
        found, alone = scan(kernel, device, rows), cycles(kernel.step, device)
        shared = max(alone[0], alone[1] * kernel.plan.warps * found.resident / SCHEDULERS)
        lines.append(
            f"| {scope} | {cap} | {kind} | {kernel.plan.warps} | {kernel.registers} | {kernel.stack} | {kernel.shared:,} | "
            f"{len(kernel.step)} | {alone[0]:,.0f} | {shared:,.0f} | {found.step - shared:,.0f} | {found.resident} | {found.waves} | "
            f"{found.bound} |"
        )
    lines += [
        "",
        "`alone`, `shared` and `products` are cycles a token. `bound by`: what a step waits for.",
        "",
        "Seconds of the full-cache pass (computed too), and of the bounded pass as a multiple of it:",
        "",
        "| scope | cap | kernel | " + " | ".join(f"batch {batch}" for batch in BATCHES) + " |",
        "| --- | ---: | --- |" + " ---: |" * len(BATCHES),
        "| | | full cache, ms | " + " | ".join(f"{1e3 * full_pass(device, b)[0]:.1f}" for b in BATCHES) + " |",
    ]
    for (scope, cap, kind), kernel in built.items():
        ratios = (ratio(device, kernel, scope, batch) for batch in BATCHES)
        lines.append(f"| {scope} | {cap} | {kind} | " + " | ".join(f"{each:.2f}" for each in ratios) + " |")
    return [*lines, ""]


def main(
    output: Annotated[Path, typer.Option(help="where the tables go")] = Path("benchmarks/gpu_roofline.md"),
) -> None:
    """Compile, compute and write."""
    import triton

    lines, verdict = [], ""
    devices = (A100, H100)
    with ThreadPoolExecutor(len(devices)) as pool:
        everything = list(pool.map(kernels, devices))
    for device, built in zip(devices, everything, strict=True):
        lines += table(device, built)
        if device is H100:
            ratios = {key: ratio(device, kernel, key[0], 64) for key, kernel in built.items()}
            parts: dict[bool, list[str]] = {True: [], False: []}
            for (scope, cap, kind), value in ratios.items():
                parts[value <= 1.5].append(f"scope={scope} at cap {cap} with {kind} ({value:.2f})")
            met, missed = (", ".join(parts[each]) or "nothing" for each in (True, False))
            verdict = f"By this model it is met by {met}; it is **not** met by {missed}."
    text = HEAD.format(version=triton.__version__, verdict=verdict) + "\n".join(lines)
    output.write_text(text, encoding="utf-8")
    typer.echo(text)


# ruff: noqa: E501
HEAD = """# What the kernel should cost on a GPU

**Computed, not measured**; [gpu.md](gpu.md) has what an H100 was measured to take. `benchmarks/gpu_roofline.py` computes these tables from
the machine code that the compiler inside Triton {version}'s wheel makes of `sketch_eval/execution/triton/`, and from rates that are assumed. GPT-2 (124M), texts of
1024 tokens, bfloat16, every token's logits. Anything below may be off by a factor of two; the full-cache pass beside it is computed as well.

What is assumed:

- A step's instructions are issued in order by one warp, each when what it reads is ready: a sum or a minimum of two registers after 4 or 5
  cycles, a shuffle or an exponential after 24, shared memory after 28, the second cache after 220 (A100) or 260 (H100), a barrier 30. That is
  `alone`. Branches are not taken, loops inside a step are gone through once.
- Programs share an SM as far as 65,536 registers, 64 warps and shared memory let them. A step then takes the longer of `alone` and
  what its instructions occupy the four schedulers: 1 cycle a float32 instruction, 2 one of integers or selections, 4 a shuffle or an access to
  memory, 8 an exponential or a matrix instruction.
- `products` are the matrix products of a chunk, of whose loops the same is computed, for each of its tokens; copies into
  shared memory that Triton asks for a turn ahead are waited for then.
- Clocks that hold: 1.41 GHz (A100), 1.755 GHz (H100). Memory 2.04 and 3.35 TB/s and second cache 4.5 and 5.5 TB/s, of which streams
  reach 80%; dense bfloat16 312 and 989 TFLOP/s, of which the model's products and the full pass's attention reach 50%.
- A layer's scan has 60 launches of small operations before and after it, of 4 microseconds each, and copies keys and values once. The full pass
  has no launches in its time.
- The bounded pass is the full one without its attention, and twelve scans. lm-eval's own work is in neither.

The goal was 1.5 times the full-cache pass on an H100 at batch 64. {verdict}

"""


if __name__ == "__main__":
    typer.run(main)
