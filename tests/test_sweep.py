"""Sweeps: which cells are one computation, what is reused, what is on disk after any death, and what a row says."""

from __future__ import annotations

import copy
import csv
import itertools
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import tiny_gpt2
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from typer.testing import CliRunner

from sketch_eval import cli
from sketch_eval.cache import SketchCache
from sketch_eval.config import CacheConfig
from sketch_eval.errors import UsageError
from sketch_eval.leaderboard.rows import Sweep
from sketch_eval.leaderboard.write import write
from sketch_eval.reproduce import find, reproduce
from sketch_eval.sweep.cells import FULL, computation, name, reads
from sketch_eval.sweep.grid import Block, Grid, Task, read
from sketch_eval.sweep.plan import plan
from sketch_eval.sweep.store import Store
from sketch_eval.sweep.sweep import Here, computations, sweep
from sketch_eval.sweep.tasks import choose_metrics
from sketch_eval.sweep.work import Job

GRID = """
description: a try
model: {pretrained: bundled}
tasks:
  kv_256: {limit: 3, metrics: [acc]}
  stdlib_text: {limit: 2}
cells:
  - controls: [window]
    max_cache_size: [64, 256]
  - max_cache_size: 64
    width: 32
    depth: 2
    variants: [{topk: 16}, {topk: 64}, {topk: 100}, {strategy: aggregate}]
seeds: [0, 1]
"""


class Silent:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def begin(self, jobs: list[Job], weights: dict[str, float]) -> None:
        self.seen.append(f"{len(jobs)} to do")

    def done(self, job: Job, seconds: float, reason: str | None) -> None:
        self.seen.append(job.name)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("config") / "mini.yaml"
    path.write_text(GRID)
    return str(path)


@pytest.fixture(scope="module")
def grid(config: str) -> Grid:
    return read(config)


@pytest.fixture(scope="module")
def small(grid: Grid) -> Grid:
    """Of the same tasks: the full cache and two cells."""
    blocks = ({"max_cache_size": 64, "controls": ["window"]}, {"max_cache_size": 64, "strategy": "aggregate"})
    return grid.model_copy(update={"cells": tuple(Block(**block) for block in blocks), "seeds": (0,)})


@pytest.fixture(scope="module")
def crew(grid: Grid) -> Here:
    return Here(grid)


