"""What the gates say of the run as it stands: their rules from the plan, the end of the budget, a refused step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trn.checkpoint import rng
from trn.errors import NumericalInstability, TrainerError
from trn.feed import RawBatch
from trn.gates import GateRules, Verdict, after_skip, at_budget_end, bad_readings
from trn.journal import EventLog
from trn.records import REPORTED_KINDS, Json

if TYPE_CHECKING:
    from trn.loop.loop import Parts
    from trn.loop.progress import Progress
    from trn.spec.plan_model import Plan

__all__ = [
    "announce_verdict",
    "is_used_up",
    "leave_out",
    "report_readings",
    "report_refusal",
    "rules_of",
    "tell_reports",
    "verdict_at_end",
]


def rules_of(plan: Plan) -> GateRules:
    """What the gates are told: the plan's `gates` and `guard`."""
    return GateRules(**plan.gates.model_dump(), **plan.guard.model_dump())


def is_used_up(plan: Plan, progress: Progress) -> bool:
    """Whether every step of the budget is made; of a budget in passes, whether every batch of them was taken.

    A run that made no step has used up nothing.
    """
    left_out = progress.gates.skips if plan.budget.by_passes and progress.step else 0
    return progress.step + left_out >= plan.budget.max_steps


def verdict_at_end(plan: Plan, progress: Progress) -> Verdict:
    """How a run ends whose budget is used up."""
    verdict = at_budget_end(progress.gates, rules_of(plan))
    if skips := progress.gates.skips:
        verdict = replace(verdict, reason=f"{verdict.reason}; batches left out: {skips}")
    return verdict


def report_refusal(events: EventLog, error: NumericalInstability, row_ids: list[int]) -> None:
    """The event that says which gate refused which value, and the rows it came from."""
    events.emit(
        "gate", gate="numerical_stability", step=error.step, field=error.field, value=error.value, row_ids=row_ids
    )


def report_readings(events: EventLog, line: Json) -> None:
    """The event that says which readings of a sensor or a clock were not believed; once a run, they are counted."""
    events.emit("gate", gate="telemetry", step=line["step"], fields=list(bad_readings(line)))


def tell_reports(events: EventLog, step: int, reports: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """The events that a trainer asked for with ctx.report; of a kind that is not known, a `note` about it."""
    for kind, fields in reports:
        told = {**fields, "step": step}
        try:
            if kind in REPORTED_KINDS:
                events.emit(kind, **told)
            else:
                events.emit("note", **{**told, "about": kind})
        except (TypeError, ValueError) as error:
            raise TrainerError(f"expected JSON values: {error}.", where=f"ctx.report({kind!r})") from error


def leave_out(parts: Parts, progress: Progress, raw: RawBatch, error: NumericalInstability, streams: object) -> None:
    """Go on without a batch whose step was refused before its update, as guard.policy: skip wants it.

    Weights, optimizer and random streams are as before the step; only the cursor moves on. Raises the refusal where
    the policy is to stop, or has had its fill.
    """
    rules, row_ids = rules_of(parts.plan), parts.agreement.row_ids(raw.row_ids.tolist())
    state, verdict = after_skip(progress.gates, rules)
    if verdict is not None:
        report_refusal(parts.events, error, row_ids)
        if rules.policy == "skip":
            error.message = f"{error.message} {verdict.reason}."
        raise error
    rng.put_back(streams)
    progress.gates, progress.cursor = state, raw.next_cursor
    parts.events.emit(
        "step_skipped",
        step=error.step,
        field=error.field,
        value=error.value,
        row_ids=row_ids,
        skips_in_row=state.skips_in_row,
        skips=state.skips,
        lr_factor=state.lr_factor,
    )


def announce_verdict(events: EventLog, step: int, verdict: Verdict) -> None:
    """The event of a gate that ends the run; the plain end of the budget is none."""
    if verdict.gate != "budget":
        events.emit("gate", gate=verdict.gate, step=step, outcome=verdict.outcome, reason=verdict.reason)
