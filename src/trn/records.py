"""What is written down about runs and jobs: events, outcomes, job rows, and the strict JSON they are written in.

Plain dataclasses, so that reading a run costs an interpreter and nothing more. JSON here is strict both ways: UTF-8,
no NaN or Infinity, no duplicate keys, bounded size and depth. `canonical_json` is the form that is digested: sorted
keys, no spaces, shortest floats.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from stat import S_ISREG
from typing import Any

from trn.errors import STATUS
from trn.files import new_sha256, sha256_prefix

__all__ = [
    "EMPTY",
    "ENDINGS",
    "EVENT_HEAD",
    "EVENT_KINDS",
    "JOB_LOG_KINDS",
    "JOB_STATES",
    "REPORTED_KINDS",
    "RUN_ID_PATTERN",
    "STEP_KEYS",
    "TIMING_KEYS",
    "JobRow",
    "JsonError",
    "Outcome",
    "Position",
    "cancel_path",
    "canonical_json",
    "deterministic_part",
    "ending_of",
    "flat_line",
    "from_json",
    "json_line",
    "new_job_id",
    "new_run_id",
    "pretty_json",
    "read_json",
    "read_lines",
    "sha256_json",
    "utc_now",
    "version_name",
    "version_of",
]

Json = dict[str, Any]

SCHEMA_VERSION = 1

RUN_ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RESERVED_RUN_IDS = frozenset({"jobs", "logs"})
_VERSION = re.compile(r"v([0-9]{1,9})-[0-9]{8}-[0-9]{6}")

STEP_KEYS = (
    "step",
    "epoch",
    "train_loss",
    "grad_norm",
    "lr",
    "tokens_per_sec",
    "samples_per_sec",
    "gpu_util_pct",
    "wall_ms",
    "data_wait_ms",
    "tokens_seen",
)
"""Keys that every line of train_metrics.jsonl has, null where unknown; the trainer's own metrics follow them."""

TIMING_KEYS = frozenset({"tokens_per_sec", "samples_per_sec", "gpu_util_pct", "wall_ms", "data_wait_ms"})
"""The keys of a metrics line that a clock or a sensor gave: all others are a function of (plan, step)."""

EVENT_KINDS = (
    "job_submitted",
    "job_rejected",
    "job_started",
    "plan_written",
    "resumed",
    "started",
    "metric",
    "heartbeat",
    "checkpoint",
    "checkpoint_rejected",
    "metrics_cut",
    "evaluated",
    "sample",
    "step_skipped",
    "gate",
    "epoch",
    "data_touched",
    "data_wrapped",
    "weights_loaded",
    "compile_fallback",
    "loss_scale",
    "note",
    "exported",
    "parity",
    "stop_requested",
    "preempted",
    "cancelled",
    "completed",
    "failed",
)

JOB_LOG_KINDS = ("job_submitted", "state", "output", "job_rejected", "ended")
"""Kinds of lines in the log of a job, which its door writes. The two called `job_` are events as well: of a request,
before there is a run, or where there never was one."""

REPORTED_KINDS = frozenset({"weights_loaded", "compile_fallback", "loss_scale"})
"""Kinds that a trainer may report; any other that it names is a `note`."""

EVENT_HEAD = frozenset({"event", "run_id", "job_id", "seq", "ts"})
"""Keys that every event has, and no metric may be called."""

ENDINGS = frozenset({"completed", "preempted", "cancelled", "failed"})
"""Exactly one event of these kinds ends a job."""

JOB_STATES = ("submitted", "queued", "starting", "running", "rejected", "lost", *STATUS)
"""What a job can be: on its way, ended with an outcome's word, or `lost`: not ended, and nobody holds its run."""


def ending_of(status: str) -> str:
    """The kind of the event that ends a job whose outcome is `status`."""
    if status in ("preempted", "cancelled"):
        return status
    return "completed" if STATUS[status].exit == 0 else "failed"


