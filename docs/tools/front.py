"""The front page's answer, table and picture: caches of about as many bytes, on three texts."""

from __future__ import annotations

from collections.abc import Sequence

from board import (
    APART,
    BITS,
    CENTRED,
    FEW,
    HALF,
    PART,
    RIVALS,
    SKETCH,
    Row,
    Tables,
    Text,
    at,
    ends,
    kib,
    percent,
    require,
)
from board import FOLDING as FOLDING_SKETCH

from sketch_eval.leaderboard.front import NOBODY

FOLDING, EIGHTH = (f"streaming aggregate{FEW}", 288), (f"streaming{FEW}", 288)
FOLDED, QUARTER = (f"streaming aggregate{FEW}", 576), (f"streaming{FEW}", 576)
BEST, BEST_QUARTER = ((f"streaming aggregate{FEW} centred=True", cap) for cap in (288, 576))
PLAIN, COUNTS, TABLE = (f"window{HALF}", 128), (f"exact{HALF}", 128), (f"{SKETCH}{HALF}", 128)
CEILING = (f"clairvoyant{HALF}", 128)

BY_SKETCH = (f"{FOLDING_SKETCH}{FEW}", 288)

LINES: dict[tuple[str, int], str] = {
    ("float16", 0): "all 1024 pairs",
    PLAIN: "window of 128 pairs",
    (f"streaming{HALF}", 128): "the first 4 pairs and a window of 124",
    ("h2o store=float16", 128): "128 pairs by exact counts that never fade (H2O)",
    TABLE: "128 pairs by the sketch",
    FOLDING: "the first 4 pairs and a window of 284 that folds its oldest pair, in few bits",
    BEST: "the same with keys less their mean ([table](results/centred/leaderboard.md))",
    CEILING: "128 pairs by a ranking that has read the text before",
}
"""The table's lines: a cell and its cap, and what it is."""


def hold(tables: Tables) -> None:
    """Hold the words of `answer` to the tables.

    Raises:
        NotSoError: the tables do not say a sentence, or have no row that could.
    """
    told = {
        "a sketch ranks as exact counts do": [
            max(map(abs, ends(row, "to_exact"))) < 0.2 for row in _rows(tables, TABLE)
        ],
        "to keep the first four pairs helps more than any ranking does beyond that": [
            at(plain, "difference") - at(first, "difference") > at(first, "difference") - at(row, "difference")
            for text in RIVALS
            for plain, first in [(_row(tables, text, PLAIN), tables.row(text, f"streaming{HALF}", 128))]
            for (_, cap), row in tables.rows[text].items()
            if cap == 128 and row["strategy"] == "topk" and row["importance"] != "clairvoyant"
        ],
        "fewer bits beat every ranking of as many bytes in float16": [
            ends(few, "difference")[1] < ends(row, "difference")[0]
            for text, few in zip(RIVALS, _rows(tables, FOLDING), strict=True)
            for (_, cap), row in tables.rows[text].items()
            if cap == 128 and row["importance"] != "clairvoyant"
        ],
        "folding the oldest is surely better than every ranking of as many pairs in few bits": [
            at(row, "to_reference_low") > 0
            for text in RIVALS
            for (_, cap), row in tables.rows[text].items()
            if cap == 288 and row["to_reference"] and row["importance"] not in ("clairvoyant", "surprisal")
        ],
        "an eighth of the bytes of keys and values loses less than 5%": [
            ends(row, "difference")[1] < 5 and at(row, "kv_bytes") <= at(full, "kv_bytes") / 8
            for row, full in zip(_rows(tables, FOLDING), _rows(tables, ("float16", 0)), strict=True)
        ],
        "a quarter of the bytes of keys and values loses less than 2%": [
            ends(row, "difference")[1] < 2 and at(row, "kv_bytes") <= at(full, "kv_bytes") / 4
            for row, full in zip(_rows(tables, FOLDED), _rows(tables, ("float16", 0)), strict=True)
        ],
        "keys less their mean are surely better on every text": [
            ends(row, "to_reference")[1] < 0 for cell in (BEST, BEST_QUARTER) for row in _rows(tables, cell)
        ],
        "a ranking that knew the future would lose less than a window": [
            ends(best, "difference")[1] < ends(row, "difference")[0]
            for best, row in zip(_rows(tables, CEILING), _rows(tables, PLAIN), strict=True)
        ],
    }
    require(told, "docs/tools/front.py")