@pytest.fixture(scope="module")
def finished(config: str, grid: Grid, crew: Here, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that nothing disturbed, with its leaderboard."""
    folder = tmp_path_factory.mktemp("finished") / "mini"
    report = sweep(grid, folder, lambda _: crew, Silent(), command=f"sketch-eval sweep {config}")
    assert not report.failed
    write(folder)
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    return Path(shutil.copytree(finished, tmp_path / "mini"))


def tables(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("leaderboard.[mcj]*"))}


# Which cells there are, and which are one computation.


def test_the_reference_grid_has_144_cells_of_132_computations_beside_the_ladder():
    grid = read("seed-144")
    cells = grid.expand()
    sketches = [cell for cell in cells if cell.importance == "count_min"]
    assert len(sketches) == 144
    assert len(cells) == 144 + 3 * 7
    # topk 64 and 128 hide nothing at a cap of 64, nor does 128 at 128: 3, 4 and 4 ways of 12 sketches.
    assert len({computation(cell) for cell in sketches}) == 12 * (3 + 4 + 4)
    assert len(computations(grid)) == 132 + 21 + 1
    plain = read("seed-144-plain").expand()
    assert [cell.model_copy(update={"decay": 1.0}) for cell in sketches] == [
        cell for cell in plain if cell.importance == "count_min"
    ]


@pytest.mark.parametrize(
    "shipped", sorted(path.stem for path in (Path(__file__).parents[1] / "configs").glob("*.yaml"))
)
def test_shipped_grids_can_be_read(shipped: str):
    if not shipped.startswith("lm_eval"):
        assert len(read(shipped).expand()) > 1


FIELDS = {
    "width": st.sampled_from([8, 16]),
    "depth": st.sampled_from([1, 3]),
    "item": st.sampled_from(["position", "token", "key"]),
    "decay": st.sampled_from([0.8, 1.0]),
    "seed": st.sampled_from([0, 5]),
    "topk": st.sampled_from([None, 3, 8, 9]),
}
CELLS = st.builds(
    CacheConfig,
    importance=st.sampled_from(["count_min", "count_sketch", "race", "exact", "last", "recency", "random", "knorm"]),
    max_cache_size=st.just(8),
    sinks=st.just(1),
    **FIELDS,
)


@given(cell=CELLS, others=st.fixed_dictionaries(FIELDS), data=st.data())
@settings(max_examples=60)
def test_cells_of_one_computation_compute_the_same(cell: CacheConfig, others: dict[str, Any], data: st.DataObject):
    """Whatever `computation` drops may be anything: the logits are the same, bit for bit."""
    if not (cell.topk is None or cell.topk >= 8):
        others["topk"] = cell.topk
    elif others["topk"] == 3:
        others["topk"] = None
    unread = {field: value for field, value in others.items() if field == "topk" or not reads(cell, field)}
    twin = cell.model_copy(update=unread)
    assert computation(twin) == computation(cell)
    model = tiny_gpt2(seed=1)
    ids = torch.randint(1, 61, (2, 24), generator=torch.Generator().manual_seed(data.draw(st.integers(0, 9))))
    with torch.no_grad():
        one, other = (model(ids, past_key_values=SketchCache(model.config, c)).logits for c in (cell, twin))
    assert torch.equal(one, other)


def test_names_tell_cells_apart():
    cells = [cell for config in ("seed-144", "ablation", "controls") for cell in read(config).expand()]
    seen: dict[tuple[int | None, str], CacheConfig] = {}
    for cell in (cell.model_copy(update={"seed": 0}) for cell in cells):
        twin = seen.setdefault((cell.max_cache_size, name(cell)), cell)
        assert computation(twin) == computation(cell), name(cell)
    assert name(CacheConfig.parse(importance="exact", decay=1.0)) == "h2o"
    assert name(CacheConfig.parse(importance="recency", sinks=0, strategy="aggregate")) == "window aggregate"
    assert name(CacheConfig.parse(width=128, depth=2, topk=32, item="token")) == "count_min 128×2 topk32 item=token"


# What runs, and what is reused.


def test_a_request_that_fits_has_the_full_caches_answer_and_need_not_be_asked(crew: Here):
    """Requests of 256 tokens, the last of which is not fed, at a cap of 255: all answers are the full cache's."""
    worker = crew._worker
    full = worker.run(Job(FULL, "kv_256"), {})
    for cell in (CacheConfig(max_cache_size=255), CacheConfig(max_cache_size=255, strategy="aggregate")):
        asked, reused = (worker.run(Job(cell, "kv_256"), known) for known in ({}, full.answers))
        assert asked.record["times"]["tokens"] > 0
        assert reused.record["times"]["tokens"] == 0
        assert asked.record["counts"] == reused.record["counts"]
        assert reused.record["counts"]["binding_requests"] == 0
        assert reused.record["values"] == asked.record["values"] == full.record["values"]
        for mine, its, known in zip(asked.samples, reused.samples, full.samples, strict=True):
            assert its["filtered_resps"] == known["filtered_resps"]
            for (one, greedy), (other, its_greedy) in zip(mine["filtered_resps"], its["filtered_resps"], strict=True):
                assert one == pytest.approx(other, abs=1e-4)
                assert greedy == its_greedy
    for cell in (CacheConfig(max_cache_size=254), CacheConfig(max_cache_size=256, topk=254)):
        bound = worker.run(Job(cell, "kv_256"), full.answers).record
        assert bound["times"]["tokens"] > 0
        assert bound["counts"]["binding_requests"] > 0


def test_of_long_and_short_requests_only_those_that_bind_are_computed(crew: Here):
    lm, cell = crew._worker.lm, CacheConfig(max_cache_size=64, topk=48)
    texts = [("import os, sys\n" * count, " def main():\n    pass") for count in (1, 4, 8, 20, 60)]
    requests = [Instance("loglikelihood", {}, text, 0, ("made_up", i, 1)) for i, text in enumerate(texts)]
    lm.take(FULL, {})
    known = lm.loglikelihood(requests)
    answers = dict(lm.answers)
    lm.take(cell, {})
    asked, tokens, counts = lm.loglikelihood(requests), lm.tokens, lm.counts.as_dict()
    lm.take(cell, answers)
    reused = lm.loglikelihood(requests)
    assert 0 < lm.tokens < tokens
    assert lm.counts.as_dict() == counts
    assert 0 < counts["binding_requests"] < len(requests)
    for mine, its, full in zip(asked, reused, known, strict=True):
        assert its[0] == pytest.approx(mine[0], abs=1e-4)
        assert (its == full) == (abs(mine[0] - full[0]) < 1e-4)


def test_each_computation_runs_once_in_lm_evals_layout(finished: Path, grid: Grid):
    runs = [json.loads(path.read_text()) for path in finished.glob("runs/*/run.json")]
    # Per task: full, two windows; topk 16, topk 64 = topk 100 and aggregate, with two seeds each.
    assert len(runs) == 2 * (1 + 2 + 3 * 2)
    for path in finished.glob("runs/*/"):
        (results,), (samples,) = path.rglob("results_*.json"), path.rglob("samples_*.jsonl")
        said = json.loads(results.read_text())
        assert {"results", "configs", "versions", "n-samples", "config", "git_hash", "task_hashes"} <= set(said)
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        record = json.loads((path / "run.json").read_text())
        assert len(lines) == record["documents"] == grid.tasks[record["identity"]["task"]["task"]].limit
        assert said["config"]["sketch_eval"]["cell"] == record["identity"]["cell"]


def test_a_second_sweep_runs_what_is_new_and_nothing_else(copied: Path, grid: Grid, crew: Here):
    again = sweep(grid, copied, lambda _: crew, Silent())
    assert (len(again.ran), len(again.kept)) == (0, 18)
    changed = copy.deepcopy(crew.about)
    changed["tasks"]["kv_256"]["identity"]["fingerprint"] = "other documents"
    others = SimpleNamespace(about=changed, execute=lambda jobs, _: asked.extend(jobs) or [])
    asked: list[Job] = []
    sweep(grid, copied, lambda _: others, Silent())
    assert len(asked) == 9
    assert {job.task for job in asked} == {"kv_256"}


def test_a_run_that_fails_is_recorded_and_the_others_go_on(tmp_path: Path, small: Grid, crew: Here, monkeypatch):
    run = crew._worker.run

    def broken(job: Job, answers: Any) -> Any:
        if (job.cell.strategy, job.task) == ("aggregate", "kv_256"):
            raise ValueError("no luck\ntoday")
        return run(job, answers)

    monkeypatch.setattr(crew._worker, "run", broken)
    report = sweep(small, tmp_path, lambda _: crew, Silent())
    assert (len(report.ran), list(report.failed.values())) == (5, ["ValueError: no luck today"])
    (failure,) = tmp_path.glob("runs/*.failed.json")
    assert "in broken" in json.loads(failure.read_text())["reason"]
    rows, _ = write(tmp_path)
    assert "NOT COMPLETE: 1 runs are missing" in (tmp_path / "leaderboard.md").read_text()
    assert {row.task for row in rows if row.strategy == "aggregate"} == {"stdlib_text"}
    monkeypatch.undo()
    report = sweep(small, tmp_path, lambda _: crew, Silent())
    assert (len(report.ran), len(report.kept), report.failed) == (1, 5, {})
    assert not list(tmp_path.glob("runs/*.failed.json"))


def test_without_the_full_cache_nothing_else_of_a_task_runs(tmp_path: Path, small: Grid, crew: Here, monkeypatch):
    run = crew._worker.run
    monkeypatch.setattr(
        crew._worker, "run", lambda job, known: 1 / 0 if job == Job(FULL, "kv_256") else run(job, known)
    )
    report = sweep(small, tmp_path, lambda _: crew, Silent())
    assert len(report.failed) == 3
    assert {job.task for job in report.failed} == {"kv_256"}
    assert {row.task for row in Sweep(tmp_path).rows()} == {"stdlib_text"}


# What is on disk.


def test_killed_at_any_operation_a_write_is_whole_or_not_there(tmp_path: Path):
    """A child is killed at its first, second, … operation on files; whatever was finished before stays, and so on."""
    store, moments, found = Store(tmp_path), 0, None
    store.lock(wait=False)
    store.release()
    store.write("before", "0" * 64, {"value": 0}, lambda folder: None)

    def files(folder: Path) -> None:
        (folder / "lm").mkdir()
        (folder / "lm" / "results_1.json").write_text("x" * 10_000)

    while found is None:
        moments += 1
        child = os.fork()
        if child == 0:
            try:
                _die_at(moments)
                Store(tmp_path).write("cell", "f" * 64, {"value": 7}, files)
            except BaseException:
                os._exit(1)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        found = store.find("f" * 64)
        assert found is None or store.read(found)["value"] == 7
        assert store.find("0" * 64) is not None
    assert moments > 5
    store.lock(wait=False)
    assert not list(tmp_path.glob("runs/.tmp-*"))
    store.release()


def _die_at(moment: int) -> None:
    """Have this process killed at its given operation on files, from now on."""
    seen = itertools.count(1)

    def count(event: str, _: Any) -> None:
        if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir") and next(seen) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def test_a_damaged_run_is_set_aside_and_run_again(copied: Path, config: str, grid: Grid, crew: Here):
    before = tables(copied)
    first, *_, last = sorted(path.parent for path in copied.glob("runs/*/run.json"))
    full = next(copied.glob("runs/*/answers.json")).parent
    for path in (first / "run.json", full / "answers.json", next(last.rglob("samples_*.jsonl"))):
        path.write_bytes(path.read_bytes()[:100])
    report = sweep(grid, copied, lambda _: crew, Silent(), command=f"sketch-eval sweep {config}")
    assert len(report.ran) == len({first, full, last}) == len(list(copied.glob("runs/.damaged-*")))
    write(copied)
    assert tables(copied) == before


def test_two_sweeps_of_one_folder_do_not_meet(tmp_path: Path, grid: Grid):
    held, let_go = threading.Event(), threading.Event()

    def first() -> None:
        store = Store(tmp_path)
        store.lock(wait=False)
        held.set()
        let_go.wait()
        store.release()

    threading.Thread(target=first).start()
    held.wait()
    with pytest.raises(UsageError, match="another sweep is writing there; give --wait"):
        sweep(grid, tmp_path, _no_model, Silent())
    threading.Timer(0.3, let_go.set).start()
    start = time.monotonic()
    second = Store(tmp_path)
    second.lock(wait=True)
    assert time.monotonic() - start > 0.25
    second.release()


def test_a_full_disk_ends_in_one_line_and_loses_nothing(tmp_path: Path, small: Grid, crew: Here):
    """The limit on a file's size stands for the end of the disk: it is the system that refuses."""
    sizes = resource.getrlimit(resource.RLIMIT_FSIZE)
    watcher = Silent()
    room = iter([10**9, 10**9, 4000])
    begin = watcher.done

    def done(*arguments: Any) -> None:
        begin(*arguments)
        resource.setrlimit(resource.RLIMIT_FSIZE, (next(room), sizes[1]))

    watcher.done = done  # type: ignore[method-assign]
    try:
        with pytest.raises(UsageError, match="every finished run is kept") as caught:
            sweep(small, tmp_path, lambda _: crew, watcher)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, sizes)
    assert "\n" not in str(caught.value)
    report = sweep(small, tmp_path, lambda _: crew, Silent())
    assert (len(report.kept), len(report.ran)) == (3, 3)


