"""How long a leaderboard's page takes to open: every folder of `results/`, in a real browser.

    python benchmarks/page.py [--rounds 5] [--output benchmarks/page.md]

Milliseconds from the start of the navigation to the moment at which the page says that it is drawn, table and pictures,
read from a file with no network and nothing cached; and the file's size. It needs Chromium with its driver
(`apt-get install chromium chromium-driver`).
"""

from __future__ import annotations

import platform
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

from sketch_eval.leaderboard.write import write_page

RESULTS = Path(__file__).parents[1] / "results"
WIDTHS = (1400, 500)

NOTE_THE_MOMENT = """
new MutationObserver(() => {
  if (document.documentElement?.dataset.ready && !window.drawnAt) window.drawnAt = performance.now()
}).observe(document, {subtree: true, childList: true, attributes: true})
"""


def open_browser(width: int, profile: str) -> webdriver.Chrome:
    """Chromium without a network or a screen, of a width in pixels."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    flags = "headless=new no-sandbox disable-gpu no-first-run disable-background-networking disable-dev-shm-usage"
    for flag in [*flags.split(), f"window-size={width},900", f"user-data-dir={profile}"]:
        options.add_argument(f"--{flag}")
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": True})
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": NOTE_THE_MOMENT})
    return browser


def opening(browser: webdriver.Chrome, page: Path) -> float:
    """Milliseconds that it takes to open a page."""
    browser.get("about:blank")
    browser.get(page.as_uri())
    return float(WebDriverWait(browser, 60).until(lambda _: browser.execute_script("return window.drawnAt")))


def main(
    rounds: Annotated[int, typer.Option(help="times that each page is opened")] = 5,
    output: Annotated[Path | None, typer.Option(help="also write the table to this file")] = None,
) -> None:
    """Print the table."""
    rows = [f"| page | KiB | {' | '.join(f'{width} px: median, ms | slowest' for width in WIDTHS)} |"]
    rows += ["| --- | ---: |" + " ---: | ---: |" * len(WIDTHS)]
    with tempfile.TemporaryDirectory() as folder:
        pages = {
            path.name: write_page(path, Path(folder) / path.name) for path in sorted(RESULTS.iterdir()) if path.is_dir()
        }
        taken: dict[str, list[str]] = {name: [] for name in pages}
        for width in WIDTHS:
            browser = open_browser(width, f"{folder}/profile-{width}")
            try:
                version = browser.capabilities["browserVersion"]
                for name, page in pages.items():
                    times = [opening(browser, page) for _ in range(rounds)]
                    taken[name] += [f"{statistics.median(times):.0f}", f"{max(times):.0f}"]
            finally:
                browser.quit()
        rows += [
            f"| {name} | {page.stat().st_size / 1024:,.0f} | {' | '.join(taken[name])} |"
            for name, page in pages.items()
        ]
    where = f"Each page {rounds} times, Chromium {version}, {platform.machine()}."
    text = [where, "", *rows]
    print("\n".join(text))
    if output is not None:
        output.write_text("\n".join(["# Opening a page", "", *text]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
