"""Sweeps: what runs, what is reused, what a row says, and that it can be had again."""

from __future__ import annotations

import copy
import csv
import json
import math
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from conftest import Silent
from lm_eval.api.instance import Instance

from sketch_eval.commands.reproduce import find, reproduce
from sketch_eval.commands.terminal import leaderboard_table
from sketch_eval.config import CacheConfig
from sketch_eval.errors import UsageError
from sketch_eval.evaluate.tasks import load_tasks
from sketch_eval.evaluate.work import Job
from sketch_eval.grid.cells import FULL
from sketch_eval.grid.grid import Block, Grid, Task, read
from sketch_eval.leaderboard.runs import Sweep
from sketch_eval.leaderboard.tables import choice, versus
from sketch_eval.leaderboard.write import write
from sketch_eval.sweep.run import Here, Outcome, sweep
from sketch_eval.sweep.store import Store, sealed


def test_a_request_that_fits_has_the_full_caches_answer_and_need_not_be_asked(crew: Here) -> None:
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
                assert one == pytest.approx(other, rel=1e-4)  # Rounding; a pair lost is seen in the second digit.
                assert greedy == its_greedy
    for cell in (CacheConfig(max_cache_size=254), CacheConfig(max_cache_size=256, topk=254)):
        bound = worker.run(Job(cell, "kv_256"), full.answers).record
        assert bound["times"]["tokens"] > 0
        assert bound["counts"]["binding_requests"] > 0


def test_of_long_and_short_requests_only_those_that_bind_are_computed(crew: Here) -> None:
    lm, cell = crew._worker.lm, CacheConfig(max_cache_size=64, topk=48)
    texts = [("import os, sys\n" * count, " def main():\n    pass") for count in (1, 4, 8, 20, 60)]
    requests = [Instance("loglikelihood", {}, text, 0, ("made_up", i, 1)) for i, text in enumerate(texts)]
    lm.take(FULL, {})
    known = lm.loglikelihood(requests)
    answers = dict(lm.answers)
    lm.take(cell, {})
    asked, tokens = lm.loglikelihood(requests), lm.tokens
    counts: dict[str, Any] = lm.counts.as_dict()
    lm.take(cell, answers)
    reused = lm.loglikelihood(requests)
    assert 0 < lm.tokens < tokens
    assert lm.counts.as_dict() == counts
    assert 0 < counts["binding_requests"] < len(requests)
    for mine, its, full in zip(asked, reused, known, strict=True):
        assert its[0] == pytest.approx(mine[0], rel=1e-4)
        assert (its == full) == (mine[0] == pytest.approx(full[0], rel=1e-4))


def test_generated_answers_are_reused_where_even_the_longest_fits(tmp_path: Path) -> None:
    """Prompts of some 4 and 40 tokens, with 12 to come: at cap 32 one fits, at topk 24 the same, at cap 8 none."""
    (tmp_path / "said.jsonl").write_text(
        json.dumps({"q": "import os, sys", "a": "import"}) + "\n" + json.dumps({"q": "class A:\n" * 12, "a": "def"})
    )
    task = {
        "task": "said", "dataset_path": "json", "dataset_kwargs": {"data_files": str(tmp_path / "said.jsonl")},
        "test_split": "train", "output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}",
        "generation_kwargs": {"max_gen_toks": 12, "until": ["@@"]}, "metric_list": [{"metric": "exact_match"}],
    }  # fmt: skip
    (tmp_path / "said.yaml").write_text(yaml.safe_dump(task))
    (tmp_path / "grid.yaml").write_text(
        f"model: {{pretrained: bundled}}\ninclude_path: {tmp_path}\ntasks: [said]\n"
        "cells: [{max_cache_size: [8, 32], sinks: 1, variants: [{}, {topk: 24}]}]"
    )
    grid = read(str(tmp_path / "grid.yaml"))
    report = sweep(grid, tmp_path / "out", Here, Silent())
    assert (len(report.ran), report.failed) == (4, {})
    full_row, *rows = Sweep(tmp_path / "out").rows()
    assert full_row.binding == 0
    assert [(row.cap, row.binding) for row in rows] == [(8, 1), (8, 1), (32, 0.5), (32, 0.5)]
    assert [row.same_as for row in rows] == ["", rows[0].row, "", ""]
    assert f"--include_path {tmp_path}" in rows[0].command
    worker = Here(grid)._worker
    full = worker.run(Job(FULL, "said"), {})
    assert sorted(map(type, full.answers.values()), key=str) == [str, str]
    for cell in (CacheConfig(max_cache_size=32, sinks=1, topk=24), CacheConfig(max_cache_size=8, sinks=1)):
        asked, reused = (worker.run(Job(cell, "said"), known) for known in ({}, full.answers))
        assert reused.record["counts"] == asked.record["counts"]
        assert [sample["resps"] for sample in reused.samples] == [sample["resps"] for sample in asked.samples]
        saved = asked.record["times"]["tokens"] - reused.record["times"]["tokens"]
        assert (saved > 0) == (cell.max_cache_size == 32)


