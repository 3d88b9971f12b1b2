"""A plan made by hand, for tests below the room that makes plans."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from trn.spec.plan_model import (
    BudgetPlan,
    CheckpointPlan,
    DatasetPlan,
    ExportPlan,
    GatesPlan,
    GuardPlan,
    LogPlan,
    OptimizerPlan,
    Plan,
    SchedulePlan,
    TrainerPlan,
)
from trn.trainer import Context


def plan_of(run_dir: Path, *, max_steps: int = 10, **changes: Any) -> Plan:
    """A sealed plan over no data; `changes` replace its parts."""
    values: dict[str, Any] = {
        "config_path": "spec.yaml",
        "base_config_path": [],
        "dataset_seed": 1,
        "run_id": run_dir.name,
        "run_dir": str(run_dir),
        "runs_dir": str(run_dir.parent),
        "spec_folder": str(run_dir.parent),
        "trainer": TrainerPlan(name="t", module="t", qualname="T", code_sha256="0" * 64, counts="samples", params={}),
        "dataset": DatasetPlan(
            data={"fingerprint": "0" * 64},
            columns=["x"],
            batch_size=4,
            readahead=0,
            workers=0,
            shuffle=False,
            window=1,
            remainder="carry",
            end="stop",
            passes=1,
        ),
        "validation": None,
        "budget": BudgetPlan(max_steps=max_steps, steps_per_epoch=5, batches_per_pass=5, by_passes=False),
        "seed": 1,
        "device": "cpu",
        "precision": "none",
        "ddp": False,
        "world_size": 1,
        "threads": 1,
        "deterministic": True,
        "optimizer": OptimizerPlan(name="sgd", arguments={"lr": 0.1}, fused=False, accumulate=1),
        "schedule": SchedulePlan(kind="constant", warmup_steps=0, total_steps=max_steps, lr_max=0.1, lr_min=0.0),
        "clip_grad_norm": None,
        "metric_every": 0,
        "sample_every": 0,
        "checkpoint": CheckpointPlan(
            every_steps=0, every_epochs=0, keep=3, keep_epochs=0, best_metric=None, best_mode="min"
        ),
        "gates": GatesPlan(
            cross_entropy=False,
            vocab_size=None,
            regime="from_scratch",
            target_val_loss=None,
            require_target=False,
            patience=None,
            min_epochs=3,
            min_delta=0.0,
            divergence_factor=None,
            telemetry="warn",
        ),
        "guard": GuardPlan(policy="stop", max_skips=3, lr_decay=0.5),
        "export": ExportPlan(onnx=False, reason="not asked for", opset=18, parity_policy="fail", atol=None),
        "log": LogPlan(enabled=False, filename="train.log", capture_stdout=False, capture_stderr=False),
        "heartbeat_s": 0.0,
        "max_runtime_s": 0.0,
        "versions": {"python": "3"},
    }
    return Plan(**(values | changes)).sealed()


def context_of(plan: Plan, *, params: Any = None, cancelled: Callable[[], bool] = lambda: False) -> Context:
    return Context(
        plan=plan,
        params=params,
        device=torch.device("cpu"),
        run_dir=Path(plan.run_dir),
        cancelled=cancelled,
        tensors=lambda raw_batch: raw_batch,  # type: ignore[arg-type,return-value]  # these tests hand in tensors
    )
