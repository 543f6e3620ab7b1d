import json
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from sketch_eval.errors import UsageError
from sketch_eval.leaderboard import figures, page, static, tidy
from sketch_eval.leaderboard.row import Row, frame
from sketch_eval.leaderboard.write import write_page

MIB = 2**20
NAN = float("nan")
NASTY = "</script><img src=x onerror=alert(1)> {{data}} & 'quoted' \"twice\""
COMMAND = "lm_eval --model sketch_gpt2 --model_args pretrained=bundled"
CHROMIUM, DRIVER = shutil.which("chromium"), "/usr/bin/chromedriver"


def row(
    cell: str,
    cap: float = 64,
    value: float = 1.0,
    kind: str = "sketch",
    task: str = "text",
    metric: str = "word_perplexity",
    up: bool = False,
    total: int = MIB,
    **more: Any,
) -> Row:
    """A row that bound; ``value`` with an interval of 2%, 5% over the full cache's with one of 4 to 6%."""
    width, depth = map(float, match.groups()) if (match := re.search(r"(\d+)×(\d+)", cell)) else (NAN, NAN)
    defaults: dict[str, Any] = {
        "row": f"{zlib.crc32(repr((cell, cap, task, metric)).encode()):010x}", "cell": cell, "kind": kind, "cap": cap,
        "importance": "count_min" if kind == "sketch" else "", "scope": "layer", "item": "position",
        "strategy": "aggregate" if "aggregate" in cell else "topk",
        "topk": float(match[1]) if (match := re.search(r"topk(\d+)", cell)) else NAN, "width": width, "depth": depth,
        "decay": 0.95, "conservative": "False", "normalize": "none", "sinks": "4", "recent": "0.5",
        "seeds": "0", "task": task, "metric": metric, "higher_is_better": up, "unit": "percent",
        "needle_depth": NAN, "documents": 60,
        "value": value, "value_low": value * 0.98, "value_high": value * 1.02, "difference": 5.0, "difference_low": 4.0,
        "difference_high": 6.0, "to_window": 3.0, "to_window_low": 2.0, "to_window_high": 4.0, "to_exact": NAN,
        "to_exact_low": NAN, "to_exact_high": NAN, "to_reference": NAN, "to_reference_low": NAN,
        "to_reference_high": NAN, "spread_low": NAN, "spread_high": NAN, "binding": 1.0,
        "bound": True, "same_as": "",
        "kv_bytes": total, "sketch_bytes": 4096, "total_bytes": total, "full_bytes": 36 * MIB, "saving": 0.9,
        "command": f"{COMMAND},max_cache_size={cap} --tasks {task}",
    }  # fmt: skip
    return Row(**(defaults | more))


def sweep() -> pd.DataFrame:
    """The reference grid (docs/design.md §7): two tasks, an accuracy at four depths, and cells that bound nothing."""
    rows = []
    metrics = [
        ("wikitext", "word_perplexity", False, 37.4), ("wikitext", "byte_perplexity", False, 1.97),
        ("wikitext", "bits_per_byte", False, 0.98), ("recall", "acc", True, 0.9),
        ("lambada", "acc", True, 0.3256), ("lambada", "perplexity", False, 40.0),
    ]  # fmt: skip
    depths = [("recall", f"acc_depth_{int(100 * at)}", True, 0.9) for at in (0, 0.25, 0.5, 0.75)]
    sizes, strategies = list(product((128, 256, 512, 1024), (2, 4, 6))), ("topk32", "topk64", "topk128", "aggregate")
    cells = [(f"count_min {w}×{d} {strategy}", w, d, "sketch") for strategy, (w, d) in product(strategies, sizes)]
    cells += [(name, 64, 0, "control") for name in ("window", "streaming", "random", "tova", "knorm", "h2o", "exact")]
    for i, (task, metric, up, best) in enumerate(metrics + depths):
        at = float(metric.rpartition("_")[2]) / 100 if "_depth_" in metric else NAN
        shared: dict[str, Any] = {"task": task, "metric": metric, "up": up, "needle_depth": at}
        none: dict[str, Any] = {"bound": False, "binding": 0.0, "difference": 0.0}
        rows.append(row("full", NAN, best, "full", total=36 * MIB, sketch_bytes=0, saving=0.0, **none, **shared))
        for (j, (cell, w, d, kind)), cap in product(enumerate(cells), (64, 128, 256)):
            loss = (1 + (j * 7 + i * 5) % 13 / 20) * (1 + 20 / w) * 8 / cap * (0.6 if "aggregate" in cell else 1)
            bytes_: dict[str, Any] = {
                "kv_bytes": cap * 36864,
                "sketch_bytes": 48 * w * d,
                "total": cap * 36864 + 48 * w * d,
            }
            if task == "lambada" and cap >= 128:
                rows.append(row(cell, cap, best, kind, **none, **bytes_, **shared))
            else:
                value = best * (1 - loss if up else 1 + loss)
                change: dict[str, Any] = {"difference": 100 * (value / best - 1)}
                if metric.startswith("acc"):
                    change = {"unit": "points", "difference": 100 * (value - best)}
                rows.append(row(cell, cap, value, kind, **change, **bytes_, **shared))
    return frame(rows)


