"""`python -m sketch_eval.train --out FOLDER`: train the bundled model from nothing, or go on where FOLDER left off."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from sketch_eval.train.loop import train
from sketch_eval.train.settings import Settings


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line (of this process where None) and train."""
    parser = argparse.ArgumentParser(prog="python -m sketch_eval.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint, the log and the model")
    for field in fields(Settings):
        if isinstance(field.default, int | float | str):
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    chosen = vars(parser.parse_args(arguments))
    out = chosen.pop("out")
    train(Settings(**chosen), out)


if __name__ == "__main__":
    main()
