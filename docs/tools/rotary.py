"""The tables of the rotary model: texts of 4096 tokens, and three ways to fold rotary keys."""

from __future__ import annotations

import csv

import centred
from board import APART, BITS, HALF, ROTARY, SKETCH, Row, Tables, at, ends, kib, listed, percent, require

FACTS = "tasks-rotary"
WINDOW = "window scope=head store=k8v4"
ASKED = ("needles_2048", "kv_2048", "needles_4096", "kv_4096", "passkey_4096")


def hold(tables: Tables) -> None:
    """Hold what docs/findings.md says below the table to it.

    Raises:
        NotSoError: the tables do not say a sentence, or have no row that could.
    """

    def rows(cell: str, cap: int = 512) -> list[Row]:
        return [tables.row(text, cell, cap) for text in ROTARY]

    few, eight, four = (
        rows(f"window{APART} store={store}", cap) for store, cap in (("k8v4", 1152), ("int8", 896), ("int4", 1536))
    )
    half, turned = rows(f"window{HALF}"), rows(f"window aggregate_turned{HALF}")
    told = {
        "more pairs with keys in 8 bits lose about half of what an eighth of the pairs in float16 do, or less": [
            at(one, "difference") < 0.6 * at(plain, "difference")
            for rows_of_text in (few, eight)
            for one, plain in zip(rows_of_text, half, strict=True)
        ],
        "4 bits throughout are worse than 8 and 4": [
            ends(one, "difference")[1] < ends(two, "difference")[0] for one, two in zip(few, four, strict=True)
        ],
        "8 bits throughout are better than 8 and 4 on all texts but WikiText-2": [
            [at(one, "difference") < at(two, "difference") for one, two in zip(eight, few, strict=True)]
            == [True, False, True]
        ],
        "to keep the first four pairs makes no difference": [
            abs(at(tables.row(text, f"streaming{HALF}", 512), "difference") - at(plain, "difference")) < 0.1
            for text, plain in zip(ROTARY[:2], half, strict=False)
        ],
        "the clairvoyant, exact counts and the sketch lose more than the window": [
            at(row, "difference") > at(plain, "difference")
            for ranking in ("exact", "count_min 512×4", "clairvoyant")
            for row, plain in zip(rows(f"{ranking}{HALF}"), half, strict=True)
        ],
        "folding the oldest is nowhere surely better than dropping it": [
            ends(row, "to_reference")[0] < 0 for row in (*half, *few)
        ],
        "dropping is surely better in few bits on WikiText-2 and the works, and nowhere else": [
            [ends(row, "to_reference")[1] < 0 for row in (*half, *few)] == [False] * 4 + [True] * 2
        ],
        "turning helps where the oldest is folded in float16": [ends(row, "to_reference")[1] < 0 for row in turned],
        "turning is not told apart where exact counts choose": [
            ends(row, "to_reference")[0] < 0 < ends(row, "to_reference")[1]
            for row in rows(f"exact aggregate_turned{HALF}")
        ],
        "values alone are worse where the oldest is folded": [
            ends(row, "to_reference")[0] > 0 for row in rows(f"window aggregate_values{HALF}")
        ],
    }
    require(told, "docs/findings.md")


def every(tables: Tables) -> str:
    """All cells, for docs/findings.md: what each loses, and how far it is from folding keys as they are stored."""
    hold(tables)
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
    said = f"Documents: {listed(documents)}. The full cache's byte perplexity: {listed(full)}."
    return "\n".join([*lines, "", said])


