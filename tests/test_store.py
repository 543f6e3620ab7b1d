"""What is on disk: whole after any death, in nobody's way, and of one model."""

from __future__ import annotations

import itertools
import json
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
from typing import Any

import pytest
from conftest import Silent

from sketch_eval.commands import cli
from sketch_eval.errors import UsageError
from sketch_eval.evaluate.work import Job
from sketch_eval.grid.grid import Grid
from sketch_eval.leaderboard.write import write
from sketch_eval.sweep.run import Here, sweep
from sketch_eval.sweep.store import Store


def tables(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("leaderboard.[mcj]*"))}


def test_killed_at_any_operation_a_write_is_whole_or_not_there(tmp_path: Path) -> None:
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


def test_a_damaged_run_is_set_aside_and_run_again(copied: Path, config: str, grid: Grid, crew: Here) -> None:
    before = tables(copied)
    first, *_, last = sorted(path.parent for path in copied.glob("runs/*/run.json"))
    full = next(copied.glob("runs/*/answers.json")).parent
    for path in (first / "run.json", full / "answers.json", next(last.rglob("samples_*.jsonl"))):
        path.write_bytes(path.read_bytes()[:100])
    report = sweep(grid, copied, lambda _: crew, Silent(), command=f"sketch-eval sweep {config}")
    assert len(report.ran) == len({first, full, last}) == len(list(copied.glob("runs/.damaged-*")))
    write(copied)
    assert tables(copied) == before


def test_a_number_changed_by_hand_is_seen_wherever_it_stands(copied: Path, config: str, grid: Grid, crew: Here) -> None:
    """A log-likelihood, a record without its values, an answer that other cells would be given, a sample."""
    before = tables(copied)
    records = [path for path in sorted(copied.glob("runs/*/run.json")) if "stdlib_text" in path.parent.name]
    halved, emptied, sampled = records[0], records[1], records[2]
    said = json.loads(halved.read_text())
    metric = next(iter(said["values"]))
    said["values"][metric][0] = [said["values"][metric][0][0] / 2, *said["values"][metric][0][1:]]
    halved.write_text(json.dumps(said))
    said = json.loads(emptied.read_text())
    emptied.write_text(json.dumps({key: value for key, value in said.items() if key != "values"}))
    samples = next(sampled.parent.rglob("samples_*.jsonl"))
    samples.write_bytes(_with_another_digit(samples.read_bytes()))
    answers = next(copied.glob("runs/full-kv_256-*/answers.json"))
    answers.write_bytes(_with_another_digit(answers.read_bytes()))
    spoilt = {path.parent for path in (halved, emptied, sampled, answers)}
    assert set(Store(copied).damaged()) == {path.name for path in spoilt}
    written = write(copied)
    assert "Changed since they were written: " in written.missing
    report = sweep(grid, copied, lambda _: crew, Silent(), command=f"sketch-eval sweep {config}")
    assert len(report.ran) == len(spoilt) == len(list(copied.glob("runs/.damaged-*")))
    write(copied)
    assert tables(copied) == before


def test_what_a_sweep_says_of_its_metrics_is_not_to_be_changed_by_hand(
    copied: Path, config: str, grid: Grid, crew: Here
) -> None:
    """Another aggregation, or a direction turned round, would be another table of the same runs."""
    before = tables(copied)
    said = json.loads((copied / "sweep.json").read_text())
    said["tasks"]["stdlib_text"]["metrics"]["byte_perplexity"] = "bits_per_byte"
    (copied / "sweep.json").write_text(json.dumps(said))
    with pytest.raises(UsageError, match=r"sweep.json is not what the sweep wrote; run the sweep again"):
        write(copied)
    assert not sweep(grid, copied, lambda _: crew, Silent(), command=f"sketch-eval sweep {config}").ran
    write(copied)
    assert tables(copied) == before


def _with_another_digit(content: bytes) -> bytes:
    """The same bytes but for one digit."""
    at = next(place for place in range(len(content) // 2, len(content)) if content[place : place + 1].isdigit())
    return content[:at] + (b"1" if content[at : at + 1] != b"1" else b"2") + content[at + 1 :]


def test_two_sweeps_of_one_folder_do_not_meet(tmp_path: Path, grid: Grid) -> None:
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


def test_a_full_disk_ends_in_one_line_and_loses_nothing(tmp_path: Path, small: Grid, crew: Here) -> None:
    """The limit on a file's size stands for the end of the disk: it is the system that refuses."""
    sizes = resource.getrlimit(resource.RLIMIT_FSIZE)
    watcher = Silent()
    room = iter([10**9, 10**9, 4000])
    begin = watcher.done

    def done(job: Job, seconds: float, reason: str | None) -> None:
        begin(job, seconds, reason)
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


def test_a_leaderboard_that_cannot_be_written_is_one_line(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(
        sys, "argv", ["sketch-eval", "leaderboard", str(finished), "--output", str(tmp_path / "file" / "x")]
    )
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sketch-eval: error: ")
    assert "Not a directory" in line


def test_ctrl_c_says_what_is_kept(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_read", stopped)
    monkeypatch.setattr(sys, "argv", ["sketch-eval", "sweep", "demo"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 130
    assert "stopped; what is finished is kept" in capsys.readouterr().err


def _no_model(_: Grid) -> Here:
    raise AssertionError("a model was asked for")


@pytest.mark.parametrize("place", ["/proc/here", "{}/file", "{}/file/below"])
def test_a_folder_that_cannot_be_written_is_refused_before_a_model_is_loaded(
    tmp_path: Path, grid: Grid, place: str
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot be written to|is a file"):
        sweep(grid, Path(place.format(tmp_path)), _no_model, Silent())


def test_a_folder_of_another_model_is_refused_before_a_model_is_loaded(finished: Path, grid: Grid, crew: Here) -> None:
    other = grid.model_copy(update={"model": grid.model.model_copy(update={"pretrained": "gpt2"})})
    with pytest.raises(UsageError, match="holds runs of another model: pretrained was 'bundled', now 'gpt2'"):
        sweep(other, finished, _no_model, Silent())


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_a_sweep_ends_in_the_same_tables(
    finished: Path, config: str, tmp_path: Path, kills: int
) -> None:
    """The command line, killed while it runs and writes, over and over, then left to end."""
    folder, rng = tmp_path / "mini", random.Random(kills)
    command = [str(Path(sys.executable).parent / "sketch-eval"), "sweep", config, "--output", str(folder)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

    def done() -> set[str]:
        return {path.parent.name for path in folder.glob("runs/*/run.json")}

    before: set[str] = set()
    for number in range(kills):
        run = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted = min(len(before) + rng.randrange(3), 17)  # Kill it after so many runs and a moment more.
        while run.poll() is None and len(done()) < wanted:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.6))
        assert run.poll() is None, "the sweep had ended before it was to be killed"
        run.kill()
        run.wait()
        assert before <= done()
        before = done()
        if len(before) > 14 and number < kills - 1:
            shutil.rmtree(folder)
            before = set()
    assert len(before) < 20
    ended = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    assert ended.returncode == 0
    assert len(done()) == 20
    assert tables(folder) == tables(finished)
