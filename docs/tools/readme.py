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
from collections.abc import Callable, Iterable
from pathlib import Path

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
    Row,
    Tables,
    Text,
    at,
    ends,
    kib,
    percent,
)
from picture import digest, draw, drawn

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/findings.md")
PICTURE = "docs/pictures/loss_against_bytes.png"

LINES = {
    "full": "the full cache",
    "window": "window, dropping",
    "h2o": "exact counts that never fade, each head for itself, dropping (H2O)",
    EXACT: "exact counts, dropping",
    SKETCH: "sketch, dropping",
    FOLDING: "sketch, folding",
    OLDEST: "window, folding",
}
"""The table's lines: a cell, and what it is."""


def given(row: Row) -> str:
    """A cell's arguments but for the cap, as lm-eval's command line has them."""
    found = re.search(r"--model_args (\S+)", row["command"])
    assert found is not None
    arguments = dict(pair.split("=", 1) for pair in found[1].split(","))
    told = {name: value for name, value in arguments.items() if name not in ("pretrained", "dtype", "max_cache_size")}
    if row["cell"] == "full":
        told = {"max_cache_size": "None"}
    return "`" + ",".join(f"{name}={value}" for name, value in told.items()) + "`" if told else "(the defaults)"


def _listed(values: Iterable[str]) -> str:
    *first, last = values
    return f"{', '.join(first)} and {last}" if first else last


def _of_texts(spell: Callable[[Text], str]) -> str:
    return _listed(f"{spell(text)} on {text.title}" for text in TEXTS)


