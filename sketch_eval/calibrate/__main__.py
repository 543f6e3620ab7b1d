"""`python -m sketch_eval.calibrate --pretrained FOLDER --out NEW_FOLDER`: fit the ranking of importance=learned."""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from sketch_eval import bundled
from sketch_eval.attention import enable
from sketch_eval.calibrate.fit import fit
from sketch_eval.errors import UsageError, report_in_one_line
from sketch_eval.families import FAMILIES, check, shape_of
from sketch_eval.policies.learned import FEATURES
from sketch_eval.ranking import NAME, Ranking, marks_of
from sketch_eval.text import stdlib
from sketch_eval.text.fitting import read_folder


def windows(
    tokenizer: PreTrainedTokenizerBase, works: list[str], count: int, length: int, seed: int
) -> Iterator[torch.Tensor]:
    """Windows at random places of works, int64 `[length]` each, begun as a text to score is.

    Raises:
        UsageError: no work is so long.
    """
    draw, begin = random.Random(seed), tokenizer.bos_token_id
    encoded = [tokenizer(work, add_special_tokens=False, verbose=False)["input_ids"] for work in works]
    long = [ids for ids in encoded if len(ids) >= length]
    if not long:
        raise UsageError(f"length={length}: no text has so many tokens; give less, or longer texts")
    for _ in range(count):
        ids = draw.choice(long)
        at = draw.randrange(len(ids) - length + 1)
        window = ids[at : at + length]
        yield torch.tensor(window if begin is None else [begin, *window[1:]])


def calibrate(pretrained: str, out: Path, texts: str, count: int, length: int, seed: int) -> None:
    """Fit a ranking to a model, and save the model with it.

    Args:
        pretrained: a model by hub name or folder, or one in this package by name.
        out: a new folder for the model, its tokenizer and, in its config, the ranking.
        texts: a folder of .txt files that no task uses; where it is empty, those modules of the standard library that
            no task scores.
        count, length: windows, and their tokens.
        seed: of what is drawn.

    Raises:
        UsageError: a bad argument, before any weights are loaded.
    """
    for name, value, least in (("windows", count, 1), ("length", length, 256)):
        if value < least:
            raise UsageError(f"{name}={value}: expected {least} or more")
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"out={str(out)!r} holds files already; give a new folder")
    works = [text for _, text in (read_folder(texts) if texts else stdlib.documents("train"))]
    folder = bundled.resolve(pretrained)
    try:
        config = AutoConfig.from_pretrained(folder)
        check(config, FAMILIES)
        if length > shape_of(config).positions:
            raise UsageError(f"length={length}: the model takes {shape_of(config).positions} tokens; give no more")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except OSError as error:
        raise UsageError(
            f"pretrained={pretrained!r} could not be loaded; give the name or the folder of a model"
        ) from error
    implementation = model.config._attn_implementation
    enable(model)
    coefficients, explained = fit(model, windows(tokenizer, works, count, length, seed), seed)
    model.set_attn_implementation(implementation)
    made: dict[str, str | float] = {
        "texts": f"{count} windows of {length} tokens of {texts or 'the standard library'}, seed {seed}",
        "explained": round(explained, 4),
    }
    ranking = Ranking(features=FEATURES, coefficients=coefficients, marks=marks_of(model), made=made)
    setattr(model.config, NAME, ranking.model_dump(mode="json"))
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"{out}: the regressions explain {explained:.1%} of the deviance of the mass to come, on average over heads")


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line (of this process where None) and fit."""
    report_in_one_line()
    parser = argparse.ArgumentParser(prog="python -m sketch_eval.calibrate", description=__doc__)
    parser.add_argument("--pretrained", required=True, help="hub name, folder or bundled name of a model")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the model with its ranking")
    parser.add_argument("--texts", default="", help="folder of .txt files that no task uses; the library where empty")
    parser.add_argument("--windows", type=int, default=40, help="texts that are drawn")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a text")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    calibrate(given.pretrained, given.out, given.texts, given.windows, given.length, given.seed)


if __name__ == "__main__":
    main()
