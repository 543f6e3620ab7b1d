"""`sketch-eval sweep --on ray` on nodes of one machine, some of which are killed."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hub import write_model

from sketch_eval import provenance
from sketch_eval.config import CacheConfig
from sketch_eval.errors import UsageError
from sketch_eval.evaluate.model import Answers
from sketch_eval.evaluate.work import Job
from sketch_eval.grid.cells import FULL
from sketch_eval.grid.grid import Block, Grid, Model, Task
from sketch_eval.leaderboard.write import write
from sketch_eval.sweep.run import Here, computations, sweep

ray = pytest.importorskip("ray")

pytestmark = pytest.mark.slow  # A cluster takes its time to start.
from ray._private.state import actors  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from sketch_eval.sweep import on_ray  # noqa: E402

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Workers cannot import a test.
CELL = CacheConfig(max_cache_size=16)


@pytest.fixture(scope="module")
def head() -> Iterator[Cluster]:
    """A driver's node, without CPUs."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


@pytest.fixture
def cluster(head: Cluster) -> Iterator[Cluster]:
    """A driver's node and two more with a CPU each, whatever the last test did to them."""
    while len(alive := [node for node in head.worker_nodes if node.any_processes_alive()]) < 2:
        head.add_node(num_cpus=1)
    assert len(alive) == 2
    yield head
    ray.shutdown()


def at_work() -> list[dict[str, Any]]:
    """The actors of the cluster that are alive, the oldest first."""
    return sorted(
        (actor for actor in actors().values() if actor["State"] == "ALIVE"), key=lambda each: each["StartTime"]
    )


def node_of(actor: dict[str, Any]) -> str:
    return str(actor["Address"]["NodeID"])


def kill(cluster: Cluster, node_id: str) -> None:
    """End a node and its workers as a power cut would."""
    (node,) = (node for node in cluster.worker_nodes if node.node_id == node_id)
    victims = [actor["Pid"] for actor in at_work() if node_of(actor) == node_id]
    for pid in (*victims, *(info.process.pid for group in node.all_processes.values() for info in group)):
        os.kill(pid, signal.SIGKILL)


class Stub:
    """A worker without a model: a job's task says what it does."""

    def __init__(self, about: dict[str, Any], threads: int, folder: str) -> None:
        self._about = about

    def load(self) -> tuple[dict[str, Any], str]:
        return self._about, ray.get_runtime_context().get_node_id()

    def run(self, job: Job, answers: dict[str, Any]) -> tuple[str, Any]:
        if job.task == "raises":
            raise ArithmeticError("two and two")
        if job.task == "crashes":
            os._exit(1)
        time.sleep(0.2)
        return ray.get_runtime_context().get_node_id(), answers


class StubNeeds(on_ray.Needs):
    def hire(self, grid: Any) -> Any:
        about = grid.abouts.pop(0) if len(grid.abouts) > 1 else grid.abouts[0]
        return ray.remote(Stub).options(num_cpus=self.cpus).remote(about, 1, ".")


def about(**fixed: Any) -> dict[str, Any]:
    return {"fixed": {"device": "cpu", "sources": provenance.sources()} | fixed, "tasks": {}}


def stubs(cluster: Cluster, *abouts: Any) -> on_ray.Workers:
    """A crew of stubs; what each of them says of itself, in the order in which they are hired, the last for ever."""
    on_ray._join(cluster.address)
    grid = SimpleNamespace(model=SimpleNamespace(device="cpu"), abouts=[*abouts])
    return on_ray.Workers(cast(Grid, grid), StubNeeds(1, 0))


def executed(
    crew: on_ray.Workers, jobs: list[Job], answers: Callable[[str], Answers]
) -> Iterator[tuple[Job, tuple[str, Any]]]:
    """The outcomes of stubs that do not fail, as `Stub.run` returns them: a node's id, and the answers it was given."""
    return cast(Iterator[tuple[Job, tuple[str, Any]]], crew.execute(jobs, answers))


def test_no_job_is_lost_or_done_twice_when_a_node_is_killed(cluster: Cluster) -> None:
    crew = stubs(cluster, about())
    jobs = [Job(CELL.model_copy(update={"seed": seed}), "sleeps") for seed in range(48)]
    outcomes, seen, killed = [], set(), ""
    for outcome in executed(crew, jobs, lambda task: {task: (1.0, True)}):
        outcomes.append(outcome)
        seen.add(outcome[1][0])
        if len(seen) == 2 and not killed:  # both nodes are at work, however long the second took to start
            killed = node_of(at_work()[0])
            kill(cluster, killed)
    assert sorted(job.cell.seed for job, _ in outcomes) == list(range(48))
    assert len(seen) == 2, "one node did all the work, and none was killed"
    assert {node for _, (node, _) in outcomes[-8:]} == seen - {killed}
    assert all(answers == {"sleeps": (1.0, True)} for _, (_, answers) in outcomes)
    full = [
        (job, answers) for job, (_, answers) in executed(crew, [Job(FULL, "sleeps")], lambda _: pytest.fail("asked"))
    ]
    assert full == [(Job(FULL, "sleeps"), {})]


