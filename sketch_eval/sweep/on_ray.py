"""`sketch-eval sweep --on ray`: a crew of workers on the nodes of a Ray cluster.

A worker is a Ray actor. It holds its CPUs, its GPU or its share of one, and one model, for as long as the sweep lasts.
It gets its first job when it has said what it is, then one job at a time. When it is lost, with its node or alone,
another is hired in its place wherever there is room, and its job goes to whoever is free. The driver alone writes to
the store, and takes one outcome a job.

A worker computes with as many threads as it has CPUs; `Here` does with torch's default, which is all cores.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from sketch_eval import provenance
from sketch_eval.errors import UsageError, last_line
from sketch_eval.evaluate.model import Answers
from sketch_eval.evaluate.records import About
from sketch_eval.evaluate.work import Finished, Job, Worker
from sketch_eval.grid.cells import FULL
from sketch_eval.grid.grid import Grid
from sketch_eval.sweep.run import Crew, Outcome

MOST_LOST = 3
"""Workers lost with one job, or before they could take any, after which it is taken for no accident."""
POLL = 5.0
"""Seconds until the next look for nodes that came or went, when nothing else happens."""


def recruiter(address: str | None, cpus: float, gpus: float) -> Callable[[Grid], Crew]:
    """What makes the crew of a sweep on Ray.

    Args:
        address: of a cluster to join, one of whose nodes this machine is; None starts a Ray on this machine, which ends
            with this process. A Ray that this process has joined already is taken as it is.
        cpus: CPUs of each worker, and threads that it computes with: the whole ones, and at least one.
        gpus: GPUs of each worker: 0 computes on the CPU; a share, such as 0.5, is counted by Ray, not enforced.

    Returns:
        A function that joins or starts Ray and hires the first worker. It raises a UsageError for a cluster that cannot
        be joined or has no room for such a worker, for a grid that wants another device, and as `Worker` does.

    Raises:
        UsageError: cpus and gpus that no worker can have.
    """
    needs = Needs(cpus, gpus)

    def recruit(grid: Grid) -> Crew:
        placed = needs.on_device(grid)
        _join(address)
        needs.check_room()
        return Workers(placed, needs)

    return recruit


class Member:
    """What runs in a worker's process: a `Worker`, with so many threads, in the driver's folder where there is one."""

    def __init__(self, grid: Grid, threads: int, folder: str) -> None:
        self._grid = grid
        with suppress(OSError):
            os.chdir(folder)  # The grid's relative paths start there.
        torch.set_num_threads(threads)

    def load(self) -> tuple[About | str, str]:
        """Load the model and the tasks; returns `Worker.about`, or why there is none, and the node's id."""
        node = ray.get_runtime_context().get_node_id()
        try:
            self._worker = Worker(self._grid)
            return self._worker.about, node
        except Exception as error:
            return str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}", node

    def run(self, job: Job, answers: Answers) -> Finished:
        """As `Worker.run`."""
        return self._worker.run(job, answers)


