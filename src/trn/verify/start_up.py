"""The start-up artifacts against their schemas, the plan, the journal and each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trn.files import sha256_file
from trn.provenance.resolved import config_resolved_yaml
from trn.provenance.run_meta import validate_run_meta
from trn.records import Json, from_json, read_json, read_lines
from trn.verify.finding import PLAN_NAME, Finding, Run

__all__ = ["check_run_meta", "check_start_up"]

RUN_META_NAME = "reports/run_meta.json"
RESOLVED_NAME = "reports/config_resolved.yaml"
_RUNTIME_ENV = {"schema_version", "env", "platform", "upstream", "launcher"}


def check_run_meta(run: Run) -> Iterator[Finding]:
    """run_meta.json against its schema; its words against the plan; its jobs and sources against what lies there."""
    data = (run.folder / RUN_META_NAME).read_bytes()
    if problems := validate_run_meta(data):
        yield from (Finding(RUN_META_NAME, problem) for problem in problems)
        return
    meta = from_json(data)
    yield from (Finding(RUN_META_NAME, problem) for problem in _contradictions(run, meta))
    for source in meta["config_sources"]:
        path = run.inside(source["name"])
        if not path.is_file():
            yield Finding(source["name"], f"it is gone; {RUN_META_NAME} names it")
        elif sha256_file(path) != source["sha256"]:
            yield Finding(source["name"], f"its sha256 is not the one in {RUN_META_NAME}")
    count = len(meta["jobs"])
    yield Finding(f"{RUN_META_NAME}: {count} job{'s' if count > 1 else ''}, {len(meta['config_sources'])} sources")


def _contradictions(run: Run, meta: Json) -> Iterator[str]:
    """What a valid document says that the plan or the journal says otherwise."""
    plan = run.plan
    told: dict[str, tuple[Any, Any]] = {
        "run_id": (meta["run_id"], plan.run_id),
        "dataset.fingerprint": (meta["dataset"]["fingerprint"], plan.dataset.data["fingerprint"]),
        "trainer.name": (meta["trainer"]["name"], plan.trainer.name),
    }
    if plan.revision == 0:  # the document's sections are of the first start
        told["trainer.code_sha256"] = (meta["trainer"]["code_sha256"], plan.trainer.code_sha256)
        told["runtime.threads"] = (meta["runtime"]["threads"], plan.threads)
        told["runtime.deterministic"] = (meta["runtime"]["deterministic"], plan.deterministic)
    for name, (found, planned) in told.items():
        if found != planned:
            yield f"{name} is {found!r}, the plan has {planned!r}"
    for job in meta["jobs"]:
        if job["plan_fingerprint"] not in plan.lineage:
            yield f"{job['job_id']} ran a plan that is none of this run's"
    known = {job["job_id"] for job in meta["jobs"]}
    for event in read_lines(run.reports / "events.jsonl"):
        if event.get("event") == "job_started" and event.get("job_id") not in known:
            yield f"{event.get('job_id')} started, and is not among its jobs"


def check_start_up(run: Run) -> Iterator[Finding]:
    """The other start-up artifacts: the plan for people, the flat record, the environment."""
    yield Finding(RESOLVED_NAME, _resolved_problem(run))
    name = "reports/run_metadata.json"
    record = read_json(run.folder / name)
    if record.get("schema_version") != 1 or record.get("run_name") != run.plan.run_id:
        yield Finding(name, "it is of another version or another run")
    for file in record["run_manifest_files"].values():
        if not run.inside(file).is_file():
            yield Finding(name, f"it names {file}, which is gone")
    yield Finding(f"{name}: {len(record['run_manifest_files'])} files")
    name = "reports/runtime_env.json"
    seen = read_json(run.folder / name)
    is_whole = set(seen) == _RUNTIME_ENV and seen["schema_version"] == 1
    yield Finding(name, None if is_whole else "its keys or its schema_version are not those of this version")


def _resolved_problem(run: Run) -> str | None:
    """Why the YAML is not the plan. It may be one revision behind: the next job mends what a kill left so."""
    found = (run.folder / RESOLVED_NAME).read_bytes()
    if found == config_resolved_yaml(read_json(run.folder / PLAN_NAME)):
        return None
    before = run.reports / "plans" / f"{run.plan.revision - 1}.json"
    if run.plan.revision and before.is_file() and found == config_resolved_yaml(read_json(before)):
        return None
    meta = read_json(run.folder / RUN_META_NAME)
    if any(str(place).startswith(f"{RESOLVED_NAME}:") for place in meta.get("redacted", ())):
        return None  # it was masked, and what is hidden cannot be compared
    return "it is not the plan"