def _no_model(_: Grid) -> Here:
    raise AssertionError("a model was asked for")


@pytest.mark.parametrize("place", ["/proc/here", "{}/file", "{}/file/below"])
def test_a_folder_that_cannot_be_written_is_refused_before_a_model_is_loaded(tmp_path: Path, grid: Grid, place: str):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot be written to|is a file"):
        sweep(grid, Path(place.format(tmp_path)), _no_model, Silent())


def test_a_folder_of_another_model_is_refused_before_a_model_is_loaded(finished: Path, grid: Grid, crew: Here):
    other = grid.model_copy(update={"model": grid.model.model_copy(update={"pretrained": "gpt2"})})
    with pytest.raises(UsageError, match="holds runs of another model: pretrained was 'bundled', now 'gpt2'"):
        sweep(other, finished, _no_model, Silent())


# What the tables say.


def test_rows_say_what_lm_eval_says_and_how_it_differs(finished: Path):
    rows = {(row.cell, row.cap, row.task, row.metric): row for row in Sweep(finished).rows()}
    full = next(row for row in rows.values() if (row.kind, row.metric) == ("full", "byte_perplexity"))
    window = rows["window", 64.0, "stdlib_text", "byte_perplexity"]
    (results,) = finished.glob("runs/window-cap64-stdlib_text-*/*/results_*.json")
    assert window.value == pytest.approx(
        json.loads(results.read_text())["results"]["stdlib_text"]["byte_perplexity,none"]
    )
    assert window.difference == pytest.approx(100 * (window.value / full.value - 1))
    assert window.difference_low <= window.difference <= window.difference_high
    assert (window.bound, window.binding, window.documents) == (True, 1.0, 2)
    # The keys and values of 64 tokens, in 4 layers of 256 channels, at 4 bytes.
    assert window.kv_bytes == 2 * 4 * 64 * 256 * 4
    assert window.saving == pytest.approx(1 - window.total_bytes / full.total_bytes)
    fits = rows["window", 256.0, "kv_256", "acc"]
    assert (fits.bound, fits.difference) == (False, 0.0)
    assert "= full" in (finished / "leaderboard.md").read_text()
    assert "max_cache_size=64,importance=recency,sinks=0 --tasks stdlib_text --limit 2" in window.command