@dataclass(frozen=True)
class Needs:
    """What each worker is given: CPUs, and no GPU, a share of one, or whole ones. UsageErrors say what cannot be."""

    cpus: float
    gpus: float

    def __post_init__(self) -> None:
        if not self.cpus and not self.gpus:
            raise UsageError("cpus=0 with gpus=0 is a worker of nothing; give --cpus 1, or some --gpus")
        if self.gpus > 1 and not float(self.gpus).is_integer():
            raise UsageError(f"gpus={self.gpus:g}: Ray gives a share of one GPU, or whole ones; give 0.5, 1 or 2, say")

    def on_device(self, grid: Grid) -> Grid:
        """The grid with the device of the workers; refuses one that asks for another."""
        asked, device = grid.model.device, "cuda" if self.gpus else "cpu"
        if asked is not None and asked.split(":")[0] != device:
            raise UsageError(
                f"model.device={asked!r} with gpus={self.gpus:g}: such workers compute on {device}; leave the device "
                f"out of the config, or give --gpus {0 if self.gpus else 1}"
            )
        return grid.model_copy(update={"model": grid.model.model_copy(update={"device": device})})

    def room(self, unfit: Collection[str] = ()) -> int:
        """Workers that the cluster's nodes hold, those of these ids left out."""
        nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in unfit]
        return sum(self._fit(node["Resources"]) for node in nodes)

    def check_room(self) -> None:
        """Refuse what no node has, which Ray would wait for without end."""
        if not self.room():
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            have = sorted({f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes})
            raise UsageError(
                f"cpus={self.cpus:g}, gpus={self.gpus:g}: no node of the Ray cluster has room for such a worker (nodes "
                f"have {', or '.join(have)}); ask for less with --cpus and --gpus, or join another with --address"
            )

    def hire(self, grid: Grid) -> Any:
        """A new worker, which Ray places as soon as there is room."""
        # Without tokens: Ray shows these to everyone on the cluster.
        told = {key: value for key, value in os.environ.items() if key.startswith("HF_") and "TOKEN" not in key}
        member = ray.remote(Member).options(num_cpus=self.cpus, num_gpus=self.gpus, runtime_env={"env_vars": told})
        return member.remote(grid, max(1, int(self.cpus)), os.getcwd())

    def _fit(self, node: dict[str, float]) -> int:
        shares = int(1 / self.gpus + 1e-4) if 0 < self.gpus < 1 else 1 / (self.gpus or 1)  # Ray counts in 1e-4.
        by_gpu = [node.get("GPU", 0.0) * shares] if self.gpus else []
        by_cpu = [node.get("CPU", 0.0) / self.cpus] if self.cpus else []
        return int(min(by_gpu + by_cpu) + 1e-4)


