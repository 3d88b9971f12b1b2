"""reports/evaluations/<UTC time>-<checkpoint>.json: what was evaluated, with what, and what came out."""

from __future__ import annotations

from pathlib import Path

from trn.evaluate.data import ValidationData
from trn.evaluate.evaluation import Evaluated
from trn.files import Lock, make_folder, sweep, write_atomic
from trn.plan import NOT_LIBRARIES, versions_here
from trn.provenance.evaluation_record import EvaluationRecord, evaluation_name
from trn.provenance.process import process_redactor
from trn.records import SCHEMA_VERSION, Json, pretty_json, utc_now
from trn.reopen import Reopened
from trn.reopen.environment import command_here, environment_here

__all__ = ["FOLDER", "record_of", "write_record"]

FOLDER = "reports/evaluations"


def record_of(run: Reopened, data: ValidationData, found: Evaluated) -> Json:
    """The content of the file."""
    value = {
        "schema_version": SCHEMA_VERSION,
        "created_at": utc_now(),
        "run_id": run.plan.run_id,
        "plan_fingerprint": run.plan.fingerprint,
        "checkpoint": {
            "file": run.meta.file,
            "sha256": run.meta.sha256,
            "step": run.meta.step,
            "epoch": run.ctx.epoch,
        },
        "metrics": found.metrics,
        "run_metrics": found.run_metrics,
        "is_equal": found.is_equal,
        "data": {
            "source": data.source,
            "fingerprint": data.dataset.fingerprint,
            "rows": data.dataset.rows,
            "files": process_redactor().value([file.path for file in data.dataset.files]),
            "columns": list(data.columns),
            "batch_size": data.batch_size,
            "max_batches": data.max_batches,
        },
        "code_sha256": run.code_sha256,
        "device": str(run.ctx.device),
        "seconds": found.seconds,
        "versions": versions_here(tuple(name for name in run.plan.versions if name not in NOT_LIBRARIES)),
        "command": command_here(),
        "environment": environment_here(run.plan),
    }
    return EvaluationRecord.model_validate(value).model_dump(mode="json")


def write_record(run_dir: Path, record: Json) -> str:
    """Publish it; returns its name in the run's folder. What a killed evaluation left goes. Raises StorageError."""
    folder = make_folder(run_dir / FOLDER)
    name = evaluation_name(record["created_at"], record["checkpoint"]["file"])
    with Lock(folder / ".lock"):  # what is unfinished may be another one's, at work now
        sweep(folder)
        write_atomic(folder / name, pretty_json(record))
    return f"{FOLDER}/{name}"