def utc_now() -> str:
    """Now, in UTC, as ISO 8601 with microseconds and a `Z`."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def new_run_id() -> str:
    """A run id that sorts by time: UTC stamp and a random tail."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.urandom(3).hex()}"


def version_name(run_id: str, number: int) -> str:
    """The id of a version of the run `run_id`: `exp01-v0-20261122-093000`, in UTC."""
    return f"{run_id}-v{number}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def version_of(name: str, run_id: str) -> int | None:
    """Which version of the run `run_id` the id `name` is; None where it is none."""
    found = _VERSION.fullmatch(name.removeprefix(f"{run_id}-")) if name.startswith(f"{run_id}-") else None
    return int(found[1]) if found else None


def cancel_path(runs_dir: Path, job_id: str) -> Path:
    """The file that asks a job to end as cancelled: a JSON object with `reason`, and `now` where it shall not save."""
    return runs_dir / ".trn" / "cancel" / job_id


def new_job_id() -> str:
    """A job id that sorts by time, to the microsecond, with a random tail."""
    return f"job-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}-{os.urandom(3).hex()}"


class JsonError(ValueError):
    """Bytes that are not strict JSON, or hold more than a reader accepts; says why."""


_MAX_BYTES = 64 << 20
_MAX_DEPTH = 64
_line_encoder = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def json_line(value: Mapping[str, Any]) -> bytes:
    """One strict JSON object and a newline. Raises ValueError for NaN or Infinity: they are never written."""
    return _line_encoder.encode(value).encode() + b"\n"


def flat_line(value: dict[str, Any]) -> bytes:
    """The same bytes for numbers by name, at half the cost: a metrics line is written at every step."""
    return "".join(_flat_encoder(value, 0)).encode() + b"\n"


def _make_flat_encoder() -> Callable[[dict[str, Any], int], Iterable[str]]:
    """What `JSONEncoder.encode` makes anew at each call: 16 us a line between steps, 9 where it is kept.

    It does not look for values that hold themselves: not for the events, whose fields may be a trainer's.
    """
    make: Any = getattr(json.encoder, "c_make_encoder", None)
    if make is None:  # an interpreter without it
        return lambda value, level: _line_encoder.iterencode(value)
    text: Any = getattr(json.encoder, "encode_basestring")  # noqa: B009 - not in the type stubs
    encoder: Callable[[dict[str, Any], int], Iterable[str]] = make(
        None, _line_encoder.default, text, None, ":", ",", False, False, False
    )
    return encoder


_flat_encoder = _make_flat_encoder()


def canonical_json(value: Any) -> bytes:
    """The bytes that are digested: sorted keys, no spaces, UTF-8. Raises ValueError for NaN or Infinity."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def pretty_json(value: Any) -> bytes:
    """For people: two spaces, keys as given, one newline at the end. Raises ValueError for NaN or Infinity."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False, indent=2).encode() + b"\n"


def sha256_json(value: Any) -> str:
    """Hex sha256 of `canonical_json(value)`."""
    return new_sha256(canonical_json(value)).hexdigest()


def _unique(pairs: list[tuple[str, Any]]) -> Json:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        raise JsonError(f"duplicate key {next(key for key in keys if keys.count(key) > 1)!r}")
    return value


def _refuse_constant(name: str) -> Any:
    raise JsonError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise JsonError(f"number out of range: {text[:40]}")
    return value


def _check_depth(text: str) -> None:
    """Bound the nesting before parsing: quick for flat records, exact enough to keep the parser's stack small."""
    depth = 0
    in_string = escaped = False
    for char in text:
        if in_string:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                in_string = False
        elif char == '"':
            in_string = True
        elif char in "[{":
            depth += 1
            if depth > _MAX_DEPTH:
                raise JsonError(f"nested deeper than {_MAX_DEPTH}")
        elif char in "]}":
            depth -= 1