ABOUT = {
    "name": "GPT-2 on the reference grid",
    "description": "GPT-2 (124M) with a bounded cache: 144 sketches and seven controls at three caps.",
    "command": "sketch-eval leaderboard results/reference",
    "model": {"pretrained": "gpt2", "fingerprint": "9f3c2a17d0be", "dtype": "float32"},
    "versions": {"sketch_eval": "0.1.0", "lm_eval": "0.4.13"},
    "commit": None,
    "tasks": {
        task: {"documents": 60, "fingerprint": "d41d8cd98f", "primary": metric}
        for task, metric in (("wikitext", "word_perplexity"), ("recall", "acc"), ("lambada", "acc"))
    },
    "notes": ["LAMBADA's passages are some eighty tokens: a cap of 128 binds almost none."],
}


def test_pareto_front() -> None:
    rows = [
        row("full", NAN, 10.0, "full", total=100, bound=False),
        row("a", value=30.0, total=10),
        row("b", value=30.0, total=12),  # as good as a, at more bytes
        row("window", value=20.0, kind="control", total=20),
        row("c", value=25.0, total=20),  # as many bytes as window, and worse
        row("d", value=10.0, total=15, bound=False),  # the full cache's value, not its own
        row("e", value=10.0, total=90),
    ]
    assert tidy.pareto(frame(rows))["cell"].tolist() == ["a", "window", "e"]
    assert tidy.pareto(frame(rows).assign(higher_is_better=True))["cell"].tolist() == ["a"]


def test_lines_are_means_of_what_bound() -> None:
    rows = [
        row("count_min 128×2 topk32", value=2.0),
        row("count_min 512×2 topk32", value=4.0),
        row("count_min 512×4 topk32", value=99.0, bound=False),
        row("window", value=3.0, kind="control"),
        row("window", 128, value=1.0, kind="control", bound=False),
        row("full", NAN, value=1.0, kind="full", bound=False),
    ]
    found = tidy.by_cap(frame(rows)).set_index(["family", "cap"])
    assert found.loc[("count_min topk32", 64), ["value", "low", "high", "cells"]].tolist() == [3.0, 2.0, 4.0, 2]
    ends = pytest.approx([3.0, 3.0 / 1.05 * 1.04, 3.0 / 1.05 * 1.06, 1])
    assert found.loc[("window", 64), ["value", "low", "high", "cells"]].tolist() == ends
    assert found["bound"].tolist() == [True, True, False]
    assert "full" not in found.index.get_level_values("family")


def test_bars_are_of_the_paired_difference_and_of_the_score_where_there_is_none() -> None:
    rows = [
        row("a", value=210.0),
        row("b", value=0.25, unit="points", difference=-50.0, difference_low=-60.0, difference_high=-40.0),
        row("c", value=5.0, difference=NAN, difference_low=NAN, difference_high=NAN),
    ]
    found = tidy.paired(frame(rows))
    assert found["low"].tolist() == pytest.approx([208.0, 0.15, 4.9])
    assert found["high"].tolist() == pytest.approx([212.0, 0.35, 5.1])


