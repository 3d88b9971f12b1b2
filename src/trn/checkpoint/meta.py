"""step-XXXXXXXX.meta.json: the commit mark of a checkpoint. Without a valid meta there is no checkpoint.

Strict JSON, one object. `meta_sha256` is the sha256 of the canonical JSON of all other keys; `sha256` and
`size_bytes` are those of the `.pt` beside it; `journal` says how many bytes of each metrics file belong to this state.
`files` and `hook` are there where the trainer has a `save_checkpoint`, see trn.checkpoint.folder: every file of the
folder beside the `.pt`, and what the hook returned.
A reader refuses: a wrong own digest, a missing or unknown key, a `file` or `step` other than its name says.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from trn.checkpoint.folder import files_problem, folder_name, folder_problem
from trn.files import sha256_file
from trn.records import SCHEMA_VERSION, Json, JsonError, Position, pretty_json, read_json, sha256_json

__all__ = ["CheckpointMeta", "checkpoint_name", "listed_steps", "meta_name", "reject_reason"]

_NAME = re.compile(r"step-(\d{8,})\.meta\.json")


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}.pt"


def meta_name(step: int) -> str:
    return f"step-{step:08d}.meta.json"


def listed_steps(folder: Path) -> list[int]:
    """Steps that have a meta in `folder`, newest first; nothing is verified."""
    names = (_NAME.fullmatch(path.name) for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted((int(match.group(1)) for match in names if match), reverse=True)


_KINDS = {
    "file": str,
    "sha256": str,
    "size_bytes": int,
    "step": int,
    "epoch": int,
    "run_id": str,
    "job_id": str,
    "plan_fingerprint": str,
    "created_at": str,
    "metrics": dict,
    "journal": dict,
    "progress": dict,
    "rng": list,
}
_JOURNAL = {"train_metrics.jsonl", "val_metrics.jsonl"}


def _is_position(value: object) -> bool:
    if not isinstance(value, dict) or set(value) != {"offset", "sha256", "lines"}:
        return False
    return (
        all(type(value[key]) is int and value[key] >= 0 for key in ("offset", "lines")) and type(value["sha256"]) is str
    )


@dataclass(frozen=True)
class CheckpointMeta:
    """What a committed checkpoint says of itself. `progress` and `rng` repeat as JSON what the `.pt` holds."""

    file: str
    sha256: str
    size_bytes: int
    step: int
    epoch: int
    run_id: str
    job_id: str
    plan_fingerprint: str
    created_at: str
    metrics: Json
    """The deterministic part of the last metrics line."""
    journal: dict[str, Json]
    """File name -> `{offset, sha256, lines}`."""
    progress: Json
    rng: list[Json]
    """One entry a rank."""
    schema_version: int = SCHEMA_VERSION
    files: list[Json] | None = None
    """Of the trainer's own folder, `{path, size_bytes, sha256}` each; None where it has none."""
    hook: Json | None = None
    """What `save_checkpoint` returned."""

    def to_bytes(self) -> bytes:
        value = asdict(self)
        if self.files is None:
            del value["files"], value["hook"]
        return pretty_json(value | {"meta_sha256": sha256_json(value)})

    @property
    def folder(self) -> str | None:
        """The name of the trainer's own folder, None where there is none."""
        return None if self.files is None else folder_name(self.step)

    def positions(self) -> dict[str, Position]:
        """Where each metrics file ended at this checkpoint."""
        return {name: Position(**value) for name, value in self.journal.items()}

    @classmethod
    def read(cls, path: Path) -> CheckpointMeta:
        """The meta in `path`. Raises JsonError for whatever a reader refuses, OSError."""
        value = read_json(path)
        digest = value.pop("meta_sha256", None)
        if digest != sha256_json(value):
            raise JsonError("its own digest is wrong")
        if "files" in value and (problem := files_problem(value["files"])):
            raise JsonError(problem)
        if "files" not in value and "hook" not in value:
            value |= {"files": None, "hook": None}
        if set(value) != set(cls.__dataclass_fields__) or value["schema_version"] != SCHEMA_VERSION:
            raise JsonError("its keys or its schema_version are not those of this version")
        for key, kind in _KINDS.items():
            if type(value[key]) is not kind:
                raise JsonError(f"{key} is no {kind.__name__}")
        if not (value["hook"] is None or type(value["hook"]) is dict):
            raise JsonError("hook is no dict")
        if not set(value["journal"]) <= _JOURNAL or not all(map(_is_position, value["journal"].values())):
            raise JsonError("its journal is not what this version writes")
        meta = cls(**value)
        if meta_name(meta.step) != path.name or meta.file != checkpoint_name(meta.step):
            raise JsonError(f"it belongs to {meta.file!r} at step {meta.step}")
        return meta


def reject_reason(folder: Path, meta: CheckpointMeta, *, lineage: Collection[str], reports: Path) -> str | None:
    """Why the checkpoint of a readable meta must not be used, or None: plan, sizes, hashes and metrics all hold.

    `lineage` are the fingerprints of the run's plan in all its revisions.
    """
    if meta.plan_fingerprint not in lineage:
        return "it was made by another plan"
    path = folder / meta.file
    try:
        size = path.stat(follow_symlinks=False).st_size
        if size != meta.size_bytes:
            return f"{meta.file} has {size} bytes, its meta says {meta.size_bytes}"
        if sha256_file(path) != meta.sha256:
            return f"the sha256 of {meta.file} is not the one in its meta"
        if meta.files is not None and (problem := folder_problem(folder / folder_name(meta.step), meta.files)):
            return problem
    except OSError as error:
        return f"{Path(error.filename or meta.file).name} cannot be read: {error.strerror}"
    for name, position in meta.positions().items():
        if not position.holds_in(reports / name):
            return f"{name} does not begin with the {position.lines} lines that this checkpoint saw"
    return None