def answer(tables: Tables) -> list[str]:
    """The answer: is a sketch worth its bytes, and what instead. A paragraph, and the items of a list."""
    hold(tables)
    same = [*_rows(tables, TABLE), *tables.each(SKETCH, "to_exact")]
    far = max(abs(end) for row in same for end in ends(row, "to_exact"))
    sketch, counts = (kib(_rows(tables, cell)[0], "sketch_bytes") for cell in (TABLE, COUNTS))
    by_sketch = kib(_rows(tables, BY_SKETCH)[0])
    return [
        "**On the small model and the texts measured so far, a sketch is not worth its bytes.** Where pairs are "
        f"dropped it loses the same byte perplexity as exact counts, to within {far:.2f}%, but with a sketch or counts "
        f"for each attention head the sketches take {sketch} KiB and the counts {counts}. **And three simple things "
        "help more than to choose better which pairs to keep: never to let go of a text's first four pairs, to fold "
        "the oldest other one rather than drop it, and to store each number in fewer bits.** With keys in 8 bits and "
        "values in 4, the same bytes hold 2.25 times the pairs. A cache of these beats every ranking in float16, in "
        "as many bytes, that knows only what has been read so far. So use:",
        "in about an eighth of the full cache's bytes in float16, 288 such pairs, the first four kept, the oldest "
        "other one folded, and keys stored less what those of a head have in common "
        "(`max_cache_size=288,importance=recency,sinks=4,strategy=aggregate,scope=head,store=k8v4,centred=True`). "
        f"This loses {_losses(tables, BEST)} of byte perplexity on the three texts below. With keys as they are it "
        f"loses {_losses(tables, FOLDING)}, still less than each ranking without foresight that ran with 288 such "
        f"pairs on all three; where the oldest pair is dropped it is {_losses(tables, EIGHTH)}. A sketch that chooses "
        f"what to fold loses {_losses(tables, BY_SKETCH)}, and takes {by_sketch} KiB;",
        f"in a quarter of the bytes, 576 such pairs (288 and 576 are {EIGHTH[1] / 1024:.0%} and "
        f"{QUARTER[1] / 1024:.0%} of 1024). This loses {_losses(tables, BEST_QUARTER)};",
        "on a model with rotary positions, at an eighth of 4096 tokens' bytes, 1152 such pairs with keys as they are "
        "and the oldest dropped (`max_cache_size=1152,importance=recency,sinks=4,store=k8v4`), or 896 in 8 bits "
        f"(`store=int8`). On the model of this package these lose {_rotary(tables, 'k8v4', 1152)}, and "
        f"{_rotary(tables, 'int8', 896)}. At a quarter of 4096 tokens' bytes 1792 in 8 bits lose "
        f"{_rotary(tables, 'int8', 1792)}. To such caches nothing else was surely a gain: no ranking, no folding of "
        "keys as they are stored, no mean taken from them, and not the first four pairs "
        "([findings](docs/findings.md#few-bits-by-the-rotary-model)), which "
        "[larger models need](https://arxiv.org/abs/2309.17453).",
    ]


def table(tables: Tables) -> str:
    """Caches of about an eighth of the bytes."""
    heads = " | ".join(f"[{text.title}](results/{text.folder}/leaderboard.md)" for text in RIVALS)
    lines = [f"| cache | arguments | KiB | {heads} |", f"| --- | --- | ---: |{' --- |' * len(RIVALS)}"]
    for cell, title in LINES.items():
        rows = _rows(tables, cell)
        shown = [f"{at(row, 'value'):.3f}" if cell[0] == "float16" else percent(row, "difference") for row in rows]
        lines.append(f"| {title} | {given(rows[0])} | {kib(rows[0])} | {' | '.join(shown)} |")
    documents = [f"{_row(tables, text, PLAIN)['documents']} documents of {text.title}" for text in RIVALS]
    return "\n".join([*lines, "", f"Measured on {', '.join(documents[:-1])} and {documents[-1]}."])