def test_a_failing_job_a_crashing_one_and_an_unlike_node_cost_a_reason_each(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    crew = stubs(
        cluster, about(versions={"torch": "2"}), about(versions={"torch": "1"}), about(versions={"torch": "2"})
    )

    def answers(task: str) -> Any:
        if task == "unknown":
            raise LookupError("the full cache's run of the task failed")
        return {}

    monkeypatch.setattr(on_ray, "MOST_LOST", 2)
    tasks = ["raises", "unknown", "crashes", *(f"sleeps {number}" for number in range(6))]
    outcomes = {job.task: outcome for job, outcome in crew.execute([Job(CELL, task) for task in tasks], answers)}
    assert outcomes.keys() == {*tasks}
    failed = {task: outcome for task, outcome in outcomes.items() if isinstance(outcome, Exception)}
    assert isinstance(failed["raises"], ArithmeticError)
    reasons = sorted(str(error) for error in failed.values())
    assert len(reasons) == 4
    assert reasons[0].startswith("2 workers were lost with it")
    assert reasons[1:3] == ["the full cache's run of the task failed", "two and two"]
    assert reasons[3].startswith("versions.torch is 1, the first worker's is 2")


def test_what_no_worker_can_have_is_refused_in_one_line(cluster: Cluster) -> None:
    grid = Grid.model_validate({"tasks": ["recall"], "cells": [{"max_cache_size": 16}]})
    on_cuda = grid.model_copy(update={"model": Model(device="cuda:0")})
    refused = [
        (("127.0.0.1:1", 1, 0, grid), "address='127.0.0.1:1': no Ray cluster could be joined"),
        (("nonsense", 1, 0, grid), "address='nonsense': no Ray cluster could be joined"),
        ((None, 0, 0, grid), "cpus=0 with gpus=0"),
        ((None, 1, 1.5, grid), "gpus=1.5"),
        ((None, 1, 0, on_cuda), "model.device='cuda:0' with gpus=0"),
        (
            (cluster.address, 1, 0.5, grid),
            "gpus=0.5: no node of the Ray cluster has room for such a worker (nodes have 0 CPUs and 0 GPUs, or 1 CPUs",
        ),
        ((cluster.address, 1.5, 0, grid), "cpus=1.5, gpus=0"),
    ]
    for (*arguments, asked), reason in refused:
        with pytest.raises(UsageError) as error:
            on_ray.recruiter(*arguments)(asked)
        assert reason in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="another sketch_eval is installed there"):
        stubs(cluster, about(sources="0"))
    with pytest.raises(UsageError, match="no such model"):
        stubs(cluster, "no such model")
    node = {"CPU": 16.0, "GPU": 2.0}
    assert [on_ray.Needs(*needs)._fit(node) for needs in [(1, 0), (1, 0.1), (0, 0.3), (2, 2), (1.6, 0), (4, 0.5)]] == [
        16, 16, 6, 1, 10, 4,
    ]  # fmt: skip


class Told:
    """Calls when so many jobs are done, and keeps their names."""

    def __init__(self, number: int, call: Callable[[], None]) -> None:
        self.jobs: list[str] = []
        self._number, self._call = number, call

    def begin(self, jobs: list[Job], weights: dict[str, float]) -> None:
        pass

    def scored(self, job: Job, about: object, record: object) -> None:
        pass

    def done(self, job: Job, seconds: float, reason: str | None) -> None:
        assert reason is None, reason
        self.jobs.append(job.name)
        if len(self.jobs) == self._number:
            self._call()


def test_a_sweep_that_loses_a_node_writes_the_tables_of_a_local_one(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_model(tmp_path / "model", ["def read(self, size=-1):\n    return self.buffer[size:]\n" * 9])
    block = {"controls": ["window", "exact"], "max_cache_size": [32, 64], "strategy": ["topk", "aggregate"]}
    model = Model(pretrained=str(tmp_path / "model"), batch_size=2)
    tasks = {"stdlib_text": Task(limit=2), "recall_depth_25": Task(limit=1)}
    grid = Grid(model=model, tasks=tasks, cells=(Block.model_validate(block),))
    here, there = tmp_path / "here" / "mini", tmp_path / "ray" / "mini"

    def kill_the_first() -> None:
        kill(cluster, node_of(at_work()[0]))

    on_ray_ = Told(5, kill_the_first)
    report = sweep(grid, there, on_ray.recruiter(cluster.address, 1, 0), on_ray_)
    jobs = [Job(cell, task).name for cell in computations(grid) for task in grid.tasks]
    assert sorted(on_ray_.jobs) == sorted(jobs)
    assert not report.failed
    assert len([path for path in (there / "runs").iterdir() if (path / "run.json").exists()]) == len(jobs)
    assert len(list((there / "runs").iterdir())) == len(jobs)
    again = sweep(grid, there, on_ray.recruiter(cluster.address, 1, 0), Told(0, kill_the_first))
    assert (len(again.ran), len(again.kept)) == (0, len(jobs))
    sweep(grid, here, Here, Told(0, kill_the_first))
    for folder in (here, there):
        write(folder)
    for table in ("leaderboard.md", "leaderboard.csv", "leaderboard.json"):
        assert (here / table).read_bytes() == (there / table).read_bytes()
