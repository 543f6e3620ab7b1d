"""The table of keys less their mean: what few bits lose with them and without."""

from __future__ import annotations

from board import APART, CENTRED, Row, Tables, at, ends, kib, percent, require

from sketch_eval.leaderboard.front import NOBODY

FOLDED = f"streaming aggregate{APART}"
FOUR, EIGHT = f"{FOLDED} store=int4 centred=True", f"{FOLDED} store=k8v4 centred=True"


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
        "folding is better than counts that never fade": [
            row["undercut_by"] == other["row"] for row, other in zip(ranked, four, strict=True)
        ],
    }
    require(told, "docs/findings.md")


def every(tables: Tables) -> str:
    """All cells, for docs/findings.md: what each loses, and how far it is from keys as they are."""
    hold(tables)
    heads = " | ".join(
        f"[{text.title}](../results/{text.folder}/leaderboard.md) | to keys as they are" for text in CENTRED
    )
    lines = [f"| pairs | cell | KiB | {heads} |", f"| ---: | --- | ---: |{' --- | --- |' * len(CENTRED)}"]
    cells = {key: row for key, row in tables.rows[CENTRED[0]].items() if key[0] != "full"}
    for (cell, cap), row in sorted(cells.items(), key=lambda one: (one[0][1] or 1024, at(one[1], "difference"))):
        shown = []
        for text in CENTRED:
            found = tables.row(text, cell, cap)
            shown += [percent(found, "difference"), percent(found, "to_reference") if found["to_reference"] else ""]
        name = cell.replace(APART, "").replace("centred=True", "centred")
        lines.append(f"| {cap or 'all'} | {name} | {kib(row)} | {' | '.join(shown)} |")
    return "\n".join(lines)
