"""The schema of run_meta.json: one set of models that the writer fills and the validator applies.

Every key is required, none may be added, and no value is converted. What two places of the document say about one
thing must agree; the sections check what they can see, `RunMeta` what lies between them.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from trn.provenance.git import MAX_STATUS_LINES
from trn.records import RESERVED_RUN_IDS, RUN_ID_PATTERN, canonical_json

__all__ = ["SCHEMA_VERSION", "Job", "RunMeta"]

SCHEMA_VERSION = 1


def _check_schema_version(number: int) -> int:
    """Literal[1] would take 1.0 and true for 1, strict or not (pydantic 2.14)."""
    if number != SCHEMA_VERSION:
        raise ValueError(f"expected {SCHEMA_VERSION}")
    return number


def _check_time(text: str) -> str:
    datetime.fromisoformat(text)  # raises ValueError for a 31st of June
    return text


def _check_run_id(text: str) -> str:
    if not RUN_ID_PATTERN.fullmatch(text) or text in RESERVED_RUN_IDS:
        raise ValueError("expected a run id, [A-Za-z0-9][A-Za-z0-9._-]{0,63}")
    return text


def _check_relative(text: str) -> str:
    if text.startswith("/") or "\\" in text or any(part in ("", ".", "..") for part in text.split("/")):
        raise ValueError("expected a relative path without . and ..")
    return text


Text = Annotated[str, StringConstraints(min_length=1)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
CommitSha = Annotated[str, StringConstraints(pattern=r"^(?:[0-9a-f]{40}|[0-9a-f]{64})$")]
Version = Annotated[str, StringConstraints(pattern=r"^[0-9]+\.[0-9]+\S*$")]
UtcTime = Annotated[
    str,
    StringConstraints(
        pattern=r"^[0-9]{4}-[0-9][0-9]-[0-9][0-9]T[0-9][0-9]:[0-9][0-9]:[0-9][0-9](?:\.[0-9]{1,6})?(?:Z|\+00:00)$"
    ),
    AfterValidator(_check_time),
]
RunId = Annotated[str, AfterValidator(_check_run_id)]
RelativePath = Annotated[Text, AfterValidator(_check_relative)]
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Git(_Section):
    sha: CommitSha | None
    branch: Text | None
    dirty: bool | None
    """Whether anything differs from the commit; untracked files count."""
    status_porcelain: Annotated[list[Text], Field(max_length=MAX_STATUS_LINES)]
    reason: Text | None
    """Why one of the above is null."""

    @model_validator(mode="after")
    def _agree(self) -> Git:
        if self.reason is None and None in (self.sha, self.branch, self.dirty):
            raise ValueError("sha, branch or dirty is null without a reason")
        if self.reason is not None and None not in (self.sha, self.branch, self.dirty):
            raise ValueError("there is a reason, and nothing is null")
        if bool(self.dirty) != bool(self.status_porcelain):
            raise ValueError("dirty and status_porcelain do not agree")
        return self


class DependencyLock(_Section):
    python_version: Version
    package_count: NotNegative
    package_set_sha256: Sha256
    requirements_files_sha256: dict[RelativePath, Sha256 | None]
    """null: the file is there and could not be read."""


class Host(_Section):
    hostname: Text
    machine: Text
    system: Text
    cpu_count: Positive | None
    cpu_usable: Positive | None
    memory_bytes: Positive | None


class DeviceRow(_Section):
    index: NotNegative
    name: Text
    memory_bytes: Positive | None
    capability: Text | None


class AcceleratorRow(_Section):
    available: bool
    kind: Text | None
    version: Text | None
    driver_version: Text | None
    devices: list[DeviceRow]
    reason: Text | None

    @model_validator(mode="after")
    def _agree(self) -> AcceleratorRow:
        if self.available != bool(self.devices) or self.available != (self.kind is not None):
            raise ValueError("available, kind and devices do not agree")
        if len({device.index for device in self.devices}) != len(self.devices):
            raise ValueError("two devices have one index")
        return self


class Hardware(_Section):
    host: Host
    accelerator: AcceleratorRow


class Runtime(_Section):
    python_version: Version
    python_implementation: Text
    python_executable: Text
    platform: Text
    torch_version: Version
    versions: dict[Text, Text]
    threads: Positive
    interop_threads: Positive | None
    deterministic: bool | Literal["warn"]
    flags: dict[Text, bool | int | str | None]


class Command(_Section):
    argv: Annotated[list[str], Field(min_length=1)]
    command_str: Text
    cwd: Text

    @model_validator(mode="after")
    def _agree(self) -> Command:
        if self.command_str != shlex.join(self.argv):
            raise ValueError("command_str is not argv, quoted for a shell")
        return self


class DatasetRow(_Section):
    fingerprint: Sha256


class TrainerRow(_Section):
    name: Text
    code_sha256: Sha256


class ConfigSource(_Section):
    name: RelativePath
    """Its name in the run's folder."""
    path: Text
    """Where it was read."""
    sha256: Sha256
    """Of the file in the run's folder; of the original too, where it is verbatim."""
    form: Literal["verbatim", "masked", "rewritten"]


