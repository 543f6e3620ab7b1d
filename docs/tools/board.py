"""The committed tables as the front page reads them: losses of byte perplexity, by text, cell and cap."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

METRIC = "byte_perplexity"
CAP, CAPS = 128, (64, 128, 256)
SKETCH, FOLDING = "count_min 512×4", "count_min 512×4 aggregate"
EXACT, OLDEST = "exact", "streaming aggregate"
SAME_BYTES = {64: 68, 128: 132, 256: 260}
"""Pairs of the cache without a sketch that has the bytes of the sketch at a cap."""

Row = dict[str, str]
"""A row of leaderboard.csv: what each column says."""


class NotSoError(Exception):
    """The tables no longer say what a sentence says."""


def require(told: dict[str, list[bool]], where: str) -> None:
    """Hold sentences to the facts that they rest on.

    Args:
        told: by sentence, what has to be so of the tables, and of at least one row of them.
        where: the file whose words would have to change.

    Raises:
        NotSoError: the first sentence that the tables do not say.
    """
    for sentence, facts in told.items():
        if not facts or not all(facts):
            raise NotSoError(f"the tables do not say (any more) that {sentence}; reword {where}")


@dataclass(frozen=True)
class Text:
    """A text that is scored: what it is called, the folder of its table, and lm-eval's task."""

    title: str
    folder: str
    task: str


APART = " scope=head"
HALF, FEW = f"{APART} store=float16", f"{APART} store=k8v4"
"""What a cell's name ends in where each head chooses for itself, and pairs are kept in float16 or in few bits."""

TEXTS = (Text("library text", "tasks", "stdlib_text"), Text("WikiText-2", "tasks-real", "wikitext"))
RIVALS = (
    Text("library text", "rivals", "stdlib_text"),
    Text("WikiText-2", "rivals-wikitext", "wikitext"),
    Text("three works", "rivals-works", "long_text"),
)
"""The texts of the front page."""
PART = Text("ten documents of WikiText-2", "rivals", "wikitext")
"""What all cells of `rivals` were scored on, and not those of the answer alone."""
CENTRED = (
    Text("library text", "centred", "stdlib_text"),
    Text("WikiText-2", "centred", "wikitext"),
    Text("the three works", "centred", "long_text"),
)
"""The texts of keys less their mean."""
ROTARY = (
    Text("library text", "rivals-rotary", "long_text_4096"),
    Text("WikiText-2", "rivals-rotary", "wikitext"),
    Text("three works", "rivals-rotary-works", "long_text_4096"),
)
"""The rotary model's texts."""
BITS = (
    Text("library text", "bits-rotary", "long_text_4096"),
    Text("WikiText-2", "bits-rotary", "wikitext"),
    Text("three works", "bits-rotary-works", "long_text_4096"),
)
"""The same, of its pairs in few bits."""
RACES = (
    Text("library text", "race-queries", "stdlib_text"),
    Text("WikiText-2", "race-queries", "wikitext"),
    Text("three works", "race-queries", "long_text"),
)
"""The texts of sketches of the queries."""
EVERY = (*TEXTS, *RIVALS, PART, *CENTRED, *ROTARY, *BITS, *RACES)


class Tables:
    """The rows of the metric, by text, cell and cap.

    Args:
        results: the folder of the tables.
    """

    def __init__(self, results: Path) -> None:
        self.results = results
        self.rows: dict[Text, dict[tuple[str, int], Row]] = {}
        for text in EVERY:
            with (results / text.folder / "leaderboard.csv").open(encoding="utf-8", newline="") as file:
                found = [row for row in csv.DictReader(file) if (row["task"], row["metric"]) == (text.task, METRIC)]
            self.rows[text] = {(row["cell"], int(row["cap"] or 0)): row for row in found}

    def row(self, text: Text, cell: str, cap: int) -> Row:
        """A row that has to be there; the full cache has no cap."""
        try:
            return self.rows[text][cell, 0 if cell == "full" else cap]
        except KeyError:
            raise NotSoError(f"{text.folder}/leaderboard.csv has no {cell} at cap {cap} on {text.task}") from None

    def each(self, cell: str, column: str, caps: Iterable[int] = CAPS) -> list[Row]:
        """A cell's rows over texts and caps, those in which a column says something."""
        rows = [self.rows[text].get((cell, cap), {}) for text in TEXTS for cap in caps]
        return [row for row in rows if row.get(column)]


def at(row: Row, column: str) -> float:
    """A number of a row."""
    return float(row[column])


def ends(row: Row, column: str) -> tuple[float, float]:
    """The ends of a number's interval."""
    return at(row, f"{column}_low"), at(row, f"{column}_high")


def percent(row: Row, column: str, sign: bool = True, digits: int = 1) -> str:
    """A difference with its interval, `+6.4% [+5.4, +7.6]`; without a sign, how far it is off, if it surely is."""
    value, low, high = (at(row, column + end) for end in ("", "_low", "_high"))
    if sign or low * high < 0:
        return f"{value:+.{digits}f}% [{low:+.{digits}f}, {high:+.{digits}f}]"
    low, high = sorted((abs(low), abs(high)))
    return f"{abs(value):.{digits}f}% [{low:.{digits}f}, {high:.{digits}f}]"


def kib(row: Row, column: str = "total_bytes") -> str:
    """Bytes of a row in KiB."""
    return f"{at(row, column) / 1024:,.0f}"


def listed(values: Iterable[str]) -> str:
    """`a, b and c`."""
    *first, last = values
    return f"{', '.join(first)} and {last}" if first else last
