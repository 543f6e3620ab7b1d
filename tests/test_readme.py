"""The front page: short, and every number in it is one of the committed tables."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import centred
import front
import pytest
import race
import readme
import rotary
from board import EVERY, NotSoError, Tables
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from picture import digest, drawn
from transformers import AutoTokenizer

from sketch_eval import bundled
from sketch_eval.config import CacheConfig
from sketch_eval.grid.cells import cell_name

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"<!-- numbers: (\w+) -->\n((?:(?!<!-- ).*\n)*)<!-- end -->")


def rows_of(text: str) -> list[dict[str, str]]:
    """The rows of byte perplexity in the table that a column of the front page links to."""
    with (ROOT / text).with_name("leaderboard.csv").open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["metric"] == "byte_perplexity"]


def test_it_is_short_and_answers_before_it_explains_how_to_run() -> None:
    assert len(PAGE.splitlines()) <= 150
    places = [
        PAGE.index(part) for part in ("## The answer", "![Loss", "## The table", "git clone", "make demo", "lm_eval --")
    ]
    assert places == sorted(places)


def test_every_block_and_the_picture_are_what_the_tables_say() -> None:
    tables = Tables(ROOT / "results")
    for name in readme.PAGES:
        page = (ROOT / name).read_text(encoding="utf-8")
        assert BLOCK.search(page)
        assert readme.rewritten(page, tables) == page, "make readme"
    assert drawn(ROOT / readme.PICTURE) == digest(tables), "make readme"


def test_each_number_of_its_table_stands_in_the_table_that_it_links_to() -> None:
    """Read here apart from what wrote it: the full cache and seven lines at most, of one metric, that go by bytes."""
    (table,) = (text for name, text in BLOCK.findall(PAGE) if name == "table")
    head, _, *lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    links = [re.search(r"\((.*)\)", title) for title in head[3:]]
    tasks = dict(zip(head[3:], ("stdlib_text", "wikitext", "long_text"), strict=True))
    assert 6 <= len(lines) <= 8
    for title, link in zip(head[3:], links, strict=True):
        assert link is not None
        column = head.index(title)
        for number, line in enumerate(lines):
            other = re.search(r"\((results/.*)\)", line[0])  # A line of another table names it.
            rows = [row for row in rows_of((other or link)[1]) if row["task"] == tasks[title]]
            arguments = dict(pair.split("=") for pair in line[1].strip("`").split(","))
            cell = CacheConfig.parse(**arguments)
            cap = "" if cell.max_cache_size is None else str(cell.max_cache_size)
            (row,) = (row for row in rows if row["cell"] == cell_name(cell) and row["cap"] == cap)
            assert line[2] == f"{int(row['total_bytes']) / 1024:,.0f}"
            if number == 0:
                assert line[column] == f"{float(row['value']):.3f}"
            else:
                shown = [float(number) for number in re.findall(r"[+-][\d.]+", line[column])]
                exact = [float(row[f"difference{end}"]) for end in ("", "_low", "_high")]
                assert shown == pytest.approx(exact, abs=0.0501)


def test_no_number_of_the_tables_is_written_by_hand() -> None:
    by_hand = BLOCK.sub("", PAGE)
    assert set(re.findall(r"\d[\d.]*\s?%|(?<!\w)[+-]\d+\.\d", by_hand)) == {"95%"}  # of the intervals


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[str, str, str, str], Tables]:
    """The committed tables with one column of a cell changed at some cap, in all of them."""

    def change(cell: str, column: str, of: str, value: str) -> Tables:
        for folder in {text.folder for text in EVERY}:
            source, target = ROOT / "results" / folder / "leaderboard.csv", tmp_path / folder / "leaderboard.csv"
            target.parent.mkdir(exist_ok=True)
            shutil.copytree(source.parent, target.parent, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.png"))
            with source.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            for row in rows:
                if (row["cell"], row["cap"], row["metric"]) == (cell, of, "byte_perplexity"):
                    row[column] = value
            with target.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        return Tables(tmp_path)

    return change


def test_a_table_that_says_another_number_makes_another_page(changed: Callable[..., Tables]) -> None:
    tables = changed("streaming aggregate scope=head store=k8v4", "difference", "288", "1.98765432")
    page = readme.rewritten(PAGE, tables)
    assert page != PAGE
    assert "| +2.0% [+2.0, +2.9] |" in page
    assert drawn(ROOT / readme.PICTURE) != digest(tables)


@pytest.mark.parametrize(
    ("cell", "cap", "column", "value", "sentence"),
    [
        (
            "count_min 512×4 scope=head store=float16",
            "128",
            "to_exact_high",
            "0.5",
            "a sketch ranks as exact counts do",
        ),
        ("window scope=head store=float16", "128", "difference", "8", "to keep the first four pairs helps more"),
        ("h2o store=float16", "128", "difference_low", "0.1", "fewer bits beat every ranking"),
        ("clairvoyant scope=head store=float16", "128", "difference_high", "99", "a ranking that knew the future"),
        ("h2o store=k8v4", "288", "to_reference_low", "-0.1", "surely better than every ranking"),
        ("streaming scope=head store=k8v4", "288", "to_reference_low", "-0.1", "surely better than every ranking"),
        ("streaming aggregate scope=head store=k8v4", "288", "kv_bytes", "600000", "loses less than 5%"),
        (
            "streaming aggregate scope=head store=k8v4 centred=True",
            "288",
            "to_reference_high",
            "0.1",
            "less their mean",
        ),
        ("streaming aggregate scope=head store=k8v4", "576", "difference_high", "3", "loses less than 2%"),
        ("count_min 512×4", "128", "to_exact_high", "0.5", "a sketch ranks as exact counts do"),
        ("count_min 512×4", "128", "sketch_bytes", "16", "exact counts need fewer bytes"),
        ("count_min 512×4", "128", "to_reference_high", "-0.3", "no ranking that drops beats folding the oldest pair"),
        ("h2o", "128", "to_reference_high", "-0.1", "no ranking that drops beats folding the oldest pair"),
        ("streaming", "128", "to_reference_low", "-0.1", "folding is better than dropping"),
    ],
)
def test_tables_that_say_the_contrary_of_a_sentence_are_refused(
    changed: Callable[..., Tables], cell: str, cap: str, column: str, value: str, sentence: str
) -> None:
    with pytest.raises(NotSoError, match=sentence):
        readme.rewritten(PAGE, changed(cell, column, cap, value))


@pytest.mark.parametrize(
    ("cell", "cap", "column", "value", "sentence"),
    [
        ("window scope=head store=k8v4", "1152", "difference", "9", "about half of what an eighth"),
        ("window scope=head store=int4", "1536", "difference_low", "0.1", "4 bits throughout are worse"),
        ("window scope=head store=int8", "896", "difference", "9", "about half of what an eighth"),
        ("clairvoyant scope=head store=float16", "512", "difference", "-0.1", "lose more than the window"),
        ("window scope=head store=k8v4", "1152", "difference", "0.2", "8 bits throughout are better"),
        ("streaming scope=head store=float16", "512", "difference", "9", "the first four pairs makes no difference"),
        ("window scope=head store=float16", "512", "to_reference_low", "0.1", "nowhere surely better"),
        ("window scope=head store=k8v4", "1152", "to_reference_high", "0.1", "nowhere else"),
        ("window aggregate_turned scope=head store=float16", "512", "to_reference_high", "0.1", "turning helps"),
        ("exact aggregate_turned scope=head store=float16", "512", "to_reference_low", "0.1", "turning is not told"),
        ("window aggregate_values scope=head store=float16", "512", "to_reference_low", "-0.1", "values alone"),
    ],
)
def test_rotary_tables_that_say_the_contrary_of_a_sentence_are_refused(
    changed: Callable[..., Tables], cell: str, cap: str, column: str, value: str, sentence: str
) -> None:
    with pytest.raises(NotSoError, match=sentence):
        rotary.every(changed(cell, column, cap, value))


@pytest.mark.parametrize(
    ("cell", "cap", "column", "value", "sentence"),
    [
        (centred.FOUR, "384", "to_reference_high", "0.1", "less their mean are better in each bounded cache"),
        ("int4 centred=True", "", "difference", "4", "all pairs in 4 bits lose"),
        (centred.FOUR, "384", "undercut_by", "0123456789", "nothing undercuts 384 pairs"),
        ("h2o store=int4 centred=True", "384", "undercut_by", "none", "folding is better than counts"),
    ],
)
def test_tables_of_keys_less_their_mean_that_say_the_contrary_are_refused(
    changed: Callable[..., Tables], cell: str, cap: str, column: str, value: str, sentence: str
) -> None:
    with pytest.raises(NotSoError, match=sentence):
        centred.every(changed(cell, column, cap, value))


@pytest.mark.parametrize(
    ("cell", "cap", "column", "value", "sentence"),
    [
        ("streaming scope=head store=k8v4 centred=True", "1152", "to_reference_low", "-0.3", "change nothing"),
        ("streaming scope=head store=int4 centred=True", "1536", "to_reference_high", "0.1", "they help 4 bits"),
        ("streaming scope=head store=int4 centred=True", "1536", "difference", "0.1", "4 bits are worse all the same"),
        ("h2o store=k8v4", "1152", "to_window_low", "-0.1", "no ranking in few bits"),
        ("count_min 512×4 scope=head store=k8v4", "1152", "to_window", "-0.1", "no ranking in few bits"),
        ("streaming scope=head store=k8v4", "1152", "to_window_high", "0.3", "the first four pairs make no difference"),
        ("streaming scope=head store=int8", "1792", "difference", "0.9", "8 bits are better than 8 and 4"),
        ("streaming scope=head store=k8v4", "2304", "difference_high", "2.1", "a quarter less than 2%"),
    ],
)
def test_tables_of_few_bits_that_say_the_contrary_are_refused(
    changed: Callable[..., Tables], cell: str, cap: str, column: str, value: str, sentence: str
) -> None:
    with pytest.raises(NotSoError, match=sentence):
        rotary.bits(changed(cell, column, cap, value))


@pytest.mark.parametrize(
    ("column", "value", "sentence"),
    [
        ("difference", "9.9", "what knows nothing loses no more"),
        ("to_exact_high", "0.1", "better than exact counts on library text"),
        ("to_exact_low", "0.1", "not told apart on WikiText-2"),
    ],
)
def test_tables_of_sketches_of_queries_that_say_the_contrary_are_refused(
    changed: Callable[..., Tables], column: str, value: str, sentence: str
) -> None:
    with pytest.raises(NotSoError, match=sentence):
        race.every(changed("race_queries 512×4 scope=head store=float16", column, "128", value))


@pytest.mark.parametrize(
    ("cell", "now", "sentence"),
    [
        ("race_queries 512×4 scope=head store=float16", 0.2, "knows nothing"),
        ("race_queries 32×16 scope=head store=float16", 0.3, "know more, step by step"),
        ("race_queries 8×64 scope=head store=float16 centred=True", 0.5, "about 0.3"),
    ],
)
def test_a_diagnosis_that_says_the_contrary_is_refused(
    monkeypatch: pytest.MonkeyPatch, cell: str, now: float, sentence: str
) -> None:
    tables = Tables(ROOT / "results")
    known = race.known(tables)
    monkeypatch.setattr(race, "known", lambda _: known | {("wikitext", cell): now})
    with pytest.raises(NotSoError, match=sentence):
        race.every(tables)


@pytest.mark.parametrize(
    ("cell", "cap", "sentence"),
    [
        ("count_min 512×4 scope=head store=float16", "128", "each cache in float16 that ranks is undercut"),
        ("streaming aggregate scope=head store=k8v4", "288", "what the front page says to use"),
    ],
)
def test_tables_of_what_is_undercut_that_say_the_contrary_are_refused(
    changed: Callable[..., Tables], cell: str, cap: str, sentence: str
) -> None:
    now = "none" if "float16" in cell else "0123456789"
    with pytest.raises(NotSoError, match=sentence):
        front.fronts(changed(cell, "undercut_by", cap, now))


@pytest.mark.parametrize(
    ("cap", "cell", "task", "column", "value", "sentence"),
    [
        (4096, "full", "passkey_4096", "value", "0.8", "the full cache answers all"),
        (64, "exact", "kv_4096", "value_low", "0.5", "64 and 256 pairs answer"),
        (1024, "exact", "needles_4096", "to_window_low", "0.1", "no ranking is surely better"),
        (1024, "count_min 512×4", "needles_4096", "to_window_high", "0.1", "the sketch is worse"),
        (2304, rotary.WINDOW, "kv_2048", "value", "0.9", "pairs in few bits answer all"),
        (1024, "exact", "kv_4096", "value", "0.9", "more than twice the pairs"),
    ],
)
def test_planted_facts_that_say_the_contrary_of_a_sentence_are_refused(
    cap: int, cell: str, task: str, column: str, value: str, sentence: str
) -> None:
    cells = rotary.planted(Tables(ROOT / "results"))
    rotary.hold_facts(cells)
    cells[cap, cell][task][column] = value
    with pytest.raises(NotSoError, match=sentence):
        rotary.hold_facts(cells)


def test_tables_without_a_cell_are_refused_by_its_name(changed: Callable[..., Tables]) -> None:
    with pytest.raises(NotSoError, match="no h2o store=float16 at cap 128"):
        front.table(changed("h2o store=float16", "cell", "128", "another"))


TRIPLE = re.compile(r"([+-]?\d+(?:\.\d+)?)(%?)\s+\[([+-]?\d+(?:\.\d+)?),\s+([+-]?\d+(?:\.\d+)?)\]")


def test_every_interval_that_is_told_in_words_stands_in_a_table() -> None:
    """Of docs/findings.md, by section: in a table that it links to, or in one of the front page's. Signs may be turned,
    for what one cell gains another loses, and a perplexity may be told as a ratio."""
    page = BLOCK.sub("", (ROOT / "docs" / "findings.md").read_text(encoding="utf-8"))
    missing, found = [], 0
    for section in page.split("\n## "):
        known: dict[str, list[list[float]]] = {"": [], "%": []}
        for folder in {"tasks", "tasks-real", *re.findall(r"results/([\w-]+)/leaderboard", section)}:
            with (ROOT / "results" / folder / "leaderboard.csv").open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    for column in ("value", "difference", "to_window", "to_exact", "to_reference", "undercut", "way"):
                        if not row[f"{column}_low"]:
                            continue
                        ends = [float(row[column + end]) for end in ("", "_low", "_high")]
                        if column == "way":
                            ends = [100 * number for number in ends]
                        known["" if column == "value" else "%"].append(ends)
                        if column == "difference":
                            known[""].append([1 + number / 100 for number in ends])
        known["%"] += [[-value, -high, -low] for value, low, high in known["%"]]
        for told in TRIPLE.finditer(section):
            found += 1
            value, unit, low, high = told.groups()
            off = [(float(one), 0.5 * 10.0 ** -len(one.partition(".")[2]) + 1e-9) for one in (value, low, high)]
            if not any(all(abs(a - b) <= e for a, (b, e) in zip(row, off, strict=True)) for row in known[unit]):
                missing.append(told[0])
    assert found > 40
    assert missing == []


def test_the_shares_of_tokens_that_meet_no_bound_are_those_of_the_text() -> None:
    """Of the tokens that are scored, those that stand among the first so many of their window."""
    task = TaskManager(
        include_path=str(ROOT / "tasks"), include_defaults=False, metadata={"pretrained": "bundled"}
    ).load(["stdlib_text"])["tasks"]["stdlib_text"]
    tokenizer = AutoTokenizer.from_pretrained(bundled.path())
    places: list[int] = []
    for document in task.test_docs():
        tokens = tokenizer(task.doc_to_target(document))["input_ids"]
        for window in get_rolling_token_windows(tokens, 0, 1024, 1):
            context, scored = make_disjoint_window(window)
            read = len(context) + len(scored) - 1
            places += range(read - len(scored), read)
    said = re.search(
        r"in the library text (a tenth) of all tokens at (128) pairs, (a fifth) at (288) and (almost half) at (576)",
        PAGE,
    )
    assert said
    for words, cap in zip(said.groups()[::2], said.groups()[1::2], strict=True):
        share = sum(place < int(cap) for place in places) / len(places)
        assert share == pytest.approx({"a tenth": 0.1, "a fifth": 0.2, "almost half": 0.45}[words], abs=0.025)