def test_a_cell_far_from_all_others_does_not_hide_what_they_differ_by() -> None:
    changes = {**{name: 4.0 + i for i, name in enumerate("abcdef")}, "far": 900.0, "none": NAN}
    rows = [row(cell, difference=change) for cell, change in changes.items()]
    rows += [row(cell, 128, difference=7.0) for cell in "abc"] + [row("far", 128, difference=9.0)]
    found = tidy.by_cell(frame([*rows, row("full", NAN, kind="full", difference=0.0)]))
    assert found["cell"].tolist() == [*"abcdef", "far", *"abc", "far"]
    assert found.loc[found["off"], "cap"].tolist() == [64]  # at 128 it is one of few that are not alike
    assert 9 < found["shown"].iloc[6] < 900
    assert found["shown"][~found["off"]].equals(found["difference"][~found["off"]])


def test_needle_depths_of_metrics_and_of_tasks() -> None:
    depths = (0.0, 0.25, 0.75)
    shared: dict[str, Any] = {"kind": "control", "up": True}
    rows = [row("window", task="kv", metric="acc", **shared)]
    for at in depths:
        rows.append(row("window", task="kv", metric=f"acc_depth_{100 * at:.0f}", needle_depth=at, **shared))
        rows.append(row("window", task=f"recall_depth_{100 * at:.0f}", metric="acc", needle_depth=at, **shared))
    found = {key: tuple(group["needle_depth"]) for key, group in tidy.needles(frame(rows)).items()}
    assert found == {("kv", "acc"): depths, ("recall_depth", "acc"): depths}
    assert tidy.choices(frame(rows)) == [("kv", "acc")] + [(f"recall_depth_{100 * at:.0f}", "acc") for at in depths]


def test_many_families_can_be_told_apart() -> None:
    sketches = [row(f"count_min 128×2 decay={i}") for i in range(30)]
    style = figures.styles(frame(sketches + [row(f"control {i}", kind="control") for i in range(30)]))
    assert len(style) == len({look[:2] for look in style.values()}) == 60


def test_a_heat_map_keeps_grey_what_did_not_bind() -> None:
    rows = frame([row(f"count_min {width}×2", cap, bound=cap == 64) for width in (128, 256) for cap in (64, 128)])
    figure = figures.plots(rows, "word_perplexity", figures.styles(rows))["sizes"]
    axis = {trace.text[0]: trace.coloraxis for trace in figure.data}
    assert axis == {"1.000": "coloraxis", "= full": "coloraxis2"}
    assert {colour for _, colour in figure.layout.coloraxis2.colorscale} == {figures.IDLE}


def test_a_plot_without_data_is_left_out() -> None:
    one = frame([row("count_min 128×2 topk32"), row("window", kind="control")])
    assert set(figures.plots(one, "word_perplexity", figures.styles(one))) == {"bytes", "cells"}
    text = page.page(one, ABOUT)
    assert 'data-plot="bytes"' in text
    assert not any(f'data-plot="{name}"' in text for name in ("caps", "sizes", "depths"))
    full = frame([row("full", NAN, kind="full", bound=False)])
    assert figures.plots(full, "word_perplexity", {}) == {}


def test_a_difference_without_an_interval_shows_none() -> None:
    table = page.table(frame([row("a", to_window_low=NAN, to_window_high=NAN)]))
    shown = dict(zip((column["key"] for column in table["columns"]), table["rows"][0], strict=True))
    assert (shown["to_window"], shown["difference"]) == (["+3.0%", 3.0], ["+5.0% [+4.0, +6.0]", 5.0])
    assert "to_exact" not in shown


def test_a_cell_that_did_not_bind_shows_no_loss_of_its_own() -> None:
    window = row("window", kind="control", bound=False, difference=0.0)
    table = page.table(frame([row("full", NAN, kind="full", bound=False), window]))
    shown = dict(zip((column["key"] for column in table["columns"]), table["rows"][1], strict=True))
    assert (shown["binding"], shown["difference"]) == ([page.NOT_BOUND, None], ["= full", None])
    assert shown["value"] == ["1.000 [0.9800, 1.020]", None]  # it ranks last, not beside the full cache
    assert table["marks"] == ["full", "unbound"]


def without_libraries(text: str) -> str:
    """The page without the three libraries that are embedded in it."""
    for element in re.findall(r"<script>.*?</script>|<script type=\"text/plain\".*?</script>", text, re.DOTALL):
        text = text.replace(element, "")
    return text