def test_seeds_are_averaged_and_their_spread_is_told(finished: Path):
    row = next(
        row for row in Sweep(finished).rows() if (row.cell, row.metric) == ("count_min 32×2 topk16", "byte_perplexity")
    )
    paths = finished.glob("runs/count_min-32x2-topk16-cap64*stdlib_text-*/*/results_*.json")
    each = [json.loads(path.read_text())["results"]["stdlib_text"]["byte_perplexity,none"] for path in paths]
    assert len(each) == 2
    assert (row.seeds, row.spread_low, row.spread_high) == ("0 1", pytest.approx(min(each)), pytest.approx(max(each)))
    assert row.value == pytest.approx(math.sqrt(each[0] * each[1]))


def test_rows_of_one_computation_say_so(finished: Path):
    entries = list(csv.DictReader((finished / "leaderboard.csv").open()))
    shown, same = (
        next(e for e in entries if (e["cell"], e["metric"]) == (f"count_min 32×2 {topk}", "acc"))
        for topk in ("topk64", "topk100")
    )
    assert same["same_as"] == shown["row"] != same["row"]
    assert (same["value"], shown["same_as"]) == (shown["value"], "")


def test_a_row_is_reproduced_from_what_it_records(finished: Path, crew: Here):
    _, about, entry = next(
        find(e["row"], [finished])
        for e in json.loads((finished / "leaderboard.json").read_text())["rows"]
        if (e["cell"], e["metric"]) == ("count_min 32×2 aggregate", "byte_perplexity")
    )
    alone = Here(Grid(**entry["run"]))
    comparison = reproduce(entry, about, lambda _: alone, Silent())
    assert (comparison.verdict, comparison.changed) == ("equal", {})
    moved = {**entry, "value": entry["value"] * (1 + 1e-6)}
    assert reproduce(moved, about, lambda _: alone, Silent()).verdict == "close"
    changed = reproduce({**entry, "value": 9.9}, {**about, "versions": {"torch": "1.0"}}, lambda _: alone, Silent())
    assert changed.verdict == "different"
    assert changed.changed["torch"][0] == "1.0"
    with pytest.raises(UsageError, match="no such row"):
        find("0123456789", [finished])


