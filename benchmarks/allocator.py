"""What `keep_memory` is worth: one cell on the demo's tasks with it and without, in processes of their own, in turn.

python benchmarks/allocator.py
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys

from sketch_eval.config import CacheConfig
from sketch_eval.evaluate import model as lm
from sketch_eval.evaluate.work import Job, Worker
from sketch_eval.grid.grid import read

ROUNDS, RUNS = 2, 3


def measure(keep: bool) -> dict[str, float]:
    """Seconds of RUNS runs of each task, those of their passes, and the most memory that the process held, in MiB."""
    if not keep:
        lm.keep_memory = lambda: None
    worker = Worker(read("demo"))
    cell = CacheConfig(max_cache_size=64, strategy="aggregate")
    for task in worker.tasks:
        worker.run(Job(cell, task), {})
    times = [worker.run(Job(cell, task), {}).record["times"] for _ in range(RUNS) for task in worker.tasks]
    found = {key: sum(run[key] for run in times) for key in ("seconds", "pass_seconds")}
    return found | {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    best: dict[str, dict[str, float]] = {}
    for _ in range(ROUNDS):
        for name in ("without", "with"):
            run = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True)
            found = json.loads(run.stdout.splitlines()[-1])
            best[name] = min(found, best.get(name, found), key=lambda one: one["seconds"])
    print("| keep_memory | seconds | × without | outside the passes | peak MiB | × without |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, one in best.items():
        ratios = (one[key] / best["without"][key] for key in ("seconds", "peak"))
        time, memory = (f"{ratio:.2f}" for ratio in ratios)
        outside = 1 - one["pass_seconds"] / one["seconds"]
        print(f"| {name} | {one['seconds']:.1f} | {time} | {outside:.1%} | {one['peak']:,.0f} | {memory} |")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1] == "with")))
    else:
        main()
