"""Write what README.md and docs/findings.md say in numbers, and the picture, out of the committed tables.

    python docs/tools/readme.py            # rewrite them
    python docs/tools/readme.py --check    # only say whether they are what the tables say: status 1 where they are not

A block between `<!-- numbers: NAME -->` and `<!-- end -->` is made by the function of that name. Each sentence that
says more than a number is asserted of the tables first (`hold`), so that tables which say otherwise end in a line that
names it.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import centred
import front
import race
import rotary
from board import (
    CAP,
    CAPS,
    EXACT,
    FOLDING,
    OLDEST,
    SAME_BYTES,
    SKETCH,
    TEXTS,
    NotSoError,
    Tables,
    Text,
    at,
    ends,
    kib,
    listed,
    percent,
    require,
)
from picture import digest, draw, drawn

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/findings.md")
PICTURE = "docs/pictures/loss_against_bytes.png"

CELLS = ("window", "streaming", "h2o", EXACT, SKETCH, FOLDING, OLDEST)
"""The cells of the findings' first table."""
DROPPING = ("streaming", "tova", "h2o", EXACT, SKETCH)
"""What drops, and chooses otherwise than by age alone."""


def _of_texts(spell: Callable[[Text], str]) -> str:
    return listed(f"{spell(text)} on {text.title}" for text in TEXTS)