def test_the_plan_tells_computations_bytes_and_time(grid: Grid, crew: Here, finished: Path):
    lines = plan(grid, crew._worker)
    assert [line.kind for line in lines] == ["full", *["control"] * 2, *["sketch"] * 4]
    assert [line.runs for line in lines] == [1, 1, 1, 2, 2, 0, 2]
    assert lines[5].same_as == 4
    rows = {(row.cell, row.cap): row for row in Sweep(finished).rows()}
    for line in lines[1:]:
        assert line.bytes["steady_bytes"] == rows[line.name, float(line.cap)].total_bytes
    assert lines[5].seconds == 0 < lines[4].seconds


# Bad input.

CELL = "cells: [{max_cache_size: 64}]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: [wikitext]\ncell: []", "cell is not a key (did you mean cells?)"),
        ("tasks: {kv_256: {limits: 3}}\n" + CELL, "tasks.kv_256.limits is not a key (did you mean limit?)"),
        (
            "model: {pretraned: gpt2}\ntasks: [kv_256]\n" + CELL,
            "model.pretraned is not a key (did you mean pretrained?)",
        ),
        (
            "tasks: [kv_256]\ncells: [{max_cash_size: 64}]",
            "max_cash_size is not a field of a cell (did you mean max_cache_size?)",
        ),
        ("tasks: [kv_256]\ncells: []", "cells: give at least one"),
        ("tasks: {}\n" + CELL, "tasks: give at least one"),
        ("tasks: [kv_256]\ncells: [{width: []}]", "width has no values"),
        ("tasks: [kv_256]\ncells: [{controls: [windows]}]", "windows is no control (did you mean window?)"),
        ("tasks: [kv_256]\ncells: [{max_cache_size: [64, 0]}]", "max_cache_size=0: should be greater than"),
        ("tasks: [kv_256]\ncells: [{variants: [{strategy: topl}]}]", "strategy='topl'"),
        ("tasks: [kv_256]\nseeds: [1, 1]\n" + CELL, "each seed once"),
        ("tasks: [kv_256\n", "cannot be read as YAML"),
        ("- 1", "expected a mapping with tasks and cells"),
        (
            "tasks: [kv_265]\nmodel: {pretrained: bundled}\n" + CELL,
            "kv_265 is no task of lm-eval's or of sketch_eval's (did you mean kv_256?)",
        ),
        (
            "tasks: {kv_256: {metrics: [accuracy]}}\nmodel: {pretrained: bundled}\n" + CELL,
            "tasks.kv_256.metrics: accuracy is no metric of it that a table can show",
        ),
    ],
)
def test_bad_grids_are_one_line_before_a_model_is_loaded(tmp_path: Path, text: str, message: str, monkeypatch):
    monkeypatch.setattr("sketch_eval.sweep.work.SweepLM", _no_model)
    (tmp_path / "bad.yaml").write_text(text)
    run = CliRunner().invoke(cli.app, ["sweep", str(tmp_path / "bad.yaml"), "--output", str(tmp_path / "out")])
    assert isinstance(run.exception, UsageError), run.output
    assert message in str(run.exception)
    assert "\n" not in str(run.exception)


