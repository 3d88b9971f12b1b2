"""What a job writes before its first batch: who ran which code, where, with what."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from trn.errors import ResumeRefused
from trn.files import make_folder, write_atomic
from trn.plan import NOT_LIBRARIES
from trn.plan.publish import PLAN_NAME
from trn.provenance import (
    Accelerator,
    Device,
    StartupFacts,
    TorchFacts,
    make_redactor,
    resumed_run_meta,
    startup_artifacts,
    validate_run_meta,
)
from trn.provenance.resolved import config_resolved_yaml
from trn.provenance.sources import keep_sources, read_sources
from trn.records import from_json, pretty_json, read_json, utc_now
from trn.spec import Source
from trn.spec.plan_model import Plan

__all__ = ["publish_revision", "record_begin", "record_resume", "require_run_meta", "safe_text", "start_artifacts"]

RUN_META_NAME = "reports/run_meta.json"
RESOLVED_NAME = "reports/config_resolved.yaml"
RUN_METADATA_NAME = "reports/run_metadata.json"
RUNTIME_ENV_NAME = "reports/runtime_env.json"


def start_artifacts(plan: Plan, sources: Sequence[Source], *, job_id: str) -> dict[str, bytes]:
    """Relative path -> content of every start-up artifact of a new run, but for the plan itself."""
    return startup_artifacts(_facts(plan, job_id, sources))


def require_run_meta(run_dir: Path) -> bytes:
    """The run's run_meta.json. Raises ResumeRefused when it is missing or damaged."""
    path = run_dir / RUN_META_NAME
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ResumeRefused(f"it cannot be read: {error.strerror}.", where=str(path)) from error
    if problems := validate_run_meta(data):
        raise ResumeRefused(f"it is damaged: {problems[0]}.", where=str(path), hint="Restore it from a backup.")
    return data


def record_begin(plan: Plan, run_meta: bytes, *, job_id: str) -> None:
    """Say of a run that was planned by another process who begins it, with what: as if this one had made the folder.

    The kept sources stay as they are: what was hidden in them is not known any more. Raises StorageError.
    """
    run_dir = Path(plan.run_dir)
    before = from_json(run_meta)
    rows = before["config_sources"]
    sources = [Source(Path(row["path"]), (run_dir / row["name"]).read_bytes()) for row in rows]
    files = start_artifacts(plan, sources, job_id=job_id)
    meta = from_json(files[RUN_META_NAME])
    names = {row["name"] for row in rows}
    masked = [row["name"] for row in rows if row["form"] != "verbatim"]
    meta |= {"config_sources": rows, "redacted": [*(one for one in meta["redacted"] if one not in names), *masked]}
    write_atomic(run_dir / RUNTIME_ENV_NAME, files[RUNTIME_ENV_NAME])
    write_atomic(run_dir / RUN_METADATA_NAME, files[RUN_METADATA_NAME])
    write_atomic(run_dir / RUN_META_NAME, pretty_json(meta))


def record_resume(plan: Plan, run_meta: bytes, *, job_id: str, from_step: int) -> None:
    """Add this job to run_meta.json, and let the plan for people be the plan again. Raises StorageError."""
    run_dir = Path(plan.run_dir)
    if plan.revision:
        _mend_resolved(run_dir)
    write_atomic(run_dir / RUN_META_NAME, resumed_run_meta(run_meta, _facts(plan, job_id, ()), from_step))


def _mend_resolved(run_dir: Path) -> None:
    """A job that was killed between the two files of a revision left the YAML of the revision before."""
    path = run_dir / RESOLVED_NAME
    content = config_resolved_yaml(read_json(run_dir / PLAN_NAME))
    if not path.is_file() or path.read_bytes() != content:
        write_atomic(path, content)


def publish_revision(plan: Plan, revised: Plan, *, sources: Sequence[Source]) -> None:
    """Keep the plan before and the new spec in reports/plans/, then put the new plan in its place. Raises StorageError.

    The rename of the plan is what makes the revision: a crash before it leaves the run as it was.
    """
    run_dir = Path(plan.run_dir)
    kept = make_folder(run_dir / "reports/plans")
    write_atomic(kept / f"{plan.revision}.json", plan.to_bytes())
    facts = _facts(revised, "", sources)
    for source in keep_sources(read_sources(facts.sources), make_redactor(facts))[:1]:
        write_atomic(kept / f"{revised.revision}.source{Path(source.name).suffix}", source.data)
    write_atomic(run_dir / PLAN_NAME, revised.to_bytes())
    write_atomic(run_dir / RESOLVED_NAME, config_resolved_yaml(from_json(revised.to_bytes())))


def safe_text(plan: Plan, job_id: str, text: str) -> str:
    """`text` as it may be written down: no secret that this process knows, and nothing that is not UTF-8."""
    return make_redactor(_facts(plan, job_id, ())).text(text.encode(errors="backslashreplace").decode())


def _facts(plan: Plan, job_id: str, sources: Sequence[Source]) -> StartupFacts:
    module_file = getattr(sys.modules[plan.trainer.module], "__file__", None)
    return StartupFacts(
        plan=from_json(plan.to_bytes()),  # in the order in which whoever reads the plan meets its keys
        run_id=plan.run_id,
        job_id=job_id,
        started_at=utc_now(),
        argv=sys.argv,
        cwd=os.getcwd(),
        code_folder=Path(module_file).parent if module_file else Path(plan.spec_folder),
        environ=dict(os.environ),
        sources=[(source.path, source.data) for source in sources],
        torch=_torch_facts(plan),
        libraries=tuple(name for name in plan.versions if name not in NOT_LIBRARIES),
    )


def _torch_facts(plan: Plan) -> TorchFacts:
    return TorchFacts(
        version=torch.__version__,
        threads=torch.get_num_threads(),
        interop_threads=torch.get_num_interop_threads(),
        deterministic=plan.deterministic,
        flags={
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "cudnn_deterministic": torch.backends.cudnn.deterministic,
            "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "python_hash_seed": os.environ.get("PYTHONHASHSEED"),
        },
        accelerator=_accelerator(),
    )


def _accelerator() -> Accelerator:
    if torch.backends.mps.is_available():
        return Accelerator(kind="mps", devices=(Device(0, "Apple GPU"),))
    if not torch.cuda.is_available():
        built_for = torch.version.cuda or torch.version.hip
        reason = "torch sees no device" if built_for else "torch was built without support for one"
        return Accelerator(version=built_for, reason=reason)
    found = [(index, torch.cuda.get_device_properties(index)) for index in range(torch.cuda.device_count())]
    return Accelerator(
        kind="rocm" if torch.version.hip else "cuda",
        version=torch.version.hip or torch.version.cuda,
        devices=tuple(Device(index, one.name, one.total_memory, f"{one.major}.{one.minor}") for index, one in found),
    )
