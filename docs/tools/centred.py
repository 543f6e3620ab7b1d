"""The table of keys less their mean: what few bits lose with them and without."""

from __future__ import annotations

from board import CENTRED, Row, Tables, at, ends, kib, percent, require

APART = " scope=head"
FOLDED = f"streaming aggregate{APART}"
FOUR, EIGHT = f"{FOLDED} store=int4 centred=True", f"{FOLDED} store=k8v4 centred=True"


def hold(tables: Tables) -> None:
    """Hold what docs/findings.md says below the table to it.

    Raises:
        NotSoError: the tables do not say a sentence, or have no row that could.
    """

    def rows(cell: str, cap: int) -> list[Row]:
        return [tables.row(text, cell, cap) for text in CENTRED]

    told = {
        "4 bits lose much less": [
            ends(row, "to_reference")[1] < 0
            for cell, cap in (("int4 centred=True", 0), (FOUR, 384), (FOUR, 768))
            for row in rows(cell, cap)
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
