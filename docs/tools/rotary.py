"""The tables of the rotary model: texts of 4096 tokens, and three ways to fold rotary keys."""

from __future__ import annotations

from board import ROTARY, Tables, at, kib, percent

APART = " scope=head"


def every(tables: Tables) -> str:
    """All cells, for docs/findings.md: what each loses, and how far it is from folding keys as they are stored."""
    heads = " | ".join(f"[{text.title}](../results/{text.folder}/leaderboard.md) | to folding" for text in ROTARY)
    lines = [f"| pairs | cell | KiB | {heads} |", f"| ---: | --- | ---: |{' --- | --- |' * len(ROTARY)}"]
    cells = {key: row for text in ROTARY[::-1] for key, row in tables.rows[text].items() if key[0] != "full"}
    for (cell, cap), row in sorted(cells.items(), key=lambda one: (one[0][1] or 4096, at(one[1], "difference"))):
        shown = []
        for text in ROTARY:
            found = tables.rows[text].get((cell, cap))
            shown.append(percent(found, "difference") if found else "")
            shown.append(percent(found, "to_reference") if found and found.get("to_reference") else "")
        name = cell.removesuffix(" store=float16").replace(APART, "")
        lines.append(f"| {cap or 'all'} | {name} | {kib(row)} | {' | '.join(shown)} |")
    documents = [f"{next(iter(tables.rows[text].values()))['documents']} of {text.title}" for text in ROTARY]
    full = [f"{at(tables.row(text, 'full', 0), 'value'):.3f}" for text in ROTARY]
    said = f"Documents: {' and '.join(documents)}. The full cache's byte perplexity: {' and '.join(full)}."
    return "\n".join([*lines, "", said])
