"""`python -m sketch_eval.train --out FOLDER`: train the bundled model from nothing, or go on where FOLDER left off."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from sketch_eval.errors import report_in_one_line
from sketch_eval.train.loop import train
from sketch_eval.train.settings import Settings
from sketch_eval.train.timed import train_by_the_clock


def schedule(text: str) -> tuple[tuple[int, float], ...]:
    """`0:128,400:256` as (first step, value) pairs."""
    pairs = (entry.split(":") for entry in text.split(","))
    return tuple((int(step), float(value) if "." in value else int(value)) for step, value in pairs)


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line (of this process where None) and train."""
    report_in_one_line()
    parser = argparse.ArgumentParser(prog="python -m sketch_eval.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint, the log and the model")
    for field in fields(Settings):
        kind = schedule if isinstance(field.default, tuple) else type(field.default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    chosen = vars(parser.parse_args(arguments))
    out = chosen.pop("out")
    settings = Settings(**chosen)
    if settings.seconds:
        train_by_the_clock(settings, out)
    else:
        train(settings, out)


if __name__ == "__main__":
    main()
