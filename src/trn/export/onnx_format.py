"""A folder aside with model.onnx in it, compared with its model and its checkpoint: all but the publishing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from trn.export.convert import ONNX_NAME, Converted, Settings, convert
from trn.export.origin import foreign_parameters, not_in_checkpoint
from trn.export.parity import Parity
from trn.export.publish import REJECTED
from trn.export.report import parity_report
from trn.export.session import PROVIDER
from trn.export.trials import exports_of
from trn.records import Json
from trn.trainer import Context, Trainer
from trn.trainer.exporting import Export

__all__ = ["Staged", "stage_onnx"]


@dataclass(frozen=True)
class Staged:
    """What was made aside: its files, what the sidecar says of them, and the report on the comparison."""

    files: list[Json]
    details: Json
    report: Json
    is_rejected: bool


def stage_onnx(
    trainer: Trainer,
    state: Any,
    ctx: Context,
    payload: Mapping[str, Any],
    rows: pa.RecordBatch,
    settings: Settings,
    head: Json,
    aside: Path,
) -> Staged:
    """Trace, write, read back, compare. Raises what `exports_of` and `convert` raise."""
    exports = exports_of(trainer, state, ctx, rows)
    made = convert(exports, settings, aside)
    strange = not_in_checkpoint(made.model, payload)
    foreign = foreign_parameters(exports[0].model, state, strange, is_average=head["weights"] != "live")
    parity = _with_origin(made.parity, foreign)
    is_rejected = not parity.passed and settings.policy == "fail"
    report = parity_report(
        head,
        onnx=f"exports/{REJECTED}/{ONNX_NAME}" if is_rejected else f"exports/{ONNX_NAME}",
        onnx_sha256=next(one["sha256"] for one in made.files if one["name"] == ONNX_NAME),
        policy=settings.policy,
        parity=parity,
        reference=made.reference,
        initialisers=made.initialisers,
        not_in_checkpoint=strange,
        onnxrt={
            "version": version("onnxruntime"),
            "providers": [PROVIDER],
            "input_names": list(exports[0].inputs),
            "threads": settings.threads,
        },
    )
    return Staged(made.files, _details(exports[0], made, settings, parity), report, is_rejected)


def _with_origin(parity: Parity, foreign: Sequence[str]) -> Parity:
    if not foreign:
        return parity
    told = f"checkpoint: {', '.join(foreign[:3])} are not the weights in the checkpoint"
    return replace(parity, reason="; ".join(filter(None, [parity.reason, told])))


def _details(export: Export, made: Converted, settings: Settings, parity: Parity) -> Json:
    dtypes = {name: one.get("dtype") for name, one in parity.outputs.items()}
    return {
        "onnx": {
            "opset_asked": settings.opset,
            "opset": made.opset,
            "inputs": [
                {"name": name, "dtype": str(tensor.dtype).removeprefix("torch."), "shape": made.shapes.get(name)}
                for name, tensor in export.inputs.items()
            ],
            "outputs": [{"name": name, "dtype": dtypes.get(name)} for name in export.outputs],
            "axes": {word: {"min": least, "max": most} for word, (least, most) in made.program.ranges.items()},
            "sets": dict(export.sets),
        },
        "parity": {
            "status": "passed" if parity.passed else "failed",
            "policy": settings.policy,
            "reason": parity.reason,
            "max_abs": parity.worst,
        },
    }