def test_metadata_reaches_the_tasks_their_identity_and_the_command(tmp_path: Path, grid: Grid) -> None:
    (tmp_path / "tale.txt").write_text("Call me Ishmael. Some years ago, never mind how long precisely.\n" * 400)
    told = grid.model_copy(update={"metadata": {"text_folder": str(tmp_path)}, "tasks": {"kv_256": Task(limit=1)}})
    tasks = load_tasks(told)
    assert "Ishmael" in tasks["kv_256"].task.instances[0].args[0]
    assert tasks["kv_256"].fingerprint != load_tasks(told.model_copy(update={"metadata": {}}))["kv_256"].fingerprint
    report = sweep(told.model_copy(update={"cells": told.cells[:1]}), tmp_path / "out", Here, Silent())
    assert not report.failed
    row = Sweep(tmp_path / "out").rows()[-1]
    assert json.loads(shlex.split(row.command)[-1]) == {"text_folder": str(tmp_path)}
    write(tmp_path / "out")
    _, about, entry = find(row.row, [tmp_path / "out"])
    assert reproduce(entry, about, Here, Silent()).verdict == "equal"


def test_the_order_of_a_grid_is_the_order_of_its_tables(tmp_path: Path, grid: Grid, crew: Here) -> None:
    """Neither the tasks, nor the metrics, nor the cells of it are in the order of the alphabet."""
    about = copy.deepcopy(crew.about)
    about["tasks"] = dict(reversed(about["tasks"].items()))
    metrics = about["tasks"]["stdlib_text"]["metrics"]
    about["tasks"]["stdlib_text"]["metrics"] = {m: metrics[m] for m in ("word_perplexity", "byte_perplexity")}
    one = grid.model_copy(update={"cells": (Block.model_validate({"max_cache_size": [128, 64], "width": 8}),)})
    turned = SimpleNamespace(about=about, execute=crew.execute)
    sweep(one, tmp_path, lambda _: turned, Silent())
    found = Sweep(tmp_path)
    assert [(row.task, row.metric, row.cap) for row in found.rows() if row.kind == "sketch"] == [
        (task, metric, cap)
        for cap in (128, 64)
        for task, metric in [("stdlib_text", "word_perplexity"), ("stdlib_text", "byte_perplexity"), ("kv_256", "acc")]
    ]
    assert found.description()["tasks"]["stdlib_text"]["primary"] == "word_perplexity"


def test_each_computation_runs_once_in_lm_evals_layout(finished: Path, grid: Grid) -> None:
    runs = [json.loads(path.read_text()) for path in finished.glob("runs/*/run.json")]
    # Per task: full, two windows; topk 24, topk 64 = topk 100 and aggregate, with two seeds each; exact aggregate.
    assert len(runs) == 2 * (1 + 2 + 3 * 2 + 1)
    for path in finished.glob("runs/*/"):
        (results,), (samples,) = path.rglob("results_*.json"), path.rglob("samples_*.jsonl")
        said = json.loads(results.read_text())
        assert {"results", "configs", "versions", "n-samples", "config", "git_hash", "task_hashes"} <= set(said)
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        record = json.loads((path / "run.json").read_text())
        assert len(lines) == record["documents"] == grid.tasks[record["identity"]["task"]["task"]].limit
        assert said["config"]["sketch_eval"]["cell"] == record["identity"]["cell"]


def test_a_second_sweep_runs_what_is_new_and_nothing_else(copied: Path, grid: Grid, crew: Here) -> None:
    again = sweep(grid, copied, lambda _: crew, Silent())
    assert (len(again.ran), len(again.kept)) == (0, 20)
    changed = copy.deepcopy(crew.about)
    changed["tasks"]["kv_256"]["identity"]["fingerprint"] = "other documents"
    asked: list[Job] = []

    def execute(jobs: list[Job], _: object) -> list[tuple[Job, Outcome]]:
        asked.extend(jobs)
        return []

    others = SimpleNamespace(about=changed, execute=execute)
    sweep(grid, copied, lambda _: others, Silent())
    assert len(asked) == 10
    assert {job.task for job in asked} == {"kv_256"}


