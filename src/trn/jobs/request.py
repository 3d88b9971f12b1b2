"""What it takes to start a job later, in a file of its own: `<runs_dir>/.trn/queue/<job_id>.json`.

    door ──write_request──> file ──read_request──> keeper, which starts the job as its submitter would have

The file holds no secret: of the submitter's environment it has what the door lets through, and the names of what was
left out; whoever starts the job adds its own values of those. It is there from before the job's row says `queued`
until the job has ended. A request that cannot be used is refused as a whole, with the reason; so is one that another
user could have written, since what stands in it is started.

Not here: the order of the queue (queue), and what becomes of a request (doors).
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from trn.devices import Want
from trn.errors import StorageError
from trn.files import make_folder, remove, write_atomic
from trn.jobs.folders import checked_id, is_id
from trn.jobs.observe import OPEN_STATES
from trn.jobs.store import Store
from trn.records import RESERVED_RUN_IDS, RUN_ID_PATTERN, JobRow, JsonError, pretty_json, read_json

__all__ = [
    "Request",
    "drop_request",
    "read_request",
    "remove_request",
    "request_path",
    "sweep_requests",
    "write_request",
]

Json = dict[str, Any]

_VERSION = 1
_OLD_S = 3600.0
_LISTS = ("arguments", "argv", "allow_change", "left_out")


@dataclass(frozen=True)
class Request:
    """A job that somebody else starts. `arguments` are the runner's, without those of the job."""

    job_id: str
    run_id: str
    submitted_at: str
    config_path: str
    arguments: tuple[str, ...]
    python: str
    """The interpreter of the submitter, in which its packages are."""
    cwd: str
    argv: tuple[str, ...] = ()
    """The command that submitted it, as it may be shown."""
    nproc: int = 1
    want: Want = field(default_factory=Want)
    max_restarts: int = 0
    grace_s: float = 30.0
    allow_change: tuple[str, ...] = ()
    environ: Mapping[str, str] | None = field(default=None, repr=False)
    """The submitter's variables; None where the job is started by its submitter, and inherits them."""
    left_out: tuple[str, ...] = ()
    """Names of variables that may be secrets, and are not in `environ`."""

    @property
    def is_of_queue(self) -> bool:
        """Whether the job waits for its turn; a detached one is its keeper's, also before there is a row of it."""
        return self.environ is not None

    def new_row(self, runs_dir: Path, state: str, devices: str | None = None) -> JobRow:
        """The row with which the job begins."""
        return JobRow(
            job_id=self.job_id,
            run_id=self.run_id,
            run_dir=str(runs_dir / self.run_id),
            state=state,
            config_path=self.config_path,
            submitted_at=self.submitted_at,
            launcher="torchrun" if self.nproc > 1 else "local",
            devices=devices,
        )

    def environ_of(self, starter: Mapping[str, str]) -> dict[str, str]:
        """The variables to start the job with: the submitter's, and of what was left out those of the starter."""
        if self.environ is None:
            return dict(starter)
        return {**self.environ, **{name: starter[name] for name in self.left_out if name in starter}}

    def to_json(self) -> Json:
        value = {one.name: getattr(self, one.name) for one in fields(self)}
        value |= {name: list(value[name]) for name in _LISTS}
        value["want"] = self.want.to_json()
        value["layout"] = {"nproc": value.pop("nproc")}
        return {"schema_version": _VERSION, **value}

    @classmethod
    def from_json(cls, value: Json) -> Request:
        """Raises JsonError for what is no request of this version."""
        if value.get("schema_version") != _VERSION:
            raise JsonError(f"expected schema_version {_VERSION}, found {value.get('schema_version')!r}")
        layout = _object(value, "layout", {"nproc": _count})
        want = _object(value, "want", {"devices": _texts, "device_count": _count, "cpus": _count})
        _check(value, "", {"schema_version": _count, "layout": _any, "want": _any, **_FIELDS})
        values: Json = {name: value[name] for name in _FIELDS}
        values |= {name: tuple(value[name]) for name in _LISTS}
        return cls(**values, nproc=max(1, layout["nproc"]), want=Want.from_json(want))