def from_json(data: bytes) -> Any:
    """The value of strict JSON bytes. Raises JsonError: NaN, duplicate keys, too large, too deep, not UTF-8."""
    if len(data) > _MAX_BYTES:
        raise JsonError(f"{len(data)} bytes, more than {_MAX_BYTES}")
    try:
        text = data.decode("utf-8")
        if text.count("[") + text.count("{") > _MAX_DEPTH:
            _check_depth(text)
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)
    except JsonError:
        raise
    except (UnicodeDecodeError, ValueError) as error:
        raise JsonError(str(error)) from error


def read_json(path: Path) -> Json:
    """The JSON object in a file. Raises JsonError (also when it is no object), OSError."""
    status = path.stat()
    if not S_ISREG(status.st_mode):
        raise JsonError(f"{path.name} is no plain file")
    if status.st_size > _MAX_BYTES:
        raise JsonError(f"{path.name} has more than {_MAX_BYTES} bytes")
    value = from_json(path.read_bytes())
    if not isinstance(value, dict):
        raise JsonError(f"{path.name} holds no JSON object")
    return value


def read_lines(path: Path) -> Iterator[Json]:
    """The objects of a JSON-lines file, in order; a torn last line is not given. Raises JsonError with the line.

    A missing file has no lines.
    """
    try:
        if not S_ISREG(path.stat().st_mode):
            raise JsonError(f"{path.name} is no plain file")
        stream = open(path, "rb")  # noqa: SIM115 - closed below; the with would hide which call may not find it
    except FileNotFoundError:
        return
    with stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                return
            try:
                value = from_json(line)
            except JsonError as error:
                raise JsonError(f"{path.name}:{number}: {error}") from error
            if not isinstance(value, dict):
                raise JsonError(f"{path.name}:{number}: no JSON object")
            yield value


def deterministic_part(line: Mapping[str, Any]) -> Json:
    """A metrics line without what clocks and sensors gave: equal in any two runs of one plan."""
    return {key: value for key, value in line.items() if key not in TIMING_KEYS}


@dataclass(frozen=True)
class Position:
    """A point in a metrics file: its length in bytes there, the sha256 of those bytes, and how many lines they are."""

    offset: int
    sha256: str
    lines: int

    def holds_in(self, path: Path) -> bool:
        """Whether the file still begins with exactly these bytes."""
        return sha256_prefix(path, self.offset) == self.sha256