def data_of(text: str) -> dict[str, Any]:
    """What a page's table and plots are drawn from."""
    found = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_page_asks_nothing_of_the_network_and_injects_nothing() -> None:
    about = {**ABOUT, "name": NASTY, "description": NASTY, "notes": [NASTY], "command": NASTY}
    rows = frame([row(NASTY), row("window", kind="control", task=NASTY, metric=NASTY, command=NASTY)])
    text = without_libraries(page.page(rows, about))
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//|@import|url\(\s*["']?(https?:)?//""", text)
    assert "<img" not in text
    data = data_of(text)
    assert data["details"][0]["cell"] == NASTY
    assert all("<" not in cell for cells in data["rows"] for cell in cells if isinstance(cell, str))


def test_a_page_is_made_of_the_tables_alone(finished: Path, tmp_path: Path) -> None:
    """What is committed is enough for it: the same page as a sweep wrote, but for the times."""
    shutil.copy(finished / "leaderboard.json", tmp_path)
    made = write_page(tmp_path).read_text()
    data = [data_of(text) for text in (made, (finished / "leaderboard.html").read_text())]
    assert data[0]["details"] == data[1]["details"]
    assert data[0]["plots"] == data[1]["plots"]
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        p.name for p in (finished / "figures").iterdir()
    }
    assert "![bytes](bytes.png)" in (finished / "leaderboard.md").read_text()
    assert (finished / "bytes.png").stat().st_size > 1000
    with pytest.raises(UsageError, match=r"holds no leaderboard\.json"):
        write_page(tmp_path / "nowhere")
    (tmp_path / "leaderboard.json").write_text("{}")
    with pytest.raises(UsageError, match="is no leaderboard that"):
        write_page(tmp_path)


