"""What the other side has of a run, kept on disk: `<runs_dir>/.trn/uploads/<run_id>/<digest of the four places>/`.

    settled.jsonl   a line for each artifact that was accepted, was lost there, or was gone before it could be sent
    state.json      how far the run's events were looked at, and where the metrics are; whole or absent
    lock            held by the one process that sends

Both are memory, not truth: where they are lost, everything is offered again under the same keys, and the metrics are
sent anew from the first step. A kill between an answer and its line costs one more question.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from trn.errors import StorageError
from trn.files import AppendLog, Lock, make_folder, new_sha256, remove, write_atomic
from trn.records import JsonError, from_json, json_line, pretty_json, read_json, utc_now
from trn.sinks.reader import Anchor
from trn.worker.upload_artifacts import Artifact

__all__ = ["Endpoints", "InFlight", "Spool", "State"]

Json = dict[str, Any]

_SCHEMA_VERSION = 1
_NOTE_EVERY_S = 10.0


@dataclass(frozen=True)
class Endpoints:
    """Where what goes; "" for what is not sent."""

    metrics: str = ""
    checkpoint: str = ""
    sample: str = ""
    terminal: str = ""

    @classmethod
    def of_orchestrator(cls, base_url: str, run_id: str) -> Endpoints:
        base = f"{base_url.rstrip('/')}/runs/{run_id}"
        return cls(f"{base}/metrics", f"{base}/checkpoints", f"{base}/samples", f"{base}/terminal")

    @property
    def digest(self) -> str:
        """Short, the same for the same places."""
        return new_sha256("\0".join(asdict(self).values()).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class InFlight:
    """A batch of metrics that was sent, or is about to be, and was not answered: as it was, it is sent again."""

    count: int
    end: Anchor
    """Of its last line."""
    sha256: str
    """Of its lines: one key never has two batches."""
    job_id: str

    @classmethod
    def from_json(cls, value: Json) -> InFlight:
        """Raises JsonError, TypeError, KeyError for a value that is none."""
        count, sha256, job_id = value["count"], value["sha256"], value["job_id"]
        if type(count) is not int or count < 0 or type(sha256) is not str or type(job_id) is not str:
            raise JsonError("no batch of metrics of this version")
        return cls(count, Anchor.from_json(value["end"]), sha256, job_id)


@dataclass(frozen=True)
class State:
    """How far this target is."""

    name: str
    """Of this spool, made up when it was begun: a part of the keys of all batches of metrics."""
    journal: str = ""
    """Which run it is: the mark of its first event."""
    seq: int = 0
    """Of the last event before which nothing is left to send."""
    offset: int = 0
    resumed_seq: int = 0
    """Of the last `resumed` that the metrics have followed."""
    batches: int = 0
    """How many batches of metrics are over."""
    anchor: Anchor = field(default_factory=Anchor)
    """The last line that was accepted."""
    cut_above_step: int | None = 0
    """What the next batch says is void; a spool that has just begun knows of nothing."""
    in_flight: InFlight | None = None
    terminals: tuple[str, ...] = ()
    """Jobs whose end was accepted."""

    def to_json(self) -> Json:
        return {"schema_version": _SCHEMA_VERSION, **asdict(self), "updated_at": utc_now()}

    @classmethod
    def from_json(cls, value: Json) -> State:
        """Raises JsonError for a value that is none."""
        value = {name: one for name, one in value.items() if name != "updated_at"}
        if value.pop("schema_version", None) != _SCHEMA_VERSION or set(value) != set(cls.__dataclass_fields__):
            raise JsonError("no state of uploads of this version")
        counts = [value[name] for name in ("seq", "offset", "resumed_seq", "batches")]
        cut = value["cut_above_step"]
        if not all(type(one) is int and one >= 0 for one in (*counts, 0 if cut is None else cut)):
            raise JsonError("one of its counts is no number from 0")
        if not (isinstance(value["name"], str) and isinstance(value["journal"], str)):
            raise JsonError("its names are no text")
        if not (isinstance(value["terminals"], list) and all(isinstance(one, str) for one in value["terminals"])):
            raise JsonError("its terminals are no list of jobs")
        return cls(
            **{
                **value,
                "anchor": Anchor.from_json(value["anchor"]),
                "in_flight": None if value["in_flight"] is None else InFlight.from_json(value["in_flight"]),
                "terminals": tuple(value["terminals"]),
            }
        )


class Spool:
    """The memory of one target of one run. For one thread; `open` first."""

    def __init__(self, run_dir: Path, run_id: str, endpoints: Endpoints) -> None:
        self.folder = run_dir.parent / ".trn" / "uploads" / run_id / endpoints.digest
        self.state = State("")
        self.accepted: dict[tuple[str, str, str], str | None] = {}
        """By kind, name and digest: the other side's own name for it."""
        self.finals: set[tuple[str, str, str]] = set()
        """Of these, which were announced as the final checkpoint of a job."""
        self.skipped: set[tuple[str, str, str]] = set()
        """What was gone before it could be sent; the digest of a sample is "" then."""
        self._steps: dict[tuple[str, str, str], int] = {}
        """Of those that belong to a checkpoint."""
        self._lock = Lock(self.folder / "lock")
        self._log: AppendLog | None = None
        self._saved: State | None = None
        self._saved_s = 0.0

    def open(self, job_id: str) -> bool:
        """Take it; False where another process has it. Raises StorageError."""
        make_folder(self.folder)
        if not self._lock.acquire(note=f"job={job_id}"):
            return False
        try:
            self.state = self._saved = State.from_json(read_json(self._state_path))
        except (JsonError, OSError, TypeError, KeyError):
            self.state = _new_state()
        try:
            self._open_log()
        except BaseException:
            self._lock.release()
            raise
        return True

    @property
    def _state_path(self) -> Path:
        return self.folder / "state.json"

    def _open_log(self) -> None:
        self._log = AppendLog(self.folder / "settled.jsonl")
        with open(self._log.path, "rb") as lines:
            for line in lines:
                with contextlib.suppress(JsonError, KeyError, TypeError):  # as good as absent
                    self._take(from_json(line))

    def _take(self, line: Json) -> None:
        if "is_lost" in line:
            for key in [one for one, step in self._steps.items() if step == line["step"]]:
                del self._steps[key], self.accepted[key]
                self.finals.discard(key)
            return
        key = (str(line["kind"]), str(line["name"]), str(line["sha256"]))
        if line["is_accepted"]:
            self.accepted[key] = line["ref"]
            if key[0] != "sample":
                self._steps[key] = line["step"]
            if line.get("is_final"):
                self.finals.add(key)
        else:
            self.skipped.add(key)

    def begin_anew(self, journal: str) -> None:
        """Another run has the name: nothing that is known is of it. Raises StorageError."""
        self.close_log()
        remove(self.folder / "settled.jsonl")
        self.accepted, self.skipped, self.finals, self._steps = {}, set(), set(), {}
        self._open_log()
        self.keep(replace(_new_state(), journal=journal))

    def has(self, artifact: Artifact, *, is_final: bool = False) -> bool:
        return artifact.identity in (self.finals if is_final else self.accepted)

    def accept(self, artifact: Artifact, ref: str | None, *, is_final: bool = False) -> None:
        self._append(asdict(artifact) | {"is_accepted": True, "ref": ref} | ({"is_final": True} if is_final else {}))

    def forget(self, artifact: Artifact) -> None:
        """The other side has lost it: nothing of its checkpoint counts as accepted."""
        self._append({"kind": artifact.kind, "name": artifact.name, "step": artifact.step, "is_lost": True})

    def skip(self, kind: str, name: str, step: int, sha256: str) -> None:
        if (kind, name, sha256) not in self.skipped:
            self._append({"kind": kind, "name": name, "step": step, "sha256": sha256, "is_accepted": False})

    def _append(self, line: Json) -> None:
        self._take(line)
        if self._log is not None:
            with contextlib.suppress(StorageError):  # a full disk costs a question after the next start
                self._log.append(json_line(line | {"at": utc_now()}))

    def keep(self, state: State) -> None:
        """Publish a state before something is sent that must not be sent in another way. Raises StorageError."""
        if state != self._saved:
            write_atomic(self._state_path, pretty_json(state.to_json()))
        self.state = self._saved = state
        self._saved_s = time.monotonic()

    def save(self, **changes: Any) -> None:
        """Publish what has changed; a full disk costs a repetition after the next start."""
        self.state = replace(self.state, **changes)
        with contextlib.suppress(StorageError):
            self.keep(self.state)

    def note(self, **changes: Any) -> None:
        """Change what is published with whatever comes next, or a little later: all of it could be found again."""
        self.state = replace(self.state, **changes)
        if time.monotonic() - self._saved_s > _NOTE_EVERY_S:
            self.save()

    def close_log(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    def close(self) -> None:
        if self._log is not None:
            self.save()
        self.close_log()
        self._lock.release()


def _new_state() -> State:
    return State(os.urandom(8).hex())
