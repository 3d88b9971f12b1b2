"""run_meta.json: everything that a stranger needs to say what a run was, and the check that it says so.

    build_run_meta ──> bytes in reports/ ──add_job at each resume──> one entry more, none less ──> validate_run_meta

The models of `run_meta_schema` are both: the writer cannot write what the validator refuses.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from trn.provenance.run_meta_schema import SCHEMA_VERSION, Job, RunMeta
from trn.records import Json, JsonError, from_json

__all__ = ["add_job", "build_run_meta", "job_entry", "validate_run_meta"]

_SHOWN_CHARS = 60


def build_run_meta(
    *,
    run_id: str,
    plan_fingerprint: str,
    git: Mapping[str, Any],
    dependency_lock: Mapping[str, Any],
    hardware: Mapping[str, Any],
    runtime: Mapping[str, Any],
    argv: Sequence[str],
    cwd: str,
    dataset_fingerprint: str,
    trainer_name: str,
    code_sha256: str,
    config_sources: Sequence[Mapping[str, Any]],
    job_id: str,
    created_at: str,
    preprocess: Mapping[str, Any] | None = None,
    redacted: Sequence[str] = (),
) -> Json:
    """The content of run_meta.json at the first start of a run, with its first job. Texts come in already redacted.

    Raises ValueError (pydantic's) where a value is not what the schema says: that is a mistake of the caller.
    """
    sections = {
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "created_at": created_at,
        "plan_fingerprint": plan_fingerprint,
        "git": dict(git),
        "dependency_lock": dict(dependency_lock),
        "preprocess": dict(preprocess or {"kind": "none"}),
        "hardware": dict(hardware),
        "runtime": dict(runtime),
        "command": {"argv": list(argv), "command_str": shlex.join(argv), "cwd": cwd},
        "dataset": {"fingerprint": dataset_fingerprint},
        "trainer": {"name": trainer_name, "code_sha256": code_sha256},
        "config_sources": [dict(source) for source in config_sources],
        "redacted": list(redacted),
    }
    first = job_entry(
        job_id=job_id,
        started_at=created_at,
        from_step=None,
        argv=argv,
        host=hardware["host"]["hostname"],
        python_version=runtime["python_version"],
        torch_version=runtime["torch_version"],
        git=git,
        package_set_sha256=dependency_lock["package_set_sha256"],
        code_sha256=code_sha256,
        plan_fingerprint=plan_fingerprint,
    )
    return RunMeta.model_validate({**sections, "jobs": [first]}).model_dump(mode="json")


def job_entry(
    *,
    job_id: str,
    started_at: str,
    from_step: int | None,
    argv: Sequence[str],
    host: str,
    python_version: str,
    torch_version: str,
    git: Mapping[str, Any],
    package_set_sha256: str,
    code_sha256: str,
    plan_fingerprint: str,
) -> Json:
    """The entry of one job; `from_step` is null for the first start and the restored step (0 or more) for a resume."""
    entry = {
        "job_id": job_id,
        "started_at": started_at,
        "resume": from_step is not None,
        "from_step": from_step,
        "argv": list(argv),
        "host": host,
        "python_version": python_version,
        "torch_version": torch_version,
        "git_sha": git["sha"],
        "git_dirty": git["dirty"],
        "package_set_sha256": package_set_sha256,
        "code_sha256": code_sha256,
        "plan_fingerprint": plan_fingerprint,
    }
    return Job.model_validate(entry).model_dump(mode="json")


def add_job(meta: Mapping[str, Any], entry: Mapping[str, Any]) -> Json:
    """`meta` with one entry more, all earlier ones as they were; `meta` itself is not changed.

    Raises ValueError where the result is no valid run_meta: the document was damaged, or the job is already in it.
    """
    extended = {**meta, "jobs": [*meta.get("jobs", []), dict(entry)]}
    return RunMeta.model_validate(extended).model_dump(mode="json")


def validate_run_meta(data: bytes) -> list[str]:
    """What is wrong with the bytes of a run_meta.json, a line for each problem; empty where nothing is."""
    try:
        value = from_json(data)
    except JsonError as error:
        return [f"not strict JSON: {error}"]
    try:
        RunMeta.model_validate(value)
    except ValidationError as error:
        return [_problem(one) for one in error.errors(include_url=False)]
    return []


def _problem(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"]) or "run_meta"
    if error["type"] == "missing":
        return f"{place}: missing"
    if error["type"] == "extra_forbidden":
        return f"{place}: unknown key"
    text = error["msg"].removeprefix("Value error, ")
    found = error["input"]
    if isinstance(found, dict | list):
        return f"{place}: {text}"
    shown = ascii(found)
    return f"{place}: {text}; found {shown if len(shown) <= _SHOWN_CHARS else shown[:_SHOWN_CHARS] + '...'}"
