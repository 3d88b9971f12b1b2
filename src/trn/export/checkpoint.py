"""One checkpoint, exported: what `python -m trn.export` and the end of a run both do."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trn.checkpoint import rng
from trn.checkpoint.discover import load_payload
from trn.checkpoint.meta import CheckpointMeta
from trn.errors import TrainerError, UsageError
from trn.export.convert import Settings
from trn.export.onnx_format import stage_onnx
from trn.export.origin import foreign_parameters, not_in_checkpoint
from trn.export.publish import REJECTED, forget_rejected, publish, reject, staging
from trn.export.quiet import at_rest, quiet
from trn.export.report import PARITY_NAME
from trn.export.rows import read_rows
from trn.export.sidecar import FORMATS, files_of, head_of, sidecar_bytes, sidecar_name
from trn.export.weights import model_of, write_hf, write_safetensors
from trn.loop.seeds import derived_seed
from trn.records import Json, pretty_json
from trn.reopen.environment import environment_here
from trn.spec.plan_model import Plan
from trn.trainer import Context, Trainer
from trn.trainer.exporting import has_export

__all__ = ["Exported", "export_checkpoint"]


@dataclass(frozen=True)
class Exported:
    """One format of a checkpoint, written. Paths are below the run's folder."""

    format: str
    sidecar: str
    files: dict[str, str]
    """Path -> sha256."""
    is_published: bool
    """False for what did not pass under the policy `fail`: it lies in exports/rejected/, and the run has failed."""
    parity: Json | None = None
    """Of ONNX: `status` (passed, failed), `reason`, and `max_abs` by output."""

    def to_json(self) -> Json:
        return {
            "format": self.format,
            "sidecar": self.sidecar,
            "files": dict(self.files),
            "is_published": self.is_published,
            "parity": self.parity,
        }


@dataclass(frozen=True)
class _Subject:
    """The checkpoint's objects, and where its exports lie."""

    plan: Plan
    trainer: Trainer
    state: Any
    ctx: Context
    payload: Mapping[str, Any]
    head: Json
    environment: Json
    wait_s: float

    @property
    def run_dir(self) -> Path:
        return Path(self.plan.run_dir)

    @property
    def exports(self) -> Path:
        return self.run_dir / "exports"


def export_checkpoint(
    plan: Plan,
    trainer: Trainer,
    state: Any,
    ctx: Context,
    meta: CheckpointMeta,
    *,
    payload: Mapping[str, Any] | None = None,
    formats: Sequence[str] = ("onnx",),
    opset: int | None = None,
    parity_policy: str | None = None,
    atol: float | None = None,
    code_sha256: str | None = None,
    wait_s: float = 1.0,
) -> list[Exported]:
    """Write the formats below exports/ of `plan.run_dir`, one after another; None means: as planned.

    `state` holds the weights of the checkpoint that `meta` is of, and `payload` is that checkpoint (None: it is read).
    Modes, random streams, `ctx` and the state are afterwards as they were. Raises TrainerError for what cannot be
    exported, PlanRefused without the libraries, UsageError, DataError without rows, ResumeRefused while another export
    of the run goes on, StorageError; the export before is then as it was. A comparison that fails raises nothing: see
    `Exported`.
    """
    if unknown := next((name for name in formats if name not in FORMATS), None):
        raise UsageError(f"{unknown!r} is no format; expected {', '.join(FORMATS)}.", where="format")
    settings = Settings(
        opset=plan.export.opset if opset is None else opset,
        policy=plan.export.parity_policy if parity_policy is None else parity_policy,
        atol=plan.export.atol if atol is None else atol,
        threads=plan.threads,
    )
    is_average = plan.ema is not None and plan.ema.evaluate and hasattr(trainer, "averaged")
    head = head_of(plan, meta, "average" if is_average else "live", code_sha256 or plan.trainer.code_sha256)
    payload = load_payload(Path(plan.run_dir), meta) if payload is None else payload
    subject = _Subject(plan, trainer, state, ctx, payload, head, environment_here(plan), wait_s)
    averaged: Any = trainer.averaged(state) if is_average else contextlib.nullcontext()  # type: ignore[attr-defined]
    seed = derived_seed(plan.seed, "export", meta.step)
    with averaged, rng.isolated(seed):
        return [_onnx(subject, settings) if one == "onnx" else _weights(subject, one) for one in formats]


def _onnx(subject: _Subject, settings: Settings) -> Exported:
    if not has_export(subject.trainer):
        raise TrainerError(
            f"trainer {subject.plan.trainer.name!r} has no `export`, which names inputs and outputs.",
            where="export",
            hint="Add the hook (docs/export.md), or use --format safetensors.",
        )
    with staging(subject.exports, subject.wait_s) as aside:
        rows = read_rows(subject.run_dir, subject.plan)
        staged = stage_onnx(
            subject.trainer, subject.state, subject.ctx, subject.payload, rows, settings, subject.head, aside
        )
        sidecar, report = sidecar_name("onnx"), subject.run_dir / PARITY_NAME
        details = {**staged.details, "environment": subject.environment}
        (aside / sidecar).write_bytes(sidecar_bytes("onnx", subject.head, staged.files, details))
        (aside / report.name).write_bytes(pretty_json(staged.report))
        if staged.is_rejected:
            reject(aside, subject.exports, report)
        else:
            publish(aside, subject.exports, sidecar, report)
            forget_rejected(subject.exports)
    place = f"exports/{REJECTED}" if staged.is_rejected else "exports"
    return _exported("onnx", place, staged.files, not staged.is_rejected, staged.details["parity"])


def _weights(subject: _Subject, export_format: str) -> Exported:
    model = model_of(subject.state)
    is_average = subject.head["weights"] != "live"
    strange = not_in_checkpoint(model, subject.payload)
    if foreign := foreign_parameters(model, subject.state, strange, is_average=is_average):
        raise TrainerError(f"{', '.join(foreign[:3])} are not the weights in the checkpoint.", where="export")
    with at_rest(model), quiet(), staging(subject.exports, subject.wait_s) as aside:
        if export_format == "hf":
            details = write_hf(model, aside)
        else:
            head = subject.head
            notes = {
                "run_id": head["run_id"],
                "step": str(head["checkpoint"]["step"]),
                "checkpoint_sha256": head["checkpoint"]["sha256"],
                "weights": head["weights"],
            }
            details = write_safetensors(model, aside, notes)
        files = files_of(aside, [path for path in aside.rglob("*") if path.is_file()])
        sidecar = sidecar_name(export_format)
        details |= {"environment": subject.environment}
        (aside / sidecar).write_bytes(sidecar_bytes(export_format, subject.head, files, details))
        publish(aside, subject.exports, sidecar)
    return _exported(export_format, "exports", files, True)


def _exported(
    export_format: str, place: str, files: list[Json], is_published: bool, parity: Json | None = None
) -> Exported:
    named = {f"{place}/{one['name']}": one["sha256"] for one in files}
    return Exported(export_format, f"{place}/{sidecar_name(export_format)}", named, is_published, parity)
