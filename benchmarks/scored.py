"""What a request costs lm-eval when logits are made where they are scored, and when they are made of every token.

    python benchmarks/scored.py [--rounds 3] [--layers 12] [--device cpu] [--output benchmarks/scored.md]

Random requests of three shapes, through a random GPT-2 of 124M parameters in float32 on the CPU, 8 texts a batch:
LAMBADA's (some 85 tokens, of which the last one to three are scored), multiple choice (some 100 tokens, of which up to
30 are scored, and a question whose four answers are one token each), and rolling text (windows of 1024 tokens, all
scored, two a batch). The other way is lm-eval's own: the head and the log-softmax of every row. Both answer the same
requests in turns, in one process; of the rounds the fastest counts, in seconds of the processor, which other work on
the machine hardly changes. The largest differences between their answers are shown, and for rolling text the peak of
resident memory, beyond what the model itself took, of a process of its own.

With `--device cuda` it is in bfloat16, 64 texts a batch, in seconds of the clock.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from sketch_eval import bundled
from sketch_eval.attention import in_parts
from sketch_eval.lm import SketchGPT2

BATCH, CAP = 8, 64
WINDOWS = 2
"""Texts of 1024 tokens."""

Request = tuple[tuple[str, str], list[int], list[int]]


class WholeGPT2(SketchGPT2):
    """As lm-eval itself does it: logits of every token, all at once."""

    def _loglikelihood_tokens(self, *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        return HFLM._loglikelihood_tokens(self, *args, **kwargs)

    def _model_call(self, inps: torch.Tensor, attn_mask: Any = None, labels: Any = None) -> torch.Tensor:
        cache = self._new_cache(inps)
        if cache is None:
            return cast(torch.Tensor, HFLM._model_call(self, inps, attn_mask, labels))
        with torch.no_grad():
            return torch.cat([part.logits for part in in_parts(self.model, inps, cache)], dim=1)


def requests(shape: str, times: int = 1) -> list[Request]:
    draw = torch.Generator().manual_seed(0)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=draw))

    def ids(count: int) -> list[int]:
        return torch.randint(1, 50257, (count,), generator=draw).tolist()

    if shape == "LAMBADA":
        return [(("", str(i)), ids(number(50, 120)), ids(number(1, 3))) for i in range(16 * times)]
    if shape == "rolling text":
        return [(("", str(i)), ids(1), ids(1024)) for i in range(WINDOWS * times)]
    long = [(("", str(i)), ids(number(60, 100)), ids(number(5, 30))) for i in range(12 * times)]
    question = ids(100)
    return long + [(("", f"answer {i}"), question, [token]) for i, token in enumerate(ids(4))]


def load(way: type[SketchGPT2], model: GPT2LMHeadModel, cap: int | None, batch: int = BATCH) -> SketchGPT2:
    tokenizer = AutoTokenizer.from_pretrained(bundled.path())
    where = str(model.device)
    return way(pretrained=model, tokenizer=tokenizer, device=where, batch_size=batch, max_cache_size=cap)


def make(layers: int, device: str = "cpu") -> GPT2LMHeadModel:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=layers)).eval()
    return model.to(device, torch.bfloat16 if device == "cuda" else torch.float32)


def now(on_gpu: bool) -> float:
    """Seconds: of the clock where a GPU computes, and of the processor otherwise."""
    if on_gpu:
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def peak(way: str) -> float:
    """MiB at the peak of a process that scores rolling text with two of the layers, beyond what loading took."""
    code = f"from {Path(__file__).stem} import take; print(take({way!r}))"
    environment = os.environ | {"PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return float(told.stdout.split()[-1])


def take(way: str) -> float:
    lm = load({"scored": SketchGPT2, "whole": WholeGPT2}[way], make(2), None)
    before = resident()
    lm._loglikelihood_tokens(requests("rolling text"), disable_tqdm=True)
    return (resident() - before) / 1024


def resident() -> int:
    """KiB at the peak so far; getrusage's would be the parent's where that had more."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def main(
    rounds: Annotated[int, typer.Option(help="times that each way is timed")] = 3,
    layers: Annotated[int, typer.Option(help="layers of the model")] = 12,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    output: Annotated[Path | None, typer.Option(help="also write the table to this file")] = None,
) -> None:
    """Print the table."""
    model, on_gpu = make(layers, device), device == "cuda"
    unit = "s" if on_gpu else "CPU s"
    rows = ["| requests | cache " + f"| whole, {unit} | scored, {unit} "]
    rows[0] += "| whole ÷ scored | largest difference, nats | greedy alike |"
    rows += ["| --- | --- | ---: | ---: | ---: | ---: | --- |"]
    for shape in ("LAMBADA", "multiple choice", "rolling text"):
        asked = requests(shape, 32 if on_gpu else 1)
        for cap in (None, CAP):
            ways = [load(way, model, cap, 64 if on_gpu else BATCH) for way in (WholeGPT2, SketchGPT2)]
            times: list[list[float]] = [[], []]
            for _ in range(rounds + on_gpu if on_gpu or shape != "rolling text" else 1):  # A GPU's first one warms up.
                answers = []
                for lm, taken in zip(ways, times, strict=True):
                    start = now(on_gpu)
                    answers.append(lm._loglikelihood_tokens(asked, disable_tqdm=True))
                    taken.append(now(on_gpu) - start)
            whole, scored = (min(taken) for taken in times)
            off = max(abs(one - other) for (one, _), (other, _) in zip(*answers, strict=True))
            alike = all(one == other for (_, one), (_, other) in zip(*answers, strict=True))
            cache = "full" if cap is None else f"cap {cap}"
            rows += [f"| {shape} | {cache} | {whole:.2f} | {scored:.2f} | {whole / scored:.2f} | {off:.1g} | {alike} |"]
            print(rows[-1], flush=True)
    threads = f"{torch.get_num_threads()} threads on {os.cpu_count()} cores"
    where = torch.cuda.get_device_name() if on_gpu else f"{platform.machine()}, {threads}"
    text = [f"{layers} layers, {where}, torch {torch.__version__}.", "", *rows]
    if not on_gpu:
        most = {way: peak(way) for way in ("whole", "scored")}
        text += [
            "",
            f"Peak memory of {WINDOWS} × 1024 tokens of rolling text, the full cache, beyond the loaded model "
            f"(2 layers): {most['whole']:,.0f} MiB whole, {most['scored']:,.0f} MiB scored "
            f"({most['scored'] / most['whole']:.2f} ×).",
        ]
    print("\n".join(text))
    if output is not None:
        output.write_text("\n".join(["# Requests", "", *text]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
