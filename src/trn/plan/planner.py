"""Fill in what a spec leaves open, check it against the trainer and the data, and refuse what cannot run."""

from __future__ import annotations

import inspect
import sys
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from trn.devices import cpu_threads
from trn.errors import PlanRefused
from trn.plan.data import plan_data, plan_validation
from trn.plan.device import settled_device, torch_device
from trn.plan.gating import plan_gates, plan_guard
from trn.plan.inputs import plan_inputs
from trn.plan.mock import MOCK_FOLDER, make_mock
from trn.plan.optimization import plan_optimization
from trn.plan.params import make_params
from trn.plan.training import (
    plan_checkpoint,
    plan_compile,
    plan_ema,
    plan_export,
    plan_log,
    plan_loss_scale,
)
from trn.plan.versions import versions_here
from trn.plan.weights import plan_weights
from trn.provenance import secret_paths
from trn.provenance.code import code_sha256
from trn.provenance.process import process_redactor
from trn.ranks import World
from trn.spec import LoadedSpec, Spec
from trn.spec.plan_model import Plan, SamplePromptPlan, TrainerPlan
from trn.trainer import Trainer, load_trainer

__all__ = ["make_plan", "refuse_unfit_world", "use_spec_folder"]


def make_plan(
    loaded: LoadedSpec,
    *,
    run_id: str,
    runs_dir: Path,
    world: World,
    trainer: Trainer | None = None,
    mock_folder: Path | None = None,
) -> tuple[Plan, Trainer]:
    """The plan of a spec and the trainer that it found, or that is given.

    Writes nothing but the file of the spec's mock batches, into `mock_folder` or else below `runs_dir`, and that at
    the very end. Raises SpecError (hyperparams), PlanRefused (trainer, budget, what this version cannot do), DataError.
    """
    spec = loaded.spec.model_copy(update={"device": settled_device(loaded.spec.device)})
    batches = spec.dataset.mock_batches
    mock = None if batches is None else make_mock(batches, mock_folder or runs_dir / MOCK_FOLDER)
    use_spec_folder(loaded.folder)
    trainer = trainer or load_trainer(spec.trainer)
    _refuse_unhonoured(spec, trainer)
    params = make_params(trainer, spec.hyperparams)
    torch_device(spec.device)
    dataset, budget = plan_data(spec, trainer, mock)
    validation, checkpoint = plan_validation(spec, trainer, dataset), plan_checkpoint(spec, budget)
    optimizer, schedule = plan_optimization(spec, trainer, budget)
    plan = Plan(
        config_path=str(loaded.sources[0].path),
        base_config_path=[str(source.path) for source in loaded.sources[1:]],
        dataset_seed=spec.seed,
        run_id=run_id,
        run_dir=str(runs_dir / run_id),
        runs_dir=str(runs_dir),
        spec_folder=str(loaded.folder),
        trainer=_plan_trainer(spec, trainer, params),
        dataset=dataset,
        validation=validation,
        budget=budget,
        seed=spec.seed,
        device=spec.device,
        precision=spec.precision,
        ddp=spec.ddp,
        world_size=world.world_size,
        threads=spec.threads or max(1, cpu_threads() // world.local_world_size),
        deterministic=spec.deterministic,
        optimizer=optimizer,
        schedule=schedule,
        clip_grad_norm=spec.clip_grad_norm or None,
        inputs=plan_inputs(spec),
        weights=plan_weights(spec),
        loss_scale=plan_loss_scale(spec),
        ema=plan_ema(spec),
        compile=plan_compile(spec),
        activation_checkpointing=list(spec.activation_checkpointing),
        metric_every=spec.metric_every,
        sample_every=spec.sample_every,
        sample_prompts=[SamplePromptPlan(**one.model_dump()) for one in spec.sample_prompts],
        sample_seed=spec.sample_seed,
        checkpoint=checkpoint,
        gates=plan_gates(spec, trainer, params),
        guard=plan_guard(spec),
        export=plan_export(spec, trainer),
        log=plan_log(spec),
        heartbeat_s=_beats_every(spec),
        events=list(spec.events),
        defaulted=dict(loaded.defaulted),
        experiment=process_redactor().value(spec.experiment),  # notes: a secret in them is no reason to refuse
        max_runtime_s=float(spec.limits.max_runtime_seconds),
        hang_s=float(spec.limits.hang_seconds),
        grace_s=float(spec.limits.grace_seconds),
        versions=versions_here(getattr(trainer, "libraries", ())),
        owner=spec.owner,
        release_ref=spec.release_ref,
    )
    _refuse_secrets(plan)
    refuse_unfit_world(plan, trainer, world)
    if make_params(trainer, plan.trainer.params) != params:
        raise PlanRefused("they are not the same after they were written down: only JSON values may stand in them.",
                          where="hyperparams")  # fmt: skip
    if mock is not None:
        mock.write()
    return plan.sealed(), trainer


def refuse_unfit_world(plan: Plan, trainer: Trainer, world: World) -> None:
    """Raise PlanRefused where the plan cannot be carried out by so many ranks."""
    if world.world_size == 1:
        return
    if not plan.ddp:
        raise PlanRefused(
            f"{world.world_size} processes were started, and the spec says false.",
            where="ddp",
            hint="Set ddp: true, or start one process.",
        )
    if "ddp" not in getattr(trainer, "honours", ()):
        raise PlanRefused(
            f"trainer {plan.trainer.name!r} does not say that its ranks train together.",
            where="ddp",
            hint="Start one process; or sum gradients and metrics with ctx.ranks, and list 'ddp' in `honours`.",
        )
    if world.local_world_size > 1 and ":" in plan.device:
        raise PlanRefused(
            f"{world.local_world_size} ranks on this machine cannot share {plan.device!r}.",
            where="device",
            hint="Leave the number out: each rank takes the device of its own.",
        )
    shares = world.world_size * (plan.optimizer.accumulate if plan.optimizer is not None else 1)
    if plan.dataset.batch_size % shares:
        micro = f" with {shares // world.world_size} micro-batches each" if shares > world.world_size else ""
        raise PlanRefused(
            f"{plan.dataset.batch_size} rows cannot be shared out evenly among {world.world_size} ranks{micro}.",
            where="dataset.batch_size",
            hint=f"Use a multiple of {shares}.",
        )


def use_spec_folder(folder: Path) -> None:
    """Let a trainer lie beside its spec: the spec's folder becomes the last entry of the import path."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _beats_every(spec: Spec) -> float:
    """At least a second, so that a beat costs nothing; 0: none."""
    asked = spec.heartbeat.interval_seconds
    return float(max(asked, 1.0)) if asked else 0.0


def _refuse_secrets(plan: Plan) -> None:
    """The plan is written down as it is and given to whoever asks: no secret may stand in it."""
    if paths := secret_paths(plan.to_json(), process_redactor()):
        raise PlanRefused(
            f"{', '.join(paths)} looks like a secret, and a plan is no place for one.",
            where="the spec",
            hint="Give the name of a file or of an environment variable instead.",
        )


def _refuse_unhonoured(spec: Spec, trainer: Trainer) -> None:
    honours: frozenset[str] = getattr(trainer, "honours", frozenset())
    asked = {key: key in spec.model_fields_set for key in ("optimizer", "schedule", "clip_grad_norm")}
    asked["guard.policy"] = spec.guard.policy != "stop"
    asked["precision"] = spec.precision != "none"
    asked["ema.enabled"] = spec.ema.enabled
    asked["compile.enabled"] = spec.compile.enabled
    asked["activation_checkpointing"] = bool(spec.activation_checkpointing)
    asked["weights"] = spec.weights is not None
    for key, is_asked in asked.items():
        if is_asked and key.split(".")[0] not in honours:
            raise PlanRefused(
                f"trainer {spec.trainer!r} makes its own updates and does not honour it.",
                where=key,
                hint=f"Remove the key, or list {key.split('.')[0]!r} in the trainer's `honours` and obey it.",
            )


def _plan_trainer(spec: Spec, trainer: Trainer, params: Any) -> TrainerPlan:
    kind = trainer if inspect.isclass(trainer) else type(trainer)
    return TrainerPlan(
        name=spec.trainer,
        module=kind.__module__,
        qualname=kind.__qualname__,
        code_sha256=code_sha256(kind.__module__),
        counts=getattr(trainer, "counts", "samples"),
        params=TypeAdapter(Any).dump_python(
            asdict(params) if is_dataclass(params) and not isinstance(params, type) else params, mode="json"
        ),
    )
