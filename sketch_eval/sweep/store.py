"""Finished runs on disk: whole or not at all, whoever is killed and whenever.

A folder of a sweep:

    sweep.json                          the model that all its runs are of
    runs/NAME-ID/run.json               identity, values by document, counts, bytes, times; SHA-256 of the files beside
                                        it and of itself
    runs/NAME-ID/answers.json           of the full cache only: its answer to every request
    runs/NAME-ID/MODEL/results_*.json   lm-eval's own results
    runs/NAME-ID/MODEL/samples_*.jsonl  lm-eval's own samples, one line a document
    runs/NAME-ID.failed.json            why a run failed; gone when it has succeeded
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, Timeout

from sketch_eval.errors import UsageError
from sketch_eval.evaluate.records import SweepAbout

RECORD, SEAL = "run.json", "sha256"


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, the same whatever the order of its keys."""
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Store:
    """The runs of one folder. Reading takes no lock; `lock` is for who writes.

    Args:
        folder: the folder, which need not exist.

    Raises:
        UsageError: the folder is a file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, folder / "runs"
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"output={str(folder)!r} is a file; give a folder")
        self._lock = FileLock(folder / ".lock")

    def lock(self, wait: bool) -> None:
        """Keep other sweeps out until this process ends, however it ends; then clear away what dead ones left.

        Raises:
            UsageError: another sweep is at work there and `wait` is False, or the folder cannot be written to.
        """
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                if not wait:
                    raise
                print(f"waiting for the sweep that is at work in {self.folder}", file=sys.stderr, flush=True)
                self._lock.acquire()
            write_file(self.folder / ".probe", "written to see that the folder can be\n")
            (self.folder / ".probe").unlink()
        except Timeout:
            raise UsageError(
                f"output={str(self.folder)!r}: another sweep is writing there; give --wait, or another folder"
            ) from None
        except OSError as error:
            raise UsageError(
                f"output={str(self.folder)!r} cannot be written to ({error.strerror}); give another folder"
            ) from error
        for scratch in (*self.folder.glob(".tmp-*"), *self.runs.glob(".tmp-*")):
            shutil.rmtree(scratch) if scratch.is_dir() else scratch.unlink()

    def release(self) -> None:
        """Let others in."""
        self._lock.release()

    def check_model(self, model: dict[str, Any]) -> None:
        """Refuse a folder whose runs are of another model; keys that either side does not know are not compared.

        Raises:
            UsageError: they are, or the folder's record cannot be read.
        """
        path = self.folder / "sweep.json"
        if not path.exists():
            return
        try:
            recorded = json.loads(path.read_text(encoding="utf-8"))["model"]
            known = model.keys() & recorded.keys()
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # Half-written: nothing is lost by writing it anew.
        for key in sorted(known):
            if model[key] != recorded[key]:
                raise UsageError(
                    f"output={str(self.folder)!r} holds runs of another model: {key} was {recorded[key]!r}, now "
                    f"{model[key]!r}; give another folder"
                )

    def describe(self, about: SweepAbout) -> None:
        """Write down what the folder is of, in sweep.json."""
        with self._refusals_in_one_line():
            write_file(self.folder / "sweep.json", sealed(about))

    def description(self) -> SweepAbout:
        """What the folder is of.

        Raises:
            UsageError: its sweep.json was changed since it was written, or cannot be read.
            FileNotFoundError: there is none.
        """
        try:
            about = json.loads((self.folder / "sweep.json").read_text(encoding="utf-8"))
            seal = about.pop(SEAL)
        except FileNotFoundError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"results={str(self.folder)!r}: its sweep.json cannot be read ({type(error).__name__}); run the sweep "
                "again, which writes it anew, or give a folder that `sketch-eval sweep` wrote"
            ) from error
        if seal != digest(about):
            raise UsageError(
                f"results={str(self.folder)!r}: its sweep.json is not what the sweep wrote; run the sweep again, which "
                "writes it anew and keeps every finished run"
            )
        return cast(SweepAbout, about)

    def find(self, key: str, mend: bool = False) -> Path | None:
        """The folder of a finished, undamaged run; with `mend`, for who holds the lock, a damaged one is moved away."""
        for path in sorted(self.runs.glob(f"*-{key[:16]}")):
            if path.is_dir() and not path.name.startswith("."):
                if self._is_whole(path, key):
                    return path
                if mend:
                    self._set_aside(path)
        return None

    def read(self, path: Path) -> dict[str, Any]:
        """The record of a finished run."""
        return json.loads((path / RECORD).read_text(encoding="utf-8"))

    def write(self, name: str, key: str, record: Mapping[str, Any], files: Callable[[Path], None]) -> Path:
        """Keep a run: `files` writes what belongs beside the record into the folder that it is given.

        Raises:
            UsageError: it could not be written; nothing of it is there, and all that was there still is.
        """
        final = self.runs / f"{_plain(name)}-{key[:16]}"
        scratch = self.runs / f".tmp-{os.getpid()}-{key[:16]}"
        shutil.rmtree(scratch, ignore_errors=True)
        with self._refusals_in_one_line():
            try:
                scratch.mkdir(parents=True)
                files(scratch)
                sums = {}
                for path in sorted(path for path in scratch.rglob("*") if path.is_file()):
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
                        sums[str(path.relative_to(scratch))] = file_digest(file, "sha256").hexdigest()
                write_file(scratch / RECORD, sealed({**record, "key": key, "files": sums}))
                scratch.replace(final)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            self.forgive(key)
        return final

    def fail(self, name: str, key: str, reason: str) -> None:
        """Record why a run failed."""
        path = _failed(self.runs / f"{_plain(name)}-{key[:16]}")
        with self._refusals_in_one_line():
            write_file(path, json.dumps({"key": key, "reason": reason}, indent=1))

    def failure(self, key: str) -> str | None:
        """The last line of why a run failed; None where it did not."""
        for path in self.runs.glob(f"*-{key[:16]}.failed.json"):
            return str(json.loads(path.read_text(encoding="utf-8"))["reason"]).strip().splitlines()[-1]
        return None

    def forgive(self, key: str) -> None:
        """Forget a failure that a later run made good; one killed between the two leaves it behind."""
        for path in self.runs.glob(f"*-{key[:16]}.failed.json"):
            path.unlink()

    @contextmanager
    def _refusals_in_one_line(self) -> Iterator[None]:
        """What the system refuses, in one line."""
        try:
            yield
        except OSError as error:
            raise UsageError(
                f"output={str(self.folder)!r}: {error.strerror or error}; every finished run is kept: make room there "
                "and run the same command again"
            ) from error

    def damaged(self) -> list[str]:
        """The folders of runs that are not as they were written."""
        folders = (path for path in sorted(self.runs.glob("*-*")) if path.is_dir() and not path.name.startswith("."))
        return [path.name for path in folders if not self._is_whole(path)]

    def _is_whole(self, path: Path, key: str | None = None) -> bool:
        """Whether a run's record and files are, to the byte, what was written, and its key the given one, if any."""
        try:
            record = self.read(path)
            seal = record.pop(SEAL)
            return (
                key in (None, record["key"])
                and seal == digest(record)
                and all(_sum(path / file) == known for file, known in record["files"].items())
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def _set_aside(self, path: Path) -> None:
        """Keep a damaged run for whoever wants to know what happened to it, under a name that nothing looks for."""
        number = 0
        while (aside := path.with_name(f".damaged-{number}-{path.name}")).exists():
            number += 1
        path.rename(aside)


def sealed(record: Mapping[str, Any]) -> str:
    """A run's record as JSON, with its own digest, so that a number changed by hand is seen."""
    return json.dumps({**record, SEAL: digest(json.loads(json.dumps(record)))})


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def write_file(path: Path, text: str) -> None:
    """Write a file whole or not at all, and have it on the disk before going on.

    Raises:
        OSError: the system refuses; what was there stays.
    """
    scratch = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        with scratch.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _failed(path: Path) -> Path:
    return path.with_name(f"{path.name}.failed.json")


def _plain(name: str) -> str:
    """A name that every file system takes."""
    return re.sub(r"[^A-Za-z0-9_.=-]+", "-", name.replace("×", "x")).strip("-.")[:120]