EMPTY = Position(0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", 0)
"""The beginning of any file: what a run without a checkpoint is cut back to."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended; the content of reports/outcome.json.

    `final` is the last validation, `{"step", "val_loss", ...}`; `best` is `{"step", "metric", "value"}`; `checkpoint`
    is `{"file", "sha256", "step"}` of the last committed one; each null where there is none. `artifacts` maps paths in
    the run's folder to sha256.

    `exact` is said of a loop of the user's own alone (trn.open_run): whether a kill and a resume give the same bits,
    and in `inexact_because` why not. An outcome of the runner's has neither key.
    """

    status: str
    reason: str
    step: int
    run_id: str
    job_id: str
    epochs_completed: int
    plan_fingerprint: str
    started_at: str
    ended_at: str
    resumable: bool
    final: Json | None = None
    best: Json | None = None
    checkpoint: Json | None = None
    artifacts: dict[str, str] = field(default_factory=dict)
    exit_code: int = -1
    schema_version: int = SCHEMA_VERSION
    exact: bool | None = None
    inexact_because: list[str] | None = None

    def __post_init__(self) -> None:
        if self.exit_code == -1:
            object.__setattr__(self, "exit_code", STATUS[self.status].exit)

    def to_json(self) -> Json:
        return {key: value for key, value in asdict(self).items() if value is not None or key not in _LEFT_OUT}

    @classmethod
    def from_json(cls, value: Json) -> Outcome:
        """Raises JsonError for missing, unknown or ill-typed fields, and where status and exit code disagree."""
        _require({**dict.fromkeys(_LEFT_OUT), **value}, cls, "outcome")
        outcome = cls(**value)
        if not RUN_ID_PATTERN.fullmatch(outcome.job_id) or not RUN_ID_PATTERN.fullmatch(outcome.run_id):
            raise JsonError("outcome: job_id and run_id are no ids")
        if outcome.status not in STATUS or STATUS[outcome.status].exit != outcome.exit_code:
            raise JsonError(f"outcome: status {outcome.status!r} does not go with exit code {outcome.exit_code!r}")
        return outcome


_LEFT_OUT = ("exact", "inexact_because")
"""Keys of an outcome that are not there where they are null."""


@dataclass(frozen=True)
class JobRow:
    """One request to bring a run forward, as the job store holds it; times are UTC, null until known.

    `devices` is the JSON text of a list of names, `["cuda:0","cpu:2"]`: what the job holds. `engine_id` is its name in
    the engine that `launcher` is, and `generation` how many processes took the run's lock until this job did.
    """

    job_id: str
    run_id: str
    run_dir: str
    state: str
    config_path: str
    submitted_at: str
    started_at: str | None = None
    ended_at: str | None = None
    pid: int | None = None
    exit_code: int | None = None
    reason: str | None = None
    revision: int = 0
    launcher: str = "local"
    engine_id: str | None = None
    devices: str | None = None
    generation: int = 0

    def to_json(self) -> Json:
        """The row by name, `devices` as a list; null where nothing is known or what stands there is no list."""
        row = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**row, "devices": self.device_names() or None}

    def device_names(self) -> list[str]:
        """The devices that the job holds."""
        try:
            names = from_json(self.devices.encode()) if self.devices else []
        except JsonError:
            return []
        return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []

    @classmethod
    def from_json(cls, value: Json) -> JobRow:
        """A row from what `to_json` gave, also an earlier version's. Raises JsonError for anything else."""
        row = {**_NEW_IN_ROWS, **value}
        devices = row.get("devices")
        if isinstance(devices, list):
            row["devices"] = canonical_json(devices).decode()
        _require(row, cls, "job")
        if row["state"] not in JOB_STATES:
            raise JsonError(f"job: no state is called {row['state']!r}")
        return cls(**row)


_NEW_IN_ROWS: Json = {"launcher": "local", "engine_id": None, "devices": None, "generation": 0}
"""What the rows of the first version of the job store did not have."""

_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str, type(None)),
    "int": (int,),
    "int | None": (int, type(None)),
    "bool": (bool,),
    "bool | None": (bool, type(None)),
    "list[str] | None": (list, type(None)),
    "Json | None": (dict, type(None)),
    "dict[str, str]": (dict,),
}


def _require(value: Json, kind: type, name: str) -> None:
    fields = kind.__dataclass_fields__  # type: ignore[attr-defined]  # a dataclass by contract of this module
    if missing := sorted(set(fields) - set(value)):
        raise JsonError(f"{name}: missing {', '.join(missing)}")
    if unknown := sorted(set(value) - set(fields)):
        raise JsonError(f"{name}: unknown {', '.join(unknown)}")
    for key, one in fields.items():
        expected = _TYPES[one.type]
        if not isinstance(value[key], expected) or (bool not in expected and isinstance(value[key], bool)):
            raise JsonError(f"{name}.{key}: {value[key]!r} is not of type {one.type}")
        if not _is_storable(value[key]):
            raise JsonError(f"{name}.{key}: {value[key]!r} is more than a store of jobs can hold")


def _is_storable(value: object) -> bool:
    """Not a number of more than 64 bits, nor text with half a character, as JSON can have both."""
    if isinstance(value, int):
        return value.bit_length() < 64
    return not (isinstance(value, str) and not value.isascii() and any("\ud800" <= one <= "\udfff" for one in value))
