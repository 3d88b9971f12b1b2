"""How far a target is, and how it stands: one small file for each, `<runs_dir>/.trn/sinks/<run_id>/<digest>.json`.

The file is a courtesy, published whole or not at all. Without it, or with one that cannot be read, the target is
asked what it has, and one that cannot tell is sent all from the beginning.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from trn.addresses import Target
from trn.errors import StorageError
from trn.files import Lock, make_folder, write_atomic
from trn.records import JsonError, pretty_json, read_json, utc_now
from trn.sinks.reader import Anchor, count_lines

__all__ = [
    "Standing",
    "last_words",
    "lock_of",
    "never_sent",
    "position_file",
    "read_standing",
    "standing_words",
    "standings",
    "write_standing",
]

_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Standing:
    """What is known of one target: its position in the run's files, and what became of what was sent."""

    target: str
    job_id: str = ""
    journal: str = ""
    """Which journal the position is in: the mark of its first event."""
    seq: int = 0
    """Of the last event that it has, or that a curve sink has looked at."""
    offset: int = 0
    """Where that event's line ends in events.jsonl."""
    curves: dict[str, Any] = field(default_factory=dict)
    """Of a curve sink: an Anchor for each of its files."""
    sent: int = 0
    """Events, or lines of metrics, that it took, over all jobs; one that was sent twice counts twice."""
    behind: int = 0
    dropped: int = 0
    last_error: str | None = None
    """Null once sending has succeeded again."""
    failing_since: str | None = None
    updated_at: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": _SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Standing:
        """Raises JsonError for a value that is none."""
        fields = {name: one.type for name, one in cls.__dataclass_fields__.items()}
        if value.get("schema_version") != _SCHEMA_VERSION or {*value} != {"schema_version", *fields}:
            raise JsonError("no standing of a target of this version")
        for name, kind in fields.items():
            if not _fits(value[name], str(kind)):
                raise JsonError(f"{name}: {value[name]!r} is not of type {kind}")
        return cls(**{name: value[name] for name in fields})


def _fits(value: object, kind: str) -> bool:
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if kind.startswith("dict"):
        return isinstance(value, dict)
    return isinstance(value, str) or (value is None and "None" in kind)


def position_file(run_dir: Path, target: Target) -> Path:
    """Where the standing of a target of this run is kept."""
    return _folder(run_dir) / f"{target.digest}.json"


def _folder(run_dir: Path) -> Path:
    return run_dir.parent / ".trn" / "sinks" / run_dir.name


def read_standing(path: Path, target: Target) -> Standing:
    """What the file says; the beginning where there is none, or none that can be read."""
    try:
        return Standing.from_json(read_json(path))
    except (JsonError, OSError):
        return Standing(target.text)


def write_standing(path: Path, standing: Standing) -> None:
    """Publish it. A disk that is full costs a repetition after the next start, and nothing else."""
    with contextlib.suppress(StorageError):
        make_folder(path.parent)
        write_atomic(path, pretty_json(replace(standing, updated_at=utc_now()).to_json()))


def lock_of(path: Path) -> Lock:
    """Held by the one process that sends to this target."""
    make_folder(path.parent)
    return Lock(path.with_suffix(".lock"))


def standings(run_dir: Path) -> Iterator[Standing]:
    """Of all targets that this run was ever sent to, by their text, but for `-`; `behind` is as of now."""
    found = []
    for path in _folder(run_dir).glob("*.json"):
        try:
            found.append(Standing.from_json(read_json(path)))
        except (JsonError, OSError):
            continue  # one that cannot be read is as good as none
    for standing in sorted((one for one in found if one.target != "-"), key=lambda one: one.target):
        yield replace(standing, behind=_behind(run_dir / "reports", standing))


def last_words(standing: Standing, run_dir: Path) -> str | None:
    """What is to be told of a target when the job has ended; None where it has everything."""
    if not standing.behind and not standing.dropped:
        return None if standing.failing_since is None else f"trn: {standing.target}: {standing.last_error}"
    counts = [f"{standing.behind} not delivered"] if standing.behind else []
    counts += [f"{standing.dropped} refused by it"] if standing.dropped else []
    reason = f" ({standing.last_error})" if standing.last_error else ""
    hint = _hint(run_dir, standing.target)
    unit = "lines of metrics" if standing.curves else "events"
    return f"trn: {standing.target}: {' and '.join(counts)}, of {unit}{reason}{hint if standing.behind else ''}"


def never_sent(target: str, run_dir: Path, log: Path) -> str:
    """What is to be told of a target that nothing is known of."""
    return f"trn: {target}: what sends ended too soon, see {log}{_hint(run_dir, target)}"


def _hint(run_dir: Path, target: str) -> str:
    return f"; deliver with: trn relay {shlex.quote(str(run_dir))} --to {shlex.quote(target)}"


def standing_words(standing: Standing) -> str:
    """How a target stands, for people."""
    parts = [standing.target, f"{standing.sent} sent", *([f"{standing.behind} behind"] if standing.behind else [])]
    parts += [f"{standing.dropped} refused"] if standing.dropped else []
    return ", ".join(parts) + (f" ({standing.last_error})" if standing.last_error else "")


def _behind(reports: Path, standing: Standing) -> int:
    if not standing.curves:
        return count_lines(reports / "events.jsonl", standing.offset)
    ends = {name: Anchor.from_json(value).end for name, value in standing.curves.items()}
    return sum(count_lines(reports / f"{name}_metrics.jsonl", end) for name, end in ends.items())
