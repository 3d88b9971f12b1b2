"""All start-up artifacts of a run, as bytes: what is written before the first batch is fetched.

    StartupFacts ──> redactor ──> run_meta, run_metadata, runtime_env, config_resolved, config sources ──> path: bytes

Nothing is written here. The one redactor is made from everything that can name a secret (environment, argv, plan and
sources), so that what one of them gives away is hidden in all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trn.errors import VerificationFailed
from trn.provenance.environment import runtime_env
from trn.provenance.git import git_state
from trn.provenance.lock import dependency_lock
from trn.provenance.machine import TorchFacts, hardware, host, runtime
from trn.provenance.redact import Redactor, changed_paths, encodable
from trn.provenance.resolved import config_resolved_yaml
from trn.provenance.run_meta import add_job, build_run_meta, job_entry, validate_run_meta
from trn.provenance.run_metadata import build_run_metadata
from trn.provenance.sources import KeptSource, SourceText, keep_sources, read_sources
from trn.records import Json, from_json, pretty_json

__all__ = ["StartupFacts", "make_redactor", "resumed_run_meta", "startup_artifacts"]

_PATHS = {
    "run_meta": "reports/run_meta.json",
    "run_metadata": "reports/run_metadata.json",
    "runtime_env": "reports/runtime_env.json",
    "config_resolved": "reports/config_resolved.yaml",
}


@dataclass(frozen=True)
class StartupFacts:
    """What provenance is told about one job; plain values, read by the runner when everything is set up."""

    plan: Mapping[str, Any]
    """The plan as JSON (the content of reports/resolved_config.json)."""
    run_id: str
    job_id: str
    started_at: str
    """UTC, as trn.records.utc_now writes it."""
    argv: Sequence[str]
    cwd: str
    code_folder: Path
    """The folder of the trainer's module."""
    environ: Mapping[str, str]
    sources: Sequence[tuple[str | Path, bytes]]
    """Path and bytes of each file the spec was made from, the config itself first."""
    torch: TorchFacts
    preprocess: Mapping[str, Any] | None = None
    """null: the data reach the trainer as they are."""
    libraries: tuple[str, ...] = ()
    """Distributions whose versions matter to this trainer, beside those that always do."""


def make_redactor(facts: StartupFacts) -> Redactor:
    """The redactor for everything that this job writes: it knows the secrets that its facts give away."""
    return _redactor(facts, read_sources(facts.sources))


def startup_artifacts(facts: StartupFacts) -> dict[str, bytes]:
    """Relative path -> content of each start-up artifact of a new run; no secret of `facts` is in any of them."""
    texts = read_sources(facts.sources)
    redactor = _redactor(facts, texts)
    kept = keep_sources(texts, redactor)
    git = _git(facts, redactor)
    seen = runtime_env(_environ(facts), redactor, facts.libraries)
    files = _PATHS | {Path(source.name).stem: source.name for source in kept}
    plan = redactor.value(facts.plan)
    metadata = build_run_metadata(
        created_at=facts.started_at,
        run_name=facts.run_id,
        output_dir=plan["run_dir"],
        config=plan["config_path"],
        base_configs=plan["base_config_path"],
        dataset_seed=plan["dataset_seed"],
        git=git,
        upstream=seen["upstream"],
        launcher=seen["launcher"],
        files=files,
        experiment=plan.get("experiment", {}),
    )
    return {
        _PATHS["run_meta"]: pretty_json(_run_meta(facts, redactor, git, plan, kept)),
        _PATHS["run_metadata"]: pretty_json(metadata),
        _PATHS["runtime_env"]: pretty_json(seen),
        _PATHS["config_resolved"]: config_resolved_yaml(plan),
        **{source.name: source.data for source in kept},
    }