def _any(value: object) -> bool:
    return True


def _text(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _seconds(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


def _run_id(value: object) -> bool:
    return isinstance(value, str) and RUN_ID_PATTERN.fullmatch(value) is not None and value not in RESERVED_RUN_IDS


def _variables(value: object) -> bool:
    if not isinstance(value, dict):
        return value is None
    return all(_text(name) and _text(text) and name and "=" not in name for name, text in value.items())


_FIELDS: dict[str, Callable[[object], bool]] = {
    "job_id": _run_id,
    "run_id": _run_id,
    "submitted_at": _text,
    "config_path": _text,
    "arguments": _texts,
    "argv": _texts,
    "python": _text,
    "cwd": _text,
    "max_restarts": _count,
    "grace_s": _seconds,
    "allow_change": _texts,
    "environ": _variables,
    "left_out": _texts,
}


def _object(value: Json, name: str, keys: Mapping[str, Callable[[object], bool]]) -> Json:
    found = value.get(name)
    if not isinstance(found, dict):
        raise JsonError(f"{name} is no object")
    _check(found, f"{name}.", keys)
    return found


def _check(value: Json, place: str, keys: Mapping[str, Callable[[object], bool]]) -> None:
    if missing := sorted(set(keys) - set(value)):
        raise JsonError(f"missing {', '.join(place + name for name in missing)}")
    if unknown := sorted(set(value) - set(keys)):
        raise JsonError(f"unknown {', '.join(place + name for name in unknown)}")
    for name, is_right in keys.items():
        if not is_right(value[name]):
            raise JsonError(f"{place}{name} is not what it should be")


# The file


def request_path(runs_dir: Path, job_id: str) -> Path:
    """Where the request of a job is. Raises StorageError for what is no job id."""
    return runs_dir / ".trn" / "queue" / f"{checked_id(job_id)}.json"


def write_request(runs_dir: Path, request: Request) -> None:
    """Raises StorageError."""
    path = request_path(runs_dir, request.job_id)
    make_folder(path.parent)
    write_atomic(path, pretty_json(request.to_json()))


def read_request(runs_dir: Path, job_id: str) -> Request:
    """The request of a job. Raises StorageError where it is missing, damaged, or not safe to start."""
    path = request_path(runs_dir, job_id)
    try:
        found = path.lstat()
        # it names a program to start: nobody else may have written it
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise StorageError("the request is not a plain file that only its submitter can write.", where=str(path))
        request = Request.from_json(read_json(path))
    except FileNotFoundError as error:
        raise StorageError("the request to start it is gone.", where=str(path)) from error
    except JsonError as error:
        raise StorageError(f"the request to start it is damaged: {error}.", where=str(path)) from error
    except OSError as error:
        raise StorageError(f"the request to start it cannot be read: {error.strerror}.", where=str(path)) from error
    if request.job_id != job_id:
        raise StorageError(f"the request is of another job, {request.job_id}.", where=str(path))
    return request


def remove_request(runs_dir: Path, job_id: str) -> None:
    """Nothing happens where there is none. Raises StorageError."""
    remove(request_path(runs_dir, job_id))


def drop_request(store: Store, job_id: str) -> None:
    """Remove the request of a job that has ended, or was never recorded. Raises StorageError."""
    row = store.get(job_id)
    if row is None or row.state not in OPEN_STATES:
        remove_request(store.runs_dir, job_id)


def sweep_requests(store: Store) -> None:
    """Remove the requests that doors which were killed have left: of jobs that have ended, or never came to be.

    Raises StorageError.
    """
    folder = store.runs_dir / ".trn" / "queue"
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    for job_id in (name.removesuffix(".json") for name in names if name.endswith(".json")):
        if is_id(job_id) and (store.get(job_id) is not None or _is_old(request_path(store.runs_dir, job_id))):
            drop_request(store, job_id)


def _is_old(path: Path) -> bool:
    """Whether nobody is about to add the row of the job."""
    try:
        return time.time() - path.stat().st_mtime > _OLD_S
    except FileNotFoundError:
        return False