def every(tables: Tables) -> str:
    """All cells of the tables of rivals, for docs/findings.md, with the share of the way to the clairvoyant."""
    texts = (RIVALS[0], PART, *RIVALS[1:])
    lines = [_head(texts, " | way"), f"| ---: | --- | ---: |{' --- | ---: |' * len(texts)}"]
    cells = {key: row for text in texts[::-1] for key, row in tables.rows[text].items() if key[0] != "full"}
    for (cell, cap), row in sorted(cells.items(), key=lambda one: (one[0][1] or 1024, at(one[1], "difference"))):
        shown = []
        for text in texts:
            found = tables.rows[text].get((cell, cap))
            shown += [percent(found, "difference"), _way(found)] if found else ["", ""]
        lines.append(f"| {cap or 'all'} | {_short(cell)} | {kib(row)} | {' | '.join(shown)} |")
    return "\n".join(lines)


def fronts(tables: Tables) -> str:
    """The cells that no other one of no more bytes undercuts on some text, for docs/findings.md.

    Raises:
        NotSoError: the tables do not say what that page says of them.
    """
    spared = [
        (text.title, cell, cap)
        for text in RIVALS
        for (cell, cap), row in tables.rows[text].items()
        if row["undercut_by"] == NOBODY and row["cap"] and row["store"] == "float16" and row["importance"] != "recency"
    ]
    told = {
        "each cache in float16 that ranks is undercut": [not spared],
        "what the front page says to use, with keys as they are, is undercut nowhere": [
            row["undercut_by"] == NOBODY for cell in (FOLDING, EIGHTH, QUARTER) for row in _rows(tables, cell)
        ],
    }
    require(told, "docs/findings.md")
    lines = [_head(RIVALS), f"| ---: | --- | ---: |{' --- |' * len(RIVALS)}"]
    cells = {key: row for text in RIVALS for key, row in tables.rows[text].items() if row["undercut_by"] == NOBODY}
    for (cell, cap), row in sorted(cells.items(), key=lambda one: at(one[1], "total_bytes")):
        shown = [_undercut(tables, text, tables.rows[text].get((cell, cap))) for text in RIVALS]
        lines.append(f"| {cap or 'all'} | {_short(cell)} | {kib(row)} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _undercut(tables: Tables, text: Text, row: Row | None) -> str:
    if row is None or not row["undercut_by"]:
        return ""
    if row["undercut_by"] == NOBODY:
        return "not undercut"
    (by,) = (other for other in tables.rows[text].values() if other["row"] == row["undercut_by"])
    return f"{percent(row, 'undercut')} over {by['cap'] or 'all'} {_short(by['cell'])}"


def _head(texts: Sequence[Text], more: str = "") -> str:
    heads = " | ".join(f"[{text.title}](../results/{text.folder}/leaderboard.md){more}" for text in texts)
    return f"| pairs | cell | KiB | {heads} |"


def _short(cell: str) -> str:
    """A cell's name without what all cells of the tables of rivals share."""
    return cell.removesuffix(HALF).removesuffix(" store=float16").replace(APART, "")


def _way(row: Row) -> str:
    if not row.get("way"):
        return ""
    way, low, high = (100 * at(row, f"way{end}") for end in ("", "_low", "_high"))
    return f"{way:.0f}% [{low:.0f}, {high:.0f}]"


def given(row: Row) -> str:
    """A row's arguments, as lm-eval's command line has them, but for what all rows of the table have."""
    arguments = row["command"].split("--model_args ")[1].split()[0].split(",")
    told = [argument for argument in arguments if not argument.startswith(("pretrained=", "dtype="))]
    return "`" + ",".join(told) + "`"


def _losses(tables: Tables, cell: tuple[str, int]) -> str:
    *first, last = (f"{at(row, 'difference'):.1f}%" for row in _rows(tables, cell))
    return f"{', '.join(first)} and {last}"


def _rotary(tables: Tables, store: str, cap: int) -> str:
    """What the first four pairs and a window lose with the rotary model on each of its texts."""
    cell = f"streaming{APART} store={store}"
    *first, last = (f"{at(tables.row(text, cell, cap), 'difference'):.1f}%" for text in BITS)
    return f"{', '.join(first)} and {last}"


def _rows(tables: Tables, cell: tuple[str, int]) -> list[Row]:
    return [_row(tables, text, cell) for text in (CENTRED if cell in (BEST, BEST_QUARTER) else RIVALS)]


def _row(tables: Tables, text: Text, cell: tuple[str, int]) -> Row:
    return tables.row(text, *cell)