def resumed_run_meta(data: bytes, facts: StartupFacts, from_step: int) -> bytes:
    """run_meta.json with the entry of this job, which goes on after `from_step`; `data` is what the run has now.

    The sections stay as the first start wrote them. Raises VerificationFailed where `data` is no valid run_meta, or
    this job is in it already.
    """
    redactor = make_redactor(facts)
    if problems := validate_run_meta(data):
        raise VerificationFailed(
            f"{problems[0]}.", where=_PATHS["run_meta"], hint="Restore the file, or move it aside to start a new one."
        )
    meta = from_json(data)
    if any(job["job_id"] == facts.job_id for job in meta["jobs"]):
        raise VerificationFailed(f"job {facts.job_id} is in it already.", where=_PATHS["run_meta"])
    return pretty_json(add_job(meta, _resume_entry(facts, redactor, from_step)))


def _redactor(facts: StartupFacts, texts: Sequence[SourceText]) -> Redactor:
    values = (text.value for text in texts)
    return Redactor.knowing(_environ(facts), [encodable(text) for text in facts.argv], facts.plan, *values)


def _environ(facts: StartupFacts) -> dict[str, str]:
    return {encodable(name): encodable(text) for name, text in facts.environ.items()}


def _resume_entry(facts: StartupFacts, redactor: Redactor, from_step: int) -> Json:
    lock = dependency_lock(facts.code_folder)
    return job_entry(
        job_id=facts.job_id,
        started_at=facts.started_at,
        from_step=from_step,
        argv=_argv(facts, redactor),
        host=host()["hostname"],
        python_version=lock["python_version"],
        torch_version=facts.torch.version,
        git=_git(facts, redactor),
        package_set_sha256=lock["package_set_sha256"],
        code_sha256=facts.plan["trainer"]["code_sha256"],
        plan_fingerprint=facts.plan["fingerprint"],
    )


def _run_meta(facts: StartupFacts, redactor: Redactor, git: Json, plan: Json, kept: Sequence[KeptSource]) -> Json:
    trainer = facts.plan["trainer"]
    return build_run_meta(
        run_id=facts.run_id,
        job_id=facts.job_id,
        created_at=facts.started_at,
        plan_fingerprint=facts.plan["fingerprint"],
        git=git,
        dependency_lock=dependency_lock(facts.code_folder),
        hardware=hardware(facts.torch.accelerator),
        runtime=runtime(facts.torch, facts.libraries),
        argv=_argv(facts, redactor),
        cwd=redactor.text(encodable(facts.cwd)),
        dataset_fingerprint=facts.plan["dataset"]["data"]["fingerprint"],
        trainer_name=redactor.value(trainer["name"]),
        code_sha256=trainer["code_sha256"],
        config_sources=[_source_row(source) for source in kept],
        preprocess=redactor.value(facts.preprocess) if facts.preprocess else None,
        redacted=_redacted_places(facts, redactor, plan, kept),
    )


def _source_row(source: KeptSource) -> Json:
    digest = hashlib.sha256(source.data).hexdigest()
    return {"name": source.name, "path": source.path, "sha256": digest, "form": source.form}


def _redacted_places(facts: StartupFacts, redactor: Redactor, plan: Json, kept: Sequence[KeptSource]) -> list[str]:
    """Where the artifacts hold a mask instead of a value: `command.argv[3]`, a path in the plan, a config source."""
    given = {"argv": [encodable(text) for text in facts.argv]}
    argv = [f"command.{path}" for path in changed_paths(given, {"argv": _argv(facts, redactor)})]
    resolved = [f"{_PATHS['config_resolved']}:{path}" for path in changed_paths(facts.plan, plan)]
    return [*argv, *resolved, *(source.name for source in kept if source.form != "verbatim")]


def _argv(facts: StartupFacts, redactor: Redactor) -> list[str]:
    return redactor.argv([encodable(text) for text in facts.argv])


def _git(facts: StartupFacts, redactor: Redactor) -> Json:
    """The state of the code's repository; its texts are redacted, its commit is not one."""
    state = git_state(facts.code_folder, environ=facts.environ)
    texts = {key: redactor.value(state[key]) for key in ("branch", "status_porcelain", "reason")}
    return state | texts