def test_a_run_that_fails_is_recorded_and_the_others_go_on(
    tmp_path: Path, small: Grid, crew: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    rows = write(tmp_path).rows
    missing = "NOT COMPLETE: 1 runs are missing (count_min 512×4 aggregate cap64 kv_256); run the sweep again."
    assert missing in (tmp_path / "leaderboard.md").read_text()
    assert {row.task for row in rows if row.strategy == "aggregate"} == {"stdlib_text"}
    monkeypatch.undo()
    report = sweep(small, tmp_path, lambda _: crew, Silent())
    assert (len(report.ran), len(report.kept), report.failed) == (1, 5, {})
    assert not list(tmp_path.glob("runs/*.failed.json"))


def test_without_the_full_cache_nothing_else_of_a_task_runs(
    tmp_path: Path, small: Grid, crew: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = crew._worker.run
    monkeypatch.setattr(
        crew._worker, "run", lambda job, known: 1 / 0 if job == Job(FULL, "kv_256") else run(job, known)
    )
    report = sweep(small, tmp_path, lambda _: crew, Silent())
    assert len(report.failed) == 3
    assert {job.task for job in report.failed} == {"kv_256"}
    assert {row.task for row in Sweep(tmp_path).rows()} == {"stdlib_text"}


# What the tables say.


def test_a_groups_mean_is_left_out_until_all_its_parts_are_there(copied: Path) -> None:
    """A mean over the parts that happen to be finished is another number."""
    said = Store(copied).description()
    said["tasks"]["kv_512"] = copy.deepcopy(said["tasks"]["kv_256"])
    said["tasks"]["kv_512"]["identity"]["task"] = "kv_512"
    Store(copied).describe(said)
    written = write(copied)
    assert written.missing.startswith("NOT COMPLETE: 10 runs are missing (full kv_512, window cap64 kv_512, ")
    for tasks, shown in ((written.tasks, False), (["kv_256", "stdlib_text"], True)):
        table = leaderboard_table(written.rows, tasks)
        columns = {str(column.header).split("\n")[0]: list(column.cells) for column in table.columns}
        assert {bool(entry) for entry in columns["kv"]} == {shown}
        assert all(columns["stdlib_text"])


def test_an_unbound_row_is_the_full_caches_number_and_one_that_is_not_is_refused(copied: Path) -> None:
    rows = {(row.cell, row.cap, row.task, row.metric): row for row in Sweep(copied).rows()}
    fits, full = rows["window", 256.0, "kv_256", "acc"], next(r for k, r in rows.items() if k[0] == "full")
    assert not fits.bound
    assert (fits.value, fits.value_low, fits.value_high) == (full.value, full.value_low, full.value_high)
    for row in (fits, full):  # Of nothing to itself there is no interval.
        assert (row.difference, row.difference_low, row.difference_high) == (0, 0, 0)
    (path,) = copied.glob("runs/window-cap256-kv_256-*/run.json")
    record = json.loads(path.read_text())
    record.pop("sha256")
    record["values"]["acc"][0] = 1.0 - record["values"]["acc"][0]
    path.write_text(sealed(record))
    with pytest.raises(UsageError, match="window cap256 kv_256 bound nothing in acc, but its values are not the full"):
        Sweep(copied).rows()


def test_each_row_says_its_difference_to_the_grids_reference(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "mini"))
    said = Store(folder).description()
    said["grid"]["reference"] = {"importance": "exact", "strategy": "aggregate"}
    Store(folder).describe(said)
    write(folder)
    rows = {(row.cell, row.cap, row.metric): row for row in Sweep(folder).rows()}
    reference = rows["exact aggregate", 64.0, "byte_perplexity"]
    window = rows["window", 64.0, "byte_perplexity"]
    assert window.to_reference == pytest.approx(100 * (window.value / reference.value - 1)) != 0
    assert math.isnan(reference.to_reference)
    assert math.isnan(rows["window", 256.0, "acc"].to_reference)
    text = (folder / "leaderboard.md").read_text()
    assert "## stdlib_text: byte_perplexity, against the reference" in text
    assert f"| 64 | window | {choice(window)} |" in text


def test_a_row_that_lost_a_pair_says_that_two_documents_tell_nothing_and_none_does_while_runs_are_missing(
    copied: Path,
) -> None:
    rows = Sweep(copied).rows()
    assert {(row.bound, row.undercut_by) for row in rows} == {(True, "none"), (False, "")}
    row = next(row for row in rows if row.bound and row.metric == "word_perplexity" and not row.same_as)
    assert f"| {row.cap:g} | {row.cell} | not undercut |" in (copied / "leaderboard.md").read_text()
    (path,) = copied.glob("runs/window-cap64-kv_256-*")
    shutil.rmtree(path)
    assert {(row.task, row.bound, row.undercut_by) for row in Sweep(copied).rows() if row.bound} == {
        ("kv_256", True, ""),
        ("stdlib_text", True, "none"),
    }


def test_each_row_says_its_difference_to_its_own_twin(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "mini"))
    said = Store(folder).description()
    said["grid"]["twin"] = {"importance": "exact"}
    Store(folder).describe(said)
    rows = {(row.cell, row.metric): row for row in Sweep(folder).rows() if row.cap == 64}
    folding, exact = rows["count_min 32×2 aggregate", "byte_perplexity"], rows["exact aggregate", "byte_perplexity"]
    assert folding.to_reference == pytest.approx(100 * (folding.value / exact.value - 1)) != 0
    # Its twin, exact scores that drop, is not in the grid.
    assert math.isnan(rows["count_min 32×2 topk24", "byte_perplexity"].to_reference)


