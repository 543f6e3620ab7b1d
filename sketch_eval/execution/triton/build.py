"""Machine code of the kernel where no GPU is: what the compiler inside Triton's wheel makes of it, and what that takes.

    python -m sketch_eval.execution.triton.build < requests.json > built.json

It must not run in a process whose Triton interprets (`TRITON_INTERPRET=1`).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sketch_eval.config import CacheConfig
from sketch_eval.execution.triton.plan import Plan, plan_for
from sketch_eval.execution.triton.run import constants

TYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


@dataclass(frozen=True)
class Built:
    """One compiled kernel.

    Attributes:
        plan: its sizes.
        architecture: what it is for, 90 for sm_90.
        registers: of a thread.
        stack: bytes of a thread that are in memory for want of registers, or of anything else; 0 where none spills.
        shared: bytes of shared memory of a program.
        loops: of every loop its first and last address, and its instructions.
        ptx: the assembler's source.
    """

    plan: Plan
    architecture: int
    registers: int
    stack: int
    shared: int
    loops: tuple[tuple[int, int, tuple[str, ...]], ...]
    ptx: str

    @property
    def step(self) -> tuple[str, ...]:
        """The instructions of the loop over tokens: the innermost one that takes an exponential."""
        bodies = [body for _, _, body in self.loops if any(code.startswith("MUFU.EX2") for code in body)]
        return min(bodies, key=len)


def build(
    cell: CacheConfig, heads: int, queries: int, head_dim: int, dtype: str = "bfloat16", architecture: int = 90
) -> Built:
    """Compile the kernel for a cell, the heads of a row, a dtype of vectors and an architecture.

    Args:
        cell: the cell.
        heads: key/value heads of a row: with scope=head 1, else the model's; queries: its query heads.
        head_dim: numbers of a head.
        dtype: of queries, keys and values: a key of `TYPES`.
        architecture: 80, 90 or 100.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sketch_eval.execution.triton.kernel import scan

    plan = plan_for(cell, heads, queries, head_dim, dtype == "float32")
    fixed = constants(plan, cell.normalize == "age", dtype != "float32")
    vectors, floats = f"*{TYPES[dtype]}", ("new_scores", "table", "scores", "counts", "logits", "gram")
    whole = (
        *("length", "places", "slots", "width", "q_batch", "q_head", "q_token", "out_batch", "out_head", "out_token"),
        *("units", "sinks", "recent", "visible", "visible_sinks", "visible_recent", "zero"),
    )
    signature = dict.fromkeys(scan.arg_names, "*i32")
    signature |= dict.fromkeys(("q", "keys", "values", "out", "weights"), vectors) | dict.fromkeys(floats, "*fp32")
    signature |= dict.fromkeys(whole, "i32") | dict.fromkeys(("scaling", "decay"), "fp32")
    signature |= dict.fromkeys(fixed, "constexpr")
    at = {name: index for index, name in enumerate(scan.arg_names)}
    # As in a launch: torch's memory begins at multiples of 16 bytes, and so do a model's heads.
    even = [name for name, kind in signature.items() if kind.startswith("*")] + list(whole[4:10])
    source = ASTSource(
        scan,
        signature,
        {(at[name],): value for name, value in fixed.items()},
        {(at[name],): [["tt.divisibility", 16]] for name in even},
    )
    options = {"num_warps": plan.warps, "num_stages": 1}
    kernel = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage, sass = (
            subprocess.run([tools / "cuobjdump", option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    return Built(
        plan, architecture, int(found[1]), int(found[2]), kernel.metadata.shared, _loops(sass), kernel.asm["ptx"]
    )


def _loops(sass: str) -> tuple[tuple[int, int, tuple[str, ...]], ...]:
    """Every backward branch, with what it goes over."""
    lines = [(int(at, 16), code) for at, code in re.findall(r"/\*([0-9a-f]{4,6})\*/\s+([^;]*);", sass)]
    loops = []
    for end, code in lines:
        jump = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", code)
        if jump and int(jump[1], 16) < end:
            start = int(jump[1], 16)
            body = (re.sub(r"^@!?U?P\w+\s+", "", line.strip()) for at, line in lines if start <= at <= end)
            loops.append((start, end, tuple(body)))
    return tuple(loops)


def main() -> None:
    """Compile what standard input asks for: a JSON list of `build`'s arguments, the cell as a dictionary."""
    answers = []
    for request in json.load(sys.stdin):
        built = build(CacheConfig.parse(**request.pop("cell")), **request)
        answers.append(asdict(built) | {"step": built.step})
    json.dump(answers, sys.stdout)


def compiled(requests: list[dict[str, Any]]) -> list[Built]:
    """`build` in a process of its own, whatever this one's Triton does: of a list of its arguments by name, the cell as
    a dictionary of its own."""
    import os

    answer = subprocess.run(
        [sys.executable, "-m", "sketch_eval.execution.triton.build"],
        input=json.dumps(requests),
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode:
        raise RuntimeError(answer.stderr)
    built = []
    for each in json.loads(answer.stdout):
        loops = tuple((start, end, tuple(body)) for start, end, body in each.pop("loops"))
        each.pop("step")
        built.append(Built(Plan(**each.pop("plan")), loops=loops, **each))
    return built


if __name__ == "__main__":
    main()