def test_static_files_are_the_same_each_time(tmp_path: Path) -> None:
    rows = sweep()
    rows = rows[(rows["task"] == "recall")]
    first, second = (static.write(tmp_path / name, rows) for name in "ab")
    assert {path.suffix for path in first} == {".png", ".svg"}
    assert [path.name for path in first] == [path.name for path in second]
    assert len({path.stem.split("-")[0] for path in first}) == 5
    assert all(one.read_bytes() == two.read_bytes() for one, two in zip(first, second, strict=True))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    if CHROMIUM is None or not shutil.which(DRIVER):
        pytest.skip("no chromium with chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    flags = """headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking
        disable-component-update disable-sync disable-dev-shm-usage window-size=1280,900""".split()
    flags += ["host-resolver-rules=MAP * ~NOTFOUND", f"user-data-dir={tmp_path_factory.mktemp('chromium')}"]
    for flag in flags:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def until(browser: webdriver.Chrome, seen: Callable[[], object]) -> None:
    """Wait for ``seen()``: DataTables sorts, and the page redraws, some time after the click that asks for it."""
    WebDriverWait(browser, 30).until(lambda _: seen())


def load(browser: webdriver.Chrome, path: Path) -> None:
    browser.get(path.as_uri())
    until(browser, lambda: browser.execute_script("return document.documentElement.dataset.ready"))


@pytest.fixture(scope="module")
def opened(browser: webdriver.Chrome, tmp_path_factory: pytest.TempPathFactory) -> webdriver.Chrome:
    """The page of a whole sweep, open in a browser without a network."""
    rows = sweep()
    timings = rows[["row"]].assign(tokens_per_second=range(len(rows)))
    path = page.write(tmp_path_factory.mktemp("page"), rows, ABOUT, timings)
    browser.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    load(browser, path)
    return browser


def column(browser: webdriver.Chrome, key: str) -> list[str]:
    """The texts of a column, read at one moment."""
    script = "return Array.from(document.querySelectorAll(arguments[0]), (cell) => cell.innerText)"
    return browser.execute_script(script, f"#cells tbody td.{key}")


def info(browser: webdriver.Chrome) -> int:
    text = browser.execute_script("return document.querySelector('.dt-info').innerText").replace(",", "")
    found = re.search(r"of (\d+) entries", text)
    assert found is not None
    return int(found[1])


def test_table_sorts_and_filters(opened: webdriver.Chrome) -> None:
    first = [float(text.split()[0]) for text in column(opened, "value")]
    assert first == sorted(first)  # the first task's primary metric, a perplexity, best first
    assert len(first) == 15
    header = opened.find_element(By.CSS_SELECTOR, "#cells thead th.total_bytes")
    header.click()
    until(opened, lambda: header.get_attribute("aria-sort") == "ascending")
    sizes = [float(text.replace(",", "")) for text in column(opened, "total_bytes")]
    assert sizes == sorted(sizes)
    header.click()
    until(opened, lambda: header.get_attribute("aria-sort") == "descending")
    assert float(column(opened, "total_bytes")[0].replace(",", "")) == 36 * 1024
    everything = info(opened)
    Select(opened.find_element(By.NAME, "cap")).select_by_visible_text("128")
    at_cap = info(opened)
    opened.find_element(By.NAME, "search").send_keys("aggregate")
    assert (everything, at_cap, info(opened)) == (166, 56, 12)  # the full cache stands beside each cap
    assert set(column(opened, "cap")) == {"128"}
    assert set(column(opened, "to_window")) == {"+3.0% [+2.0, +4.0]"}
    opened.find_element(By.CSS_SELECTOR, "#cells td.row button").click()
    assert COMMAND in opened.find_element(By.CSS_SELECTOR, ".details pre").text
    opened.find_element(By.CSS_SELECTOR, "#filters button").click()
    until(opened, lambda: info(opened) == len(sweep()))
    Select(opened.find_element(By.NAME, "task")).select_by_visible_text("lambada")
    Select(opened.find_element(By.NAME, "cap")).select_by_visible_text("256")
    assert set(column(opened, "binding")) == {page.NOT_BOUND, "baseline"}


def test_plots_are_drawn(opened: webdriver.Chrome) -> None:
    drawn = """return Object.fromEntries([...document.querySelectorAll("figure[data-plot]")].map((figure) =>
        [figure.dataset.plot, figure.querySelectorAll(".point, .hm image, .heatmap-label").length]))"""
    until(opened, lambda: all(opened.execute_script(drawn).values()))
    marks = opened.execute_script(drawn)
    assert set(marks) == set(page.CAPTIONS)
    assert all(count > 10 for count in marks.values()), marks
    Select(opened.find_element(By.ID, "choice")).select_by_visible_text("lambada: acc")
    legend = "return document.querySelector('[data-plot=bytes] .legend')?.textContent ?? ''"
    until(opened, lambda: figures.UNBOUND in opened.execute_script(legend))
    assert "higher is better" in opened.execute_script(legend.replace(".legend", ".ytitle"))


def test_reads_on_a_phone_and_in_the_dark(opened: webdriver.Chrome) -> None:
    look = """const style = (selector, name) => getComputedStyle(document.querySelector(selector))[name];
        return [style("body", "backgroundColor"), style(".plot .xtick text", "fill"), style("#cells td", "color")]"""
    light = opened.execute_script(look)
    media = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    until(opened, lambda: not set(light) & set(opened.execute_script(look)))
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    sizes = """return Array.from(document.querySelectorAll(arguments[0]),
        (box) => [box.scrollWidth, box.clientWidth, box.clientHeight])"""
    # Plots follow the width a moment after the window has it; then only the table is wider, in a box of its own.
    until(opened, lambda: [box[:2] for box in opened.execute_script(sizes, "html")] == [[390, 390]])
    assert all(inner < 390 and high > 300 for _, inner, high in opened.execute_script(sizes, ".plot"))
    [(wide, inner, _)] = opened.execute_script(sizes, ".dt-layout-table > div")
    assert wide > inner


def test_no_errors_in_the_browser(opened: webdriver.Chrome) -> None:
    assert [entry for entry in opened.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_labels_inject_nothing_in_the_browser(browser: webdriver.Chrome, tmp_path: Path) -> None:
    rows = frame([row(NASTY, cap) for cap in (64, 128)] + [row("full", NAN, kind="full", bound=False)])
    about = {**ABOUT, "name": NASTY, "notes": [NASTY]}
    load(browser, page.write(tmp_path, rows, about))
    browser.find_element(By.CSS_SELECTOR, "#cells td.row button").click()
    assert browser.execute_script("return document.querySelectorAll('img').length") == 0
    assert browser.find_element(By.TAG_NAME, "h1").text == " ".join(NASTY.split())
    assert NASTY in browser.find_element(By.CSS_SELECTOR, "#cells td.cell").text