class Workers:
    """A crew: as many workers as the cluster has room for, and no more than there are jobs.

    Raises:
        UsageError: as `Worker`; or no worker could start, or it runs another sketch_eval than this process.
    """

    def __init__(self, grid: Grid, needs: Needs) -> None:
        self.about: About  # As the first worker says it.
        self._met = False
        self._grid, self._needs, self._sources = grid, needs, provenance.sources()
        self._idle: list[Any] = []
        self._coming: dict[Any, Any] = {}  # By what each of them will say of itself.
        self._working: dict[Any, tuple[Any, Job]] = {}
        self._unfit: dict[str, list[Any]] = {}  # By node; kept, so that they keep their room.
        self._failed_to_start: list[RayError] = []
        while not self._met:
            self._hire(1)
            _ready(self._coming, POLL)
            if reason := self._greet() or self._hopeless():
                raise UsageError(f"on='ray': {reason}") from reason

    def execute(self, jobs: list[Job], answers: Callable[[str], Answers]) -> Iterator[tuple[Job, Outcome]]:
        """As `Crew`. A job ends in an exception when it raised one, or when worker after worker was lost with it."""
        queue, lost, shipped = deque(jobs), Counter[Job](), dict[str, Any]()
        ended: list[tuple[Job, Outcome]] = []
        while queue or self._working or ended:
            self._hire(len(queue) + len(self._working))
            while queue and self._idle:
                job = queue.popleft()
                try:
                    if job.cell != FULL and job.task not in shipped:
                        shipped[job.task] = ray.put(answers(job.task))
                except Exception as error:
                    ended.append((job, error))
                    continue
                member = self._idle.pop()
                self._working[member.run.remote(job, {} if job.cell == FULL else shipped[job.task])] = member, job
            yield from ended  # Only now: the workers have their next jobs.
            ended = []
            if queue and (reason := self._hopeless()):
                ended = [(job, reason) for job in queue]
                queue.clear()
            if queue or self._working:
                _ready([*self._working, *self._coming], POLL)
            reason = self._greet()
            if queue and reason:
                ended.append((queue.pop(), reason))
            for job, outcome in self._collect():
                lost[job] += outcome is None
                if outcome is not None:
                    ended.append((job, outcome))
                elif lost[job] < MOST_LOST:
                    queue.appendleft(job)
                else:
                    ended.append(
                        (job, RuntimeError(f"{MOST_LOST} workers were lost with it; has it too little memory?"))
                    )

    def _hire(self, wanted: int) -> None:
        """Have workers for so many jobs on the way, as far as there is room."""
        here = len(self._idle) + len(self._working) + len(self._coming)
        for _ in range(here, min(wanted, self._needs.room(self._unfit))):
            member = self._needs.hire(self._grid)
            self._coming[member.load.remote()] = member

    def _greet(self) -> Exception | None:
        """Take in the workers that have loaded; returns what is wrong with a node, when it is first seen."""
        wrong = None
        for reference in _ready(self._coming):
            member = self._coming.pop(reference)
            try:
                about, node = ray.get(reference)
            except RayError as error:
                self._failed_to_start.append(error)
                continue
            if reason := about if isinstance(about, str) else self._unlike(about):
                if node not in self._unfit:
                    wrong = RuntimeError(f"{reason} (Ray node {node[:8]}, whose workers get no jobs)")
                self._unfit.setdefault(node, []).append(member)
                continue
            if not self._met:
                self.about, self._met = about, True
            self._idle.append(member)
            self._failed_to_start.clear()
        return wrong

    def _unlike(self, about: About) -> str:
        """Why a worker's runs would not be this crew's; empty where they would."""
        if not self._met:
            same = about["fixed"]["sources"] == self._sources
            return "" if same else "another sketch_eval is installed there than here"
        mine, theirs = (dict(_flat({**each["fixed"], **each["tasks"]})) for each in (self.about, about))
        different = sorted(key for key in mine | theirs if mine.get(key) != theirs.get(key))
        return "; ".join(f"{key} is {theirs.get(key)}, the first worker's is {mine.get(key)}" for key in different)

    def _hopeless(self) -> Exception | None:
        """Why nobody will ever take a job, where that is so."""
        if self._working or self._idle:
            return None
        room = self._needs.room(self._unfit)
        if not room:
            return LookupError("no worker is left, and no node of the Ray cluster has room for one")
        if len(self._failed_to_start) >= MOST_LOST * (room if self._met else 1):
            return RuntimeError(
                f"workers end before they have loaded the model: {last_line(self._failed_to_start[-1])}"
            )
        return None

    def _collect(self) -> Iterator[tuple[Job, Outcome | None]]:
        """Outcomes of the jobs that are at an end; None where the job was lost with its worker."""
        for reference in _ready(self._working):
            member, job = self._working.pop(reference)
            try:
                outcome: Outcome = ray.get(reference)
            except RayTaskError as error:
                error.cause.__cause__ = error  # It has the worker's traceback in its text.
                outcome = error.cause
            except RayError:
                ray.kill(member)  # It may be only out of reach.
                yield job, None
                continue
            self._idle.append(member)
            yield job, outcome


def _ready(references: Collection[Any], patience: float = 0.0) -> list[Any]:
    """Those of whom Ray knows the end: all of them, or, with patience, the first to come to it."""
    wanted = 1 if patience else len(references)
    return ray.wait([*references], num_returns=wanted, timeout=patience)[0] if references else []


def _flat(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        yield from _flat(value, f"{path}{key}.") if isinstance(value, dict) else [(f"{path}{key}", value)]


def _join(address: str | None) -> None:
    """Join a cluster, or start a Ray on this machine, with its log out of our terminal."""
    if ray.is_initialized():
        return
    for setting in ("RAY_USAGE_STATS_ENABLED", "RAY_SCHEDULER_EVENTS"):
        os.environ.setdefault(setting, "0")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            ray.init(address="local", include_dashboard=False, **quiet)
            return
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if host:  # Ray itself would try for a minute.
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        where = "start one on this machine with `ray start --head`, or leave --address out"
        raise UsageError(
            f"address={address!r}: no Ray cluster could be joined ({last_line(error)}); {where}"
        ) from error
