"""reports/onnx_parity.json: how an ONNX file was held against its model, or why there was none to hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trn.export.onnx_file import Initialisers
from trn.export.parity import Parity, Reference
from trn.export.sidecar import sidecar_name
from trn.files import Lock, write_atomic
from trn.records import SCHEMA_VERSION, Json, pretty_json, utc_now
from trn.spec.plan_model import Plan

__all__ = ["PARITY_NAME", "fail_parity", "parity_report", "skip_parity"]

PARITY_NAME = "reports/onnx_parity.json"


def parity_report(
    head: Mapping[str, object],
    *,
    onnx: str,
    onnx_sha256: str,
    policy: str,
    parity: Parity,
    reference: Reference,
    initialisers: Initialisers,
    not_in_checkpoint: tuple[str, ...],
    onnxrt: Json,
) -> Json:
    """The whole report; `head` says whose weights these are, `onnx` is the file's path in the run's folder."""
    return {
        "schema_version": SCHEMA_VERSION,
        "timestamp_utc": utc_now(),
        **head,
        "onnx": onnx,
        "onnx_sha256": onnx_sha256,
        "policy": policy,
        "status": "passed" if parity.passed else "failed",
        "passed": parity.passed,
        "available": bool(parity.outputs),
        "reason": parity.reason,
        "thresholds": {name: one.to_json() for name, one in parity.tolerances.items()},
        "inputs": [trial.to_json() for trial in reference.trials],
        "inputs_left_out": reference.left_out,
        "outputs": parity.outputs,
        "overall": parity.overall,
        "initialisers": {**initialisers.to_json(), "not_in_checkpoint": list(not_in_checkpoint)},
        "onnxrt": onnxrt,
    }


def skip_parity(run_dir: Path, plan: Plan, reason: str, wait_s: float = 1.0) -> Path | None:
    """Write that there is no comparison, and why; None where an exported file has its own. Raises StorageError.

    An export that goes on meanwhile is waited for; after `wait_s` the report is left to it.
    """
    exports = run_dir / "exports"
    lock = Lock(exports / ".lock")
    if exports.is_dir() and not lock.acquire("", wait_s=wait_s):
        return None
    try:
        if (exports / sidecar_name("onnx")).exists():
            return None
        return _write(run_dir, plan, "skipped", None, reason)
    finally:
        lock.release()


def fail_parity(run_dir: Path, plan: Plan, reason: str) -> Path:
    """Write that there is no file to compare, since none could be made. Raises StorageError."""
    return _write(run_dir, plan, "failed", False, reason)


def _write(run_dir: Path, plan: Plan, status: str, passed: bool | None, reason: str) -> Path:
    value: Json = {
        "schema_version": SCHEMA_VERSION,
        "timestamp_utc": utc_now(),
        "run_id": plan.run_id,
        "plan_fingerprint": plan.fingerprint,
        "onnx": None,
        "onnx_sha256": None,
        "policy": plan.export.parity_policy,
        "status": status,
        "passed": passed,
        "available": False,
        "reason": reason,
    }
    path = run_dir / PARITY_NAME
    write_atomic(path, pretty_json(value))
    return path