def _filled(sentences: str, indent: str = "") -> str:
    """Lines of 120 characters, of which none breaks in an interval or a piece of code."""
    kept = re.sub(r"\[[^]]*\]", lambda found: found[0].replace(" ", "\0"), sentences)
    lines = textwrap.fill(kept, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return lines.replace("\0", " ")


def hold(tables: Tables) -> None:
    """Hold the words of `answer` and `claims` to the tables.

    Raises:
        NotSoError: the tables do not say a sentence, or have no row that could.
    """
    sketches = (SKETCH, FOLDING)
    near = [row for cell in sketches for row in tables.each(cell, "to_exact")]
    ranked = [row for cell in (EXACT, *sketches) for row in tables.each(cell, "to_reference")]
    counts, table = ([tables.row(TEXTS[0], cell, cap) for cap in CAPS] for cell in (EXACT, SKETCH))
    pairs = list(zip(counts, table, strict=True))
    told = {
        "a sketch ranks as exact counts do": [max(abs(end) for end in ends(row, "to_exact")) < 0.1 for row in near],
        "exact counts need fewer bytes": [at(one, "sketch_bytes") < at(two, "sketch_bytes") for one, two in pairs],
        "no ranking beats folding the oldest pair": [at(row, "to_reference_high") > 0 for row in ranked],
        "folding is better than dropping": [at(row, "to_window_high") < 0 for row in tables.each(OLDEST, "to_window")],
        "H2O is worse": [at(row, "to_reference_low") > 0 for row in tables.each("h2o", "to_reference", (CAP,))],
    }
    for sentence, facts in told.items():
        if not facts or not all(facts):
            raise NotSoError(f"the tables do not say (any more) that {sentence}; reword docs/tools/readme.py")


def answer(tables: Tables) -> str:
    """The answer in two sentences."""
    hold(tables)
    near = [row for cell in (SKETCH, FOLDING) for row in tables.each(cell, "to_exact")]
    far = max(abs(end) for row in near for end in ends(row, "to_exact"))
    counts, sketch = (
        [kib(tables.row(TEXTS[0], cell, cap), "sketch_bytes") for cap in CAPS] for cell in (EXACT, SKETCH)
    )
    lost = {cell: _listed(_losses(tables, cell)) for cell in (OLDEST, FOLDING, "window")}
    return _filled(
        f"**On the small model and the texts measured so far, a sketch is not worth its bytes: it ranks as well as "
        f"exact counts do, to within {far:.2f}% of byte perplexity, but at caps of {CAPS[0]} to {CAPS[-1]} pairs it "
        f"needs {sketch[0]} KiB where they need {counts[0]} to {counts[-1]}, and neither of the two beats a cache that "
        f"ranks nothing and folds its oldest pair.** Use that cache instead "
        f"(`importance=recency,sinks=0,strategy=aggregate`): with {CAP} pairs a layer it loses {lost[OLDEST]} of byte "
        f"perplexity on the two texts below, where the sketch that folds loses {lost[FOLDING]}, and a window that "
        f"drops {lost['window']}."
    )


def table(tables: Tables) -> str:
    """Seven cells at one cap."""
    heads = " | ".join(f"[{text.title}](results/{text.folder}/leaderboard.md)" for text in TEXTS)
    lines = [f"| cache of {CAP} pairs a layer | arguments | KiB | {heads} |", "| --- | --- | ---: | --- | --- |"]
    for cell, title in LINES.items():
        rows = [tables.row(text, cell, CAP) for text in TEXTS]
        shown = [f"{at(row, 'value'):.3f}" if cell == "full" else percent(row, "difference") for row in rows]
        lines.append(f"| {title} | {given(rows[0])} | {kib(rows[0])} | {' | '.join(shown)} |")
    documents = _of_texts(lambda text: f"{tables.row(text, 'full', CAP)['documents']} documents")
    return "\n".join([*lines, "", f"Read off {documents}."])


def claims(tables: Tables) -> str:
    """What the tables say, a line a claim, paired by document."""
    hold(tables)
    near = [row for cell in (SKETCH, FOLDING) for row in tables.each(cell, "to_exact")]
    worst = max(near, key=lambda row: abs(at(row, "to_exact")))
    by_text = dict(zip(TEXTS, _losses(tables, "window", SAME_BYTES[CAP]), strict=True))
    folding = {text: tables.row(text, FOLDING, CAP) for text in TEXTS}
    apart = [text for text in TEXTS if at(folding[text], "to_reference_low") > 0]
    said = [f"worse by {percent(folding[text], 'to_reference', False)} on {text.title}" for text in apart]
    said += [
        f"not told apart on {text.title} ({percent(row, 'to_reference')})"
        for text, row in folding.items()
        if text not in apart
    ]
    better = _of_texts(lambda text: percent(tables.row(text, OLDEST, CAP), "to_window", False))
    worse = _of_texts(lambda text: percent(tables.row(text, "h2o", CAP), "to_reference", False))
    caps = _listed(map(str, CAPS))
    lines = (
        f"*Sketch or exact counts?* The largest of their paired differences over caps of {caps} is "
        f"{percent(worst, 'to_exact', digits=3)}.",
        f"*Sketch or more pairs?* A window of {SAME_BYTES[CAP]} pairs has the bytes of the sketch at {CAP}. It loses "
        f"{_of_texts(by_text.__getitem__)}; the sketch that drops loses {_listed(_losses(tables, SKETCH))}.",
        f"*Drop or fold?* At {CAP} pairs, folding the oldest is better than dropping it by {better}. It is better "
        f"beyond doubt at caps of {caps}.",
        f"*Does a ranking help the folding?* Against folding the oldest at {CAP} pairs, the sketch that folds is "
        f"{_listed(said)}. H2O is worse by {worse}.",
    )
    return "\n".join(_filled(f"- {line}", "  ") for line in lines)


def _losses(tables: Tables, cell: str, cap: int = CAP) -> list[str]:
    """What a cell loses on each text."""
    return [f"{at(tables.row(text, cell, cap), 'difference'):.1f}%" for text in TEXTS]


def every(tables: Tables) -> str:
    """All caps and cells that the texts share, for docs/findings.md."""
    heads = [f"[{text.title}](../results/{text.folder}/leaderboard.md)" for text in TEXTS]
    lines = [f"| cap | cell | {' | '.join(heads)} | total KiB |", "| ---: | --- | --- | --- | ---: |"]
    cells = [cell for cell in LINES if cell != "full"]
    cells.insert(1, "streaming")
    for cap in CAPS:
        for cell, size in [*((cell, cap) for cell in cells), ("window", SAME_BYTES[cap])]:
            rows = [tables.rows[text].get((cell, size)) for text in TEXTS]
            found = [row for row in rows if row is not None]
            if found:
                shown = [percent(row, "difference") if row else "" for row in rows]
                lines.append(f"| {size} | {cell} | {' | '.join(shown)} | {kib(found[0])} |")
    return "\n".join(lines)


BLOCKS: dict[str, Callable[[Tables], str]] = {"answer": answer, "table": table, "claims": claims, "every": every}


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
