"""The table of keys less their mean: what few bits lose with them and without."""

from __future__ import annotations

from collections.abc import Sequence

from board import APART, CENTRED, Row, Tables, Text, at, ends, kib, percent, require

from sketch_eval.leaderboard.front import NOBODY

FOLDED = f"streaming aggregate{APART}"
FOUR, EIGHT = f"{FOLDED} store=int4 centred=True", f"{FOLDED} store=k8v4 centred=True"
DROPPED = f"streaming{APART} store=k8v4 centred=True"


def hold(tables: Tables) -> None:
    """Hold what docs/findings.md says below the table to it.

    Raises:
        NotSoError: the tables do not say a sentence, or have no row that could.
    """

    def rows(cell: str, cap: int) -> list[Row]:
        return [tables.row(text, cell, cap) for text in CENTRED]

    four, eight, ranked = rows(FOUR, 384), rows(EIGHT, 288), rows("h2o store=int4 centred=True", 384)
    told = {
        "keys less their mean are better in each bounded cache": [
            ends(row, "to_reference")[1] < 0
            for cell, cap in ((EIGHT, 288), (EIGHT, 576), (FOUR, 384), (FOUR, 768))
            for row in rows(cell, cap)
        ],
        "all pairs in 4 bits lose a quarter or less of what they lose with keys as they are": [
            at(less, "difference") < 0.27 * at(plain, "difference")
            for less, plain in zip(rows("int4 centred=True", 0), rows("int4", 0), strict=True)
        ],
        "nothing undercuts 384 pairs in 4 bits, and 288 in 8 and 4 nothing but these on WikiText-2": [
            *(row["undercut_by"] == NOBODY for row in four),
            [row["undercut_by"] for row in eight] == [NOBODY, four[1]["row"], NOBODY],
        ],
        "768 pairs in 4 bits are worse than 576 in 8 and 4 that drop, but on WikiText-2": [
            rows(FOUR, 768)[text]["undercut_by"] == rows(DROPPED, 576)[text]["row"] for text in (0, 2)
        ],
        "folding is better than counts that never fade": [
            row["undercut_by"] == other["row"] for row, other in zip(ranked, four, strict=True)
        ],
    }
    require(told, "docs/findings.md")


def every(tables: Tables) -> str:
    """All cells, for docs/findings.md: what each loses, and how far it is from keys as they are."""
    hold(tables)
    return lines(tables, CENTRED, 1024)


def lines(tables: Tables, texts: Sequence[Text], whole: int) -> str:
    """A table of all cells: what each loses on each text, and how far it is from the same one with keys as they are.

    Args:
        tables: the committed tables.
        texts: the columns; all of them have every cell.
        whole: the pairs of the full cache, by which the lines without a cap are sorted.
    """
    heads = " | ".join(
        f"[{text.title}](../results/{text.folder}/leaderboard.md) | to keys as they are" for text in texts
    )
    made = [f"| pairs | cell | KiB | {heads} |", f"| ---: | --- | ---: |{' --- | --- |' * len(texts)}"]
    cells = {key: row for key, row in tables.rows[texts[0]].items() if key[0] != "full"}
    for (cell, cap), row in sorted(cells.items(), key=lambda one: (one[0][1] or whole, at(one[1], "difference"))):
        shown = []
        for text in texts:
            found = tables.row(text, cell, cap)
            shown += [percent(found, "difference"), percent(found, "to_reference") if found["to_reference"] else ""]
        name = cell.replace(APART, "").replace("centred=True", "centred")
        made.append(f"| {cap or 'all'} | {name} | {kib(row)} | {' | '.join(shown)} |")
    return "\n".join(made)
