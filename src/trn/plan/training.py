"""What is done to the model and with it, besides the update: precision, average, compile, export.

Each is null in the plan where the spec does not ask for it. A trainer obeys only what it lists in `honours`, see
`planner.py`.
"""

from __future__ import annotations

import math
from importlib.util import find_spec

from trn.errors import PlanRefused
from trn.spec import Spec
from trn.spec.plan_model import (
    BudgetPlan,
    CheckpointPlan,
    CompilePlan,
    EmaPlan,
    ExportPlan,
    LogPlan,
    LossScalePlan,
)
from trn.trainer import Trainer

__all__ = [
    "EXPORT_LIBRARIES",
    "plan_checkpoint",
    "plan_compile",
    "plan_ema",
    "plan_export",
    "plan_log",
    "plan_loss_scale",
]

EXPORT_LIBRARIES = ("onnx", "onnxscript", "onnxruntime")


def plan_loss_scale(spec: Spec) -> LossScalePlan | None:
    if spec.precision != "fp16":
        return None
    return LossScalePlan(initial=spec.loss_scale.initial, growth_interval=spec.loss_scale.growth_interval)


def plan_ema(spec: Spec) -> EmaPlan | None:
    return EmaPlan(decay=spec.ema.decay, evaluate=spec.ema.evaluate) if spec.ema.enabled else None


def plan_compile(spec: Spec) -> CompilePlan | None:
    asked = spec.compile
    if not asked.enabled:
        return None
    if spec.activation_checkpointing:
        raise PlanRefused(
            "torch does not compile modules that make their activations again and put their buffers back.",
            where="compile.enabled",
            hint="Remove it, or activation_checkpointing.",
        )
    return CompilePlan(
        backend=asked.backend,
        mode=asked.mode,
        fullgraph=asked.fullgraph,
        dynamic=asked.dynamic,
        strict=asked.strict,
    )


def plan_log(spec: Spec) -> LogPlan:
    return LogPlan(
        enabled=spec.log.enabled,
        filename=spec.log.filename,
        capture_stdout=spec.log.capture_stdout,
        capture_stderr=spec.log.capture_stderr,
    )


def plan_checkpoint(spec: Spec, budget: BudgetPlan) -> CheckpointPlan:
    """Which checkpoints are made and kept; without validation there is no best."""
    has_best = spec.validation is not None
    asked = spec.checkpoint
    return CheckpointPlan(
        every_steps=spec.checkpoint_every,
        every_epochs=asked.every_epochs,
        keep=asked.keep,
        keep_epochs=asked.keep_epochs,
        best_metric=asked.best.metric if has_best else None,
        best_mode=asked.best.mode,
        save_delay_steps=asked.save_delay_steps or math.ceil(asked.save_delay_epochs * budget.steps_per_epoch),
    )


def plan_export(spec: Spec, trainer: Trainer) -> ExportPlan:
    """Whether the run exports at its end. Raises PlanRefused where it is asked for and cannot be."""
    why_not = _why_no_export(spec, trainer)
    if why_not is not None and spec.export.onnx:
        raise PlanRefused(f"{why_not[0]}.", where="export.onnx", hint=why_not[1])
    reason = "export.onnx is false" if spec.export.onnx is False else None if why_not is None else why_not[0]
    return ExportPlan(
        onnx=reason is None,
        reason=reason,
        opset=spec.export.opset,
        parity_policy=spec.export.parity_policy,
        atol=spec.export.atol,
    )


def _why_no_export(spec: Spec, trainer: Trainer) -> tuple[str, str] | None:
    """Why the trainer's model cannot be exported here, and what to do."""
    if not callable(getattr(trainer, "export", None)):
        return f"trainer {spec.trainer!r} has no `export`", "Add the hook (docs/export.md), or remove the key."
    if missing := [name for name in EXPORT_LIBRARIES if find_spec(name) is None]:
        return f"{' and '.join(missing)} not installed", "pip install 'trn-runtime[export]'"
    return None