def hold_bits(tables: Tables) -> None:
    """Hold what docs/findings.md says below the table of few bits to it.

    Raises:
        NotSoError: the tables do not say a sentence, or have no row that could.
    """

    def rows(cell: str, cap: int) -> list[Row]:
        return [tables.row(text, cell, cap) for text in BITS]

    def kept(store: str, cap: int, more: str = "") -> list[Row]:
        return rows(f"streaming{APART} store={store}{more}", cap)

    whole, less = rows("full", 0), " centred=True"
    sizes = (("k8v4", 1152), ("int8", 896), ("k8v4", 2304))
    ranked = [
        row
        for cell in ("h2o", "exact", SKETCH)
        for row in rows(f"{cell}{'' if cell == 'h2o' else APART} store=k8v4", 1152)
    ]
    told = {
        "keys less their mean change nothing where keys have 8 bits": [
            max(map(abs, ends(row, "to_reference"))) < 0.05 for store, cap in sizes for row in kept(store, cap, less)
        ],
        "nor where the oldest pair is folded is it sure": [
            ends(row, "to_reference")[0] < 0 < ends(row, "to_reference")[1]
            for row in rows(f"streaming aggregate{APART} store=k8v4{less}", 1152)
        ],
        "they help 4 bits": [ends(row, "to_reference")[1] < 0 for row in kept("int4", 1536, less)],
        "4 bits are worse all the same": [
            at(four, "difference") > at(eight, "difference")
            for four, eight in zip(kept("int4", 1536, less), kept("k8v4", 1152), strict=True)
        ],
        "no ranking in few bits is better than the window, and on WikiText-2 and the works each is worse": [
            *(at(row, "to_window") > 0 for row in ranked),
            *(ends(row, "to_window")[0] > 0 for number, row in enumerate(ranked) if number % len(BITS)),
        ],
        "the first four pairs make no difference in few bits": [
            at(row, "to_window_high") < 0.1 for row in kept("k8v4", 1152)
        ],
        "at a quarter of the bytes 8 bits are better than 8 and 4": [
            at(eight, "difference_high") < 1 and at(eight, "difference") < at(few, "difference")
            for eight, few in zip(kept("int8", 1792), kept("k8v4", 2304), strict=True)
        ],
        "an eighth of the bytes loses less than 5%, and a quarter less than 2%": [
            at(row, "kv_bytes") <= at(full, "kv_bytes") / 2 * share and ends(row, "difference")[1] < most
            for share, most, cells in (
                (1 / 8, 5, (kept("k8v4", 1152), kept("int8", 896))),
                (1 / 4, 2, (kept("k8v4", 2304), kept("int8", 1792))),
            )
            for cell in cells
            for row, full in zip(cell, whole, strict=True)
        ],
    }
    require(told, "docs/findings.md")


def bits(tables: Tables) -> str:
    """All cells of pairs in few bits, for docs/findings.md."""
    hold_bits(tables)
    return centred.lines(tables, BITS, 4096)


def planted(tables: Tables) -> dict[tuple[int, str], dict[str, Row]]:
    """The accuracies on planted facts, by cap and cell, and by task."""
    cells: dict[tuple[int, str], dict[str, Row]] = {}
    with (tables.results / FACTS / "leaderboard.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["metric"] == "acc":
                cells.setdefault((int(row["cap"] or 4096), row["cell"]), {})[row["task"]] = row
    return cells


def hold_facts(cells: dict[tuple[int, str], dict[str, Row]]) -> None:
    """Hold what docs/findings.md says below the table of planted facts to it, as `planted` gives it.

    Raises:
        NotSoError: the table does not say a sentence.
    """
    size, sketch, few, full = "total_bytes", cells[1024, "count_min 512×4"], cells[2304, WINDOW], cells[4096, "full"]
    told = {
        "the full cache answers all": [at(full[task], "value") == 1 for task in ASKED],
        "64 and 256 pairs answer what the newest tokens do": [
            ends(row[task], "value")[0] < 0.28 for (cap, _), row in cells.items() if cap in (64, 256) for task in ASKED
        ],
        "no ranking is surely better than the window of as many pairs": [
            at(row[task], "to_window_low") <= 0 for row in cells.values() for task in ASKED if row[task]["to_window"]
        ],
        "the sketch is worse than the window on code words": [at(sketch["needles_4096"], "to_window_high") < 0],
        "pairs in few bits answer all of a text that they hold": [
            at(few[task], "value") == 1 for task in ("needles_2048", "kv_2048")
        ],
        "more than twice the pairs in about half of the bytes answer more": [
            at(few[task], "value") > at(row[task], "value") and 0.55 * at(row[task], size) > at(few[task], size)
            for row in (cells[1024, cell] for cell in ("window", "exact", "count_min 512×4"))
            for task in ASKED
        ],
    }
    require(told, "docs/findings.md")


def facts(tables: Tables) -> str:
    """Accuracy on planted facts, by cell and task, for docs/findings.md."""
    cells = planted(tables)
    hold_facts(cells)
    lines = [f"| pairs | cell | KiB | {' | '.join(ASKED)} |", f"| ---: | --- | ---: |{' --- |' * len(ASKED)}"]
    for (cap, cell), rows in sorted(cells.items(), key=lambda one: one[0][0]):
        shown = [f"{at(rows[task], 'value'):.2f} {_interval(rows[task])}" for task in ASKED]
        lines.append(f"| {'all' if cell == 'full' else cap} | {cell} | {kib(rows[ASKED[0]])} | {' | '.join(shown)} |")
    documents = ", ".join(f"{next(iter(cells.values()))[task]['documents']} of {task}" for task in ASKED)
    return "\n".join([*lines, "", f"Documents: {documents}."])


def _interval(row: Row) -> str:
    low, high = ends(row, "value")
    return f"[{low:.2f}, {high:.2f}]"