def filled(sentences: str, indent: str = "") -> str:
    """Lines of 120 characters, of which none breaks in an interval or a piece of code."""
    kept = re.sub(r"\[[^]]*\]", lambda found: found[0].replace(" ", "\0"), sentences)
    lines = textwrap.fill(kept, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return lines.replace("\0", " ")


def hold(tables: Tables) -> None:
    """Hold the words of `claims` to the tables.

    Raises:
        NotSoError: the tables do not say a sentence, or have no row that could.
    """
    sketches = (SKETCH, FOLDING)
    near = [row for cell in sketches for row in tables.each(cell, "to_exact")]
    dropping = [row for cell in DROPPING for row in tables.each(cell, "to_reference")]
    counts, table = ([tables.row(TEXTS[0], cell, cap) for cap in CAPS] for cell in (EXACT, SKETCH))
    pairs = list(zip(counts, table, strict=True))
    told = {
        "a sketch ranks as exact counts do": [max(abs(end) for end in ends(row, "to_exact")) < 0.1 for row in near],
        "exact counts need fewer bytes": [at(one, "sketch_bytes") < at(two, "sketch_bytes") for one, two in pairs],
        "no ranking that drops beats folding the oldest pair": [at(row, "to_reference_high") > 0 for row in dropping],
        "folding is better than dropping": [
            at(row, "to_reference_low") > 0 for row in tables.each("streaming", "to_reference")
        ],
    }
    require(told, "docs/tools/readme.py")


def answer(tables: Tables) -> str:
    """The front page's answer: a paragraph, and what to use."""
    paragraph, *uses = front.answer(tables)
    return "\n".join([filled(paragraph), "", *(filled(f"- {use}", "  ") for use in uses)])


def claims(tables: Tables) -> str:
    """What the tables say, a line a claim, paired by document."""
    hold(tables)
    near = [row for cell in (SKETCH, FOLDING) for row in tables.each(cell, "to_exact")]
    worst = max(near, key=lambda row: abs(at(row, "to_exact")))
    by_text = dict(zip(TEXTS, _losses(tables, "streaming", SAME_BYTES[CAP]), strict=True))
    better = _of_texts(lambda text: percent(tables.row(text, "streaming", CAP), "to_reference", False))
    folding, counts = (_compared(tables, cell) for cell in (FOLDING, "h2o"))
    caps = listed(map(str, CAPS))
    lines = (
        f"*Sketch or exact counts?* The largest paired difference at {caps} is {percent(worst, 'to_exact', digits=3)}.",
        f"*Sketch or more pairs?* The first four pairs and a window of the newest, {SAME_BYTES[CAP]} in all, have the "
        f"bytes of the sketch at {CAP}. They lose {_of_texts(by_text.__getitem__)}; the sketch that drops loses "
        f"{listed(_losses(tables, SKETCH))}.",
        f"*Drop or fold?* At {CAP} pairs of which the first four stay, folding the oldest other one is better than "
        f"dropping it by {better}, and surely better at the other two caps as well.",
        f"*Does a ranking help the folding?* Against folding the oldest at {CAP} pairs, the sketch that folds is "
        f"{folding}. No ranking that drops is surely better than folding the oldest at any of these caps; H2O, each "
        f"head for itself, is {counts} at {CAP}.",
    )
    return "\n".join(filled(f"- {line}", "  ") for line in lines)


def _compared(tables: Tables, cell: str) -> str:
    """How a cell does beside folding the oldest pair, by text."""
    said = []
    for text in TEXTS:
        row = tables.row(text, cell, CAP)
        sure = at(row, "to_reference_low") * at(row, "to_reference_high") > 0
        word = "better" if at(row, "to_reference") < 0 else "worse"
        by = percent(row, "to_reference", False)
        said.append(f"{word} by {by} on {text.title}" if sure else f"not told apart on {text.title} ({by})")
    return listed(said).replace(" and worse by ", " and by ") if said[0].startswith("worse") else listed(said)


def _losses(tables: Tables, cell: str, cap: int = CAP) -> list[str]:
    """What a cell loses on each text."""
    return [f"{at(tables.row(text, cell, cap), 'difference'):.1f}%" for text in TEXTS]


def every(tables: Tables) -> str:
    """All caps and cells that the texts share, for docs/findings.md."""
    heads = [f"[{text.title}](../results/{text.folder}/leaderboard.md)" for text in TEXTS]
    lines = [f"| cap | cell | {' | '.join(heads)} | total KiB |", "| ---: | --- | --- | --- | ---: |"]
    for cap in CAPS:
        for cell, size in [*((cell, cap) for cell in CELLS), ("streaming", SAME_BYTES[cap])]:
            rows = [tables.rows[text].get((cell, size)) for text in TEXTS]
            found = [row for row in rows if row is not None]
            if found:
                shown = [percent(row, "difference") if row else "" for row in rows]
                lines.append(f"| {size} | {cell} | {' | '.join(shown)} | {kib(found[0])} |")
    return "\n".join(lines)


BLOCKS: dict[str, Callable[[Tables], str]] = {
    "answer": answer,
    "table": front.table,
    "claims": claims,
    "every": every,
    "rivals": front.every,
    "fronts": front.fronts,
    "centred": centred.every,
    "race": race.every,
    "rotary": rotary.every,
    "bits": rotary.bits,
    "facts": rotary.facts,
}


def rewritten(page: str, tables: Tables) -> str:
    """A page with all of its blocks made anew."""
    block = re.compile(r"(<!-- numbers: (\w+) -->\n)(?:(?!<!-- ).*\n)*<!-- end -->")
    return block.sub(lambda found: f"{found[1]}{BLOCKS[found[2]](tables)}\n<!-- end -->", page)


def main(arguments: list[str]) -> int:
    """The command; returns its status."""
    if arguments not in ([], ["--check"]):
        print(f"docs/tools/readme.py: error: {' '.join(arguments)!r}: give nothing, or --check", file=sys.stderr)
        return 2
    tables, stale = Tables(ROOT / "results"), []
    try:
        pages = {name: (ROOT / name).read_text(encoding="utf-8") for name in PAGES}
        made = {name: rewritten(page, tables) for name, page in pages.items()}
    except NotSoError as error:
        print(f"docs/tools/readme.py: error: {error}", file=sys.stderr)
        return 1
    stale = [name for name in PAGES if pages[name] != made[name]]
    if not (ROOT / PICTURE).exists() or drawn(ROOT / PICTURE) != digest(tables):
        stale.append(PICTURE)
    if arguments:
        print("\n".join(f"{name} is not what the tables say: make readme" for name in stale) or "as the tables say")
        return int(bool(stale))
    for name in PAGES:
        (ROOT / name).write_text(made[name], encoding="utf-8")
    draw(tables, ROOT / PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
