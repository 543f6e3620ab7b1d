"""What travels from a worker to the store and to the tables, all of it JSON."""

from __future__ import annotations

from typing import Any, TypedDict


class Fixed(TypedDict):
    """What decides every number of a worker but the cell and the task.

    `sources` is `provenance.sources()`, `device` a type of torch's, and the fingerprints are SHA-256.
    """

    model_fingerprint: str
    tokenizer_fingerprint: str
    dtype: str
    max_length: int
    versions: dict[str, str]
    device: str
    batch_size: int
    sources: str


class TaskAbout(TypedDict):
    """A task: what decides its side of a score, and the aggregation and the direction of each tabled metric."""

    identity: dict[str, Any]
    metrics: dict[str, str]
    higher_is_better: dict[str, bool]


class About(TypedDict):
    """A worker: what decides its numbers, the commit that its code is of, and its tasks by name."""

    fixed: Fixed
    commit: str | None
    tasks: dict[str, TaskAbout]


class SweepAbout(About):
    """A sweep's folder: its worker, its model by name and fingerprints, its grid as JSON and its command line."""

    model: dict[str, Any]
    grid: dict[str, Any]
    command: str


class Times(TypedDict):
    """Of a run: seconds in all and in the model's passes, tokens that these took in, and when it ended (Unix time)."""

    seconds: float
    pass_seconds: float
    tokens: int
    finished: float


class Record(TypedDict):
    """A finished run: its `identity`, values by metric and document, counts, ledger and times."""

    identity: dict[str, Any]
    name: str
    commit: str | None
    values: dict[str, list[Any]]
    counts: dict[str, int]
    ledger: dict[str, Any]
    documents: int
    times: Times