def test_rows_say_what_lm_eval_says_and_how_it_differs(finished: Path) -> None:
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
    assert math.isnan(window.to_window)
    sketch = rows["count_min 32×2 topk64", 64.0, "stdlib_text", "byte_perplexity"]
    assert sketch.to_window == pytest.approx(100 * (sketch.value / window.value - 1))
    assert sketch.to_window_low < sketch.to_window < sketch.to_window_high
    primary = rows["count_min 32×2 topk64", 64.0, "stdlib_text", "word_perplexity"]
    assert versus(primary).startswith("window ")
    assert f"| {versus(primary)}" in (finished / "leaderboard.md").read_text()
    folding, exact = (
        rows[cell, 64.0, "stdlib_text", "byte_perplexity"] for cell in ("count_min 32×2 aggregate", "exact aggregate")
    )
    assert folding.to_exact == pytest.approx(100 * (folding.value / exact.value - 1)) != 0
    assert math.isnan(sketch.to_exact)  # the grid has no exact scores that are dropped
    # The keys and values of 64 tokens, in 4 layers of 256 channels, at 4 bytes.
    assert window.kv_bytes == 2 * 4 * 64 * 256 * 4
    assert window.saving == pytest.approx(1 - window.total_bytes / full.total_bytes)
    fits = rows["window", 256.0, "kv_256", "acc"]
    assert (fits.bound, fits.difference) == (False, 0.0)
    assert "= full" in (finished / "leaderboard.md").read_text()
    assert "max_cache_size=64,importance=recency,sinks=0 --tasks stdlib_text --limit 2" in window.command


def test_seeds_are_averaged_and_their_spread_is_told(finished: Path) -> None:
    row = next(
        row for row in Sweep(finished).rows() if (row.cell, row.metric) == ("count_min 32×2 topk24", "byte_perplexity")
    )
    paths = finished.glob("runs/count_min-32x2-topk24-cap64*stdlib_text-*/*/results_*.json")
    each = [json.loads(path.read_text())["results"]["stdlib_text"]["byte_perplexity,none"] for path in paths]
    assert len(set(each)) == 2
    assert (row.seeds, row.spread_low, row.spread_high) == ("0 1", pytest.approx(min(each)), pytest.approx(max(each)))
    assert row.value == pytest.approx(math.sqrt(each[0] * each[1]))


def test_rows_of_one_computation_say_so(finished: Path) -> None:
    entries = list(csv.DictReader((finished / "leaderboard.csv").open()))
    shown, same = (
        next(e for e in entries if (e["cell"], e["metric"]) == (f"count_min 32×2 {topk}", "acc"))
        for topk in ("topk64", "topk100")
    )
    assert same["same_as"] == shown["row"] != same["row"]
    assert (same["value"], shown["same_as"]) == (shown["value"], "")


def test_a_row_is_reproduced_from_what_it_records(finished: Path, crew: Here) -> None:
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


def test_a_row_is_looked_for_among_ones_own_runs_first_and_not_taken_from_two_tables_that_disagree(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    row = json.loads((finished / "leaderboard.json").read_text())["rows"][0]["row"]
    for place in ("results/ablation", "results/demo", "runs/demo"):
        (tmp_path / place).mkdir(parents=True)
        shutil.copy(finished / "leaderboard.json", tmp_path / place)
    assert find(row)[0] == Path("runs/demo/leaderboard.json")
    shutil.rmtree(tmp_path / "runs")
    assert find(row)[0] == Path("results/ablation/leaderboard.json")
    other = tmp_path / "results" / "demo" / "leaderboard.json"
    content = json.loads(other.read_text())
    content["rows"][0]["value"] += 1
    other.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"is in results/ablation/.*, results/demo/.*, with other numbers; say which"):
        find(row)
    assert find(row, [Path("results/demo")])[0] == Path("results/demo/leaderboard.json")
    with pytest.raises(UsageError, match="several rows begin so"):
        find("", [finished])


def test_tables_without_their_runs_are_told_from_no_sweep(copied: Path) -> None:
    (copied / "sweep.json").unlink()
    with pytest.raises(UsageError, match="holds the tables, but not the runs that they were made of"):
        write(copied)
