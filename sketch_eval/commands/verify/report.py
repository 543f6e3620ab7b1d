"""All checks in their order, and the file that is attached to a report."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from sketch_eval import provenance
from sketch_eval.commands.verify import executions, published, scores, speed
from sketch_eval.commands.verify.ahead import compile_kernels
from sketch_eval.commands.verify.check import Check


@dataclass
class Report:
    """What a machine did.

    Attributes:
        device: where it computed.
        seconds: how long all took.
        checks: the rows.
    """

    device: str
    seconds: float = 0.0
    checks: list[Check] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not any(check.verdict == "FAILED" for check in self.checks)

    def write(self, file: Path) -> None:
        """Write it as JSON, with the machine and the versions."""
        file.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "passed": self.passed,
            "device": self.device,
            "machine": machine(self.device),
            "versions": versions(),
            "commit": provenance.commit(),
            "sources": provenance.sources(),
            "seconds": round(self.seconds, 1),
            "checks": [asdict(check) for check in self.checks],
        }
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def verify(device: str, cells: int, quick: bool, with_published: bool, known: Path = scores.KNOWN) -> Iterator[Report]:
    """Make every check; the report as it grows, after each of them.

    Args:
        device: a name of torch's.
        cells: random cells in which every execution is compared with the oracle.
        quick: whether to time small passes only, whose ratios say little of large ones.
        with_published: whether to look for GPT-2 and its texts.
        known: the file of known scores.
    """
    report, start = Report(device), time.perf_counter()
    if torch.device(device).type == "cuda":
        compile_kernels(device, cells)
    parts = [executions.check(device, cells), scores.check(device, known), speed.check(device, quick)]
    if with_published:
        parts.append(published.check(device))
    for check in chain.from_iterable(parts):
        report.checks.append(check)
        report.seconds = time.perf_counter() - start
        yield report


def machine(device: str) -> dict[str, Any]:
    """What was computed on."""
    found: dict[str, Any] = {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
    return found


def versions() -> dict[str, str]:
    """Versions of this package and of what decides its numbers and its speed."""
    found = {"python": platform.python_version(), **provenance.versions()}
    try:
        found["triton"] = version("triton")
    except PackageNotFoundError:
        found["triton"] = "not installed"
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