class Job(_Section):
    """One job of the run: with what it was started, and on which code."""

    job_id: RunId
    started_at: UtcTime
    resume: bool
    from_step: NotNegative | None
    argv: Annotated[list[str], Field(min_length=1)]
    host: Text
    python_version: Version
    torch_version: Version
    git_sha: CommitSha | None
    git_dirty: bool | None
    package_set_sha256: Sha256
    code_sha256: Sha256
    plan_fingerprint: Sha256

    @model_validator(mode="after")
    def _agree(self) -> Job:
        if self.resume != (self.from_step is not None):
            raise ValueError("a resume has from_step, a first start has none")
        return self


class RunMeta(_Section):
    """The document. Its sections describe the first start; what a later job ran on stands in its own entry."""

    schema_version: Annotated[int, AfterValidator(_check_schema_version)]
    run_id: RunId
    created_at: UtcTime
    plan_fingerprint: Sha256
    git: Git
    dependency_lock: DependencyLock
    preprocess: dict[str, Any]
    """What was done to the data before the trainer saw it: `kind` and its own fields."""
    hardware: Hardware
    runtime: Runtime
    command: Command
    dataset: DatasetRow
    trainer: TrainerRow
    config_sources: Annotated[list[ConfigSource], Field(min_length=1)]
    redacted: list[Text]
    """Where a secret was masked: paths into the artifacts, never values."""
    jobs: Annotated[list[Job], Field(min_length=1)]

    @model_validator(mode="after")
    def _agree(self) -> RunMeta:
        problems = [*_problems_of_sections(self), *_problems_of_jobs(self)]
        if problems:
            raise ValueError("; ".join(problems))
        return self


def _problems_of_sections(meta: RunMeta) -> Iterator[str]:
    kind = meta.preprocess.get("kind")
    if not isinstance(kind, str) or not kind:
        yield "preprocess.kind is missing"
    canonical_json(meta.preprocess)  # raises ValueError for NaN, which a model of free fields lets through
    versions = {meta.dependency_lock.python_version, meta.runtime.python_version}
    if len(versions | {meta.runtime.versions.get("python", meta.runtime.python_version)}) > 1:
        yield "dependency_lock and runtime name different versions of Python"
    names = [source.name for source in meta.config_sources]
    if len(set(names)) != len(names):
        yield "two config_sources have one name"


def _problems_of_jobs(meta: RunMeta) -> Iterator[str]:
    first, *later = meta.jobs
    told = {
        "started_at": meta.created_at,
        "argv": meta.command.argv,
        "host": meta.hardware.host.hostname,
        "python_version": meta.runtime.python_version,
        "torch_version": meta.runtime.torch_version,
        "git_sha": meta.git.sha,
        "git_dirty": meta.git.dirty,
        "package_set_sha256": meta.dependency_lock.package_set_sha256,
        "code_sha256": meta.trainer.code_sha256,
        "plan_fingerprint": meta.plan_fingerprint,
    }
    for name, value in told.items():
        if getattr(first, name) != value:
            yield f"jobs[0].{name} is not what the sections say"
    if first.resume:
        yield "jobs[0] is a resume"
    if any(not job.resume for job in later):
        yield "a job after the first is not a resume"
    if len({job.job_id for job in meta.jobs}) != len(meta.jobs):
        yield "two jobs have one job_id"
