"""Other systems' bounded and quantised caches beside ours: same model, same texts, same budget, quality and seconds.

    python -m venv PEERS && PEERS/bin/pip install torch==2.13.0 kvpress==0.5.5 optimum-quanto==0.2.7
    python benchmarks/peers.py --peers PEERS/bin/python [--pretrained bundled-rotary] [--texts FOLDER] [--output ...]

transformers' own caches and kvpress's presses run in an environment of their own, as kvpress asks for an older
transformers than we do (`peers_theirs.py`). They are read token by token, which is the one way in which their bound
holds at every token; and kvpress once more in one ordinary scoring pass, where it does not. With a rotary model only:
kvpress takes no GPT-2.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import peers_theirs
import torch
import typer
from peers_theirs import Scored, Texts, by_token, held, likelihood, measure, versions
from transformers import AutoModelForCausalLM, AutoTokenizer

from sketch_eval import bundled
from sketch_eval.attention import enable, in_parts
from sketch_eval.cache import SketchCache
from sketch_eval.config import CONTROLS, CacheConfig
from sketch_eval.text import stdlib
from sketch_eval.text.fitting import read_folder


def ours(pretrained: str, cap: int) -> dict[str, Callable[[torch.Tensor], Scored]]:
    """What this environment runs."""
    model = AutoModelForCausalLM.from_pretrained(pretrained, dtype=torch.float32).eval()

    def full(tokens: torch.Tensor) -> Scored:
        return likelihood(model(tokens, use_cache=False).logits, tokens), tokens.shape[1]

    def cell(**fields: Any) -> Callable[[torch.Tensor], Scored]:
        def score(tokens: torch.Tensor) -> Scored:
            cache = SketchCache(model.config, CacheConfig(max_cache_size=cap, **fields))
            logits = torch.cat([part.logits for part in in_parts(model, tokens, cache)], 1)
            return likelihood(logits, tokens), held(cache)

        return score

    def decoded(tokens: torch.Tensor) -> Scored:
        return by_token(model, tokens, SketchCache(model.config, CacheConfig(max_cache_size=cap, **CONTROLS["window"])))

    enable(model)
    ways = {name: cell(**CONTROLS[name]) for name in ("window", "streaming", "h2o")}
    ways |= {f"{name} scope=head": cell(**CONTROLS[name], scope="head") for name in ("knorm", "tova")}
    ways |= {"count_min 512×4 (default)": cell(), "window aggregate": cell(**CONTROLS["window"], strategy="aggregate")}
    found: dict[str, Callable[[torch.Tensor], Scored]] = {"full cache, one scoring pass": full}
    found |= {f"sketch_eval {name}, one scoring pass": way for name, way in ways.items()}
    return found | {"sketch_eval window, token by token": decoded}


def table(found: dict[str, Any], sizes: list[int]) -> list[str]:
    """The rows, against the first way."""
    full = next(iter(found.values()))
    rows = ["| way | pairs a layer holds | byte perplexity | over the full cache | seconds | × the full pass |"]
    rows += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    for name, one in found.items():
        if "failed" in one:
            rows.append(f"| {name} | failed: {one['failed']} | | | | |")
            continue
        byte = math.exp(-sum(one["likelihoods"]) / sum(sizes))
        over = math.exp((sum(full["likelihoods"]) - sum(one["likelihoods"])) / sum(sizes)) - 1
        ratio = one["seconds"] / full["seconds"]
        rows.append(f"| {name} | {one['held']:,} | {byte:.4f} | {over:+.2%} | {one['seconds']:.2f} | {ratio:.1f} |")
    return rows


def main(
    peers: Annotated[Path, typer.Option(help="the interpreter of the environment that holds kvpress")],
    pretrained: Annotated[str, typer.Option(help="a model with rotary positions")] = "bundled-rotary",
    texts: Annotated[Path | None, typer.Option(help="a folder of .txt files; else held-out library modules")] = None,
    cap: Annotated[int, typer.Option(help="pairs that a bounded layer may hold after a token")] = 256,
    length: Annotated[int, typer.Option(help="tokens of a text")] = 1024,
    count: Annotated[int, typer.Option(help="texts, evenly spaced over the files")] = 8,
    output: Annotated[Path | None, typer.Option(help="also write the table to this file")] = None,
) -> None:
    """Print the table."""
    folder = bundled.resolve(pretrained)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    works = [text for _, text in (stdlib.excerpts(6 * length) if texts is None else read_folder(str(texts)))]
    chosen: Texts = []
    sizes = []
    for number in range(count):
        work = works[number % len(works)]
        start = len(work) * (number // len(works)) // -(-count // len(works))
        ids = tokenizer(work[start : start + 12 * length], add_special_tokens=False)["input_ids"][: length - 1]
        chosen.append([tokenizer.bos_token_id, *ids])
        sizes.append(len(tokenizer.decode(ids).encode()))
    with tempfile.TemporaryDirectory() as place:
        job = Path(place) / "job.json"
        job.write_text(json.dumps({"pretrained": folder, "cap": cap, "texts": chosen}))
        mine = measure(ours(folder, cap), chosen)
        done = subprocess.run(
            [str(peers), peers_theirs.__file__, str(job)], stdout=subprocess.PIPE, text=True, check=True
        )
    other = json.loads(done.stdout.splitlines()[-1])
    said = ", ".join(f"{name} {version}" for name, version in {**versions(), **other["versions"]}.items())
    lines = [f"{count} texts of {length} tokens, cap {cap}, {platform.machine()}, {torch.get_num_threads()} threads. "]
    lines[0] += f"Ours with transformers {importlib.metadata.version('transformers')}; the others with {said}."
    lines += ["", *table({**mine, **other["found"]}, sizes)]
    print("\n".join(lines))
    if output is not None:
        output.write_text("\n".join(["# Peers", "", *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
