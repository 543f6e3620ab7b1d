"""What a sweep costs beside the model's passes: `python benchmarks/overhead.py results/NAME`, of runs that are on disk.

Prints a Markdown table of the shares: of the passes; of what is between a run's beginning and its end and is no pass
(lm-eval's log-softmax over the passes' logits, its metrics, this package's counting); and of the rest of the wall time
from the first run's beginning to the last's end (writing, and what the machine did between runs).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(folders: list[str]) -> None:
    print("| sweep | runs | wall time, s | in the model's passes | in runs, beside the passes | between runs |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for folder in folders:
        times = [json.loads(path.read_text())["times"] for path in Path(folder).glob("runs/*/run.json")]
        times.sort(key=lambda run: run["finished"])
        wall = times[-1]["finished"] - (times[0]["finished"] - times[0]["seconds"])
        runs, passes = (sum(run[key] for run in times) for key in ("seconds", "pass_seconds"))
        shares = (f"{share / wall:.1%}" for share in (passes, runs - passes, wall - runs))
        print(f"| {folder} | {len(times)} | {wall:,.0f} | {' | '.join(shares)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