def test_a_task_without_a_metric_for_the_table_is_refused():
    task = SimpleNamespace(aggregation=lambda: {"mcc": lambda values: 0.0})
    with pytest.raises(
        UsageError, match="odd has no metric for the tables: mcc; a table can show means and perplexities"
    ):
        choose_metrics("odd", task, Task())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep", "no-such"], "no such file; give a path, or one of"),
        (["sweep", "demo", "--on", "spark"], "on='spark': expected here or ray"),
        (["sweep", "demo", "--address", "x:1"], "address='x:1' goes with --on ray"),
        (["leaderboard", "/nowhere"], "no finished sweep there"),
        (["reproduce", "abc", "--in", "/nowhere"], "no leaderboard.json there"),
    ],
)
def test_bad_commands_are_one_line(arguments: list[str], message: str):
    run = CliRunner().invoke(cli.app, arguments)
    assert isinstance(run.exception, UsageError), run.output
    assert message in str(run.exception)


@pytest.mark.slow
def test_killed_at_twenty_random_moments_a_sweep_ends_in_the_same_tables(finished: Path, config: str, tmp_path: Path):
    """The command line, killed while it loads, runs and writes, over and over, then left to end."""
    command = [str(Path(sys.executable).parent / "sketch-eval"), "sweep", config, "--output", str(tmp_path / "mini")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    rng, kills, before = random.Random(0), 0, set[str]()
    while kills < 20:
        run = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            run.wait(rng.uniform(0.5, 14))
        except subprocess.TimeoutExpired:
            run.kill()
            kills += 1
        run.wait()
        now = {path.parent.name for path in tmp_path.glob("mini/runs/*/run.json")}
        assert before <= now
        before = now
        if len(now) == 18 and rng.random() < 0.5:
            shutil.rmtree(tmp_path / "mini")
            before = set()
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    assert len(list(tmp_path.glob("mini/runs/*/run.json"))) == 18
    assert tables(tmp_path / "mini") == tables(finished)
