"""G3 target, G4 patience, G5 divergence: what a validation loss means for the run.

    not finite              -> numerical_instability           any validation
    above its limit         -> divergence                      any validation, where the loss is a cross-entropy
    at or below the target  -> target_reached                  end of an epoch, from min_epochs on
    counter > patience      -> early_stopped                   end of an epoch, from min_epochs on; after the target

A validation within an epoch is judged by the limits; target and patience are paced by epochs alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from trn.gates.rules import DIVERGENCE_RATIO, GateRules, first_loss_cap
from trn.gates.state import GateState
from trn.gates.verdict import Ends, Verdict

__all__ = ["after_validation", "at_budget_end", "standing_verdict"]


def after_validation(
    state: GateState, rules: GateRules, val_loss: float, epoch: int, *, ends_epoch: bool = True
) -> tuple[GateState, Verdict | None]:
    """The state with this validation in it, and the verdict if it ends the run.

    `epoch` counts from 0 and is the one that is under way or, with `ends_epoch`, just over. A loss that is not finite
    or has diverged is not taken in: the state comes back as it was, so that a checkpoint never remembers it.
    """
    assert epoch >= state.epochs, f"epoch {epoch} was over after {state.epochs} epochs"
    verdict = _damage(state, rules, val_loss, f"{'after' if ends_epoch else 'in'} epoch {epoch}")
    if verdict is not None:
        return state, verdict
    state = _taken_in(state, float(val_loss))
    if ends_epoch:
        state = _epoch_over(state, rules, float(val_loss), epoch)
    return state, standing_verdict(state, rules)


def standing_verdict(state: GateState, rules: GateRules) -> Verdict | None:
    """Target or patience, as the state has it: what a run that was killed after its last validation ends with."""
    if state.epoch_loss is None or state.epochs < rules.min_epochs:
        return None
    if _meets_target(state.epoch_loss, rules):
        return _reached(state.epoch_loss, rules, f"after {state.epochs} epochs")
    if rules.patience is None or state.counter <= rules.patience:
        return None
    since = f"no val_loss below {state.best_loss:.9g} for {state.counter} epochs, patience is {rules.patience}"
    if rules.require_target and rules.target_val_loss is not None:
        short = f"the target {rules.target_val_loss:.9g} is required and val_loss is {state.epoch_loss:.9g}"
        return Verdict("target_missed", f"{since}; {short}", "patience")
    return Verdict("early_stopped", since, "patience")


def at_budget_end(state: GateState, rules: GateRules) -> Verdict:
    """How a run ends whose budget is used up and whose last validation let it pass; min_epochs plays no part here."""
    standing = standing_verdict(state, rules)
    if standing is not None:
        return standing
    used_up = "every step of the budget is made"
    if rules.target_val_loss is None:
        return Verdict("completed", used_up, "budget")
    if state.last_loss is not None and _meets_target(state.last_loss, rules):
        return _reached(state.last_loss, rules, "at the end of the budget")
    found = "there is no val_loss" if state.last_loss is None else f"val_loss is {state.last_loss:.9g}"
    reason = f"{used_up}; {found}, the target {rules.target_val_loss:.9g} is not reached"
    if rules.require_target:
        return Verdict("target_missed", reason, "target")
    return Verdict("completed", reason, "budget")


def _damage(state: GateState, rules: GateRules, val_loss: float, when: str) -> Verdict | None:
    if not math.isfinite(val_loss):
        reason = f"val_loss is {val_loss!r} {when}, expected a finite number"
        return Verdict("numerical_instability", reason, "numerical_stability")
    for limit, what in _limits(state, rules):
        if val_loss > limit:
            outcome: Ends = "divergence" if state.validations else "divergence_at_first_validation"
            reason = f"val_loss is {val_loss:.9g} {when}, above {limit:.9g}, {what}; try a tenth of the learning rate"
            return Verdict(outcome, reason, "divergence")
    return None


def _limits(state: GateState, rules: GateRules) -> Iterator[tuple[float, str]]:
    """What a val_loss may be at most, and why. Validating more often adds limits and lifts none."""
    if rules.is_cross_entropy:
        cap = first_loss_cap(rules)
        if cap is not None and state.epochs == 0:
            yield cap, f"the cap of a first validation ({rules.regime})"
        if state.last_loss is not None:
            yield DIVERGENCE_RATIO * state.last_loss, f"twice the {state.last_loss:.9g} of the validation before"
        if state.epoch_loss is not None:
            yield DIVERGENCE_RATIO * state.epoch_loss, f"twice the {state.epoch_loss:.9g} of the epoch before"
    # a multiple of a negative loss lies below it and would end every run
    if rules.divergence_factor is not None and state.lowest_loss is not None and state.lowest_loss >= 0:
        factor, lowest = rules.divergence_factor, state.lowest_loss
        yield factor * lowest, f"{factor:.9g} times the lowest, {lowest:.9g}"


def _taken_in(state: GateState, val_loss: float) -> GateState:
    lowest = val_loss if state.lowest_loss is None else min(state.lowest_loss, val_loss)
    return replace(state, validations=state.validations + 1, last_loss=val_loss, lowest_loss=lowest)


def _epoch_over(state: GateState, rules: GateRules, val_loss: float, epoch: int) -> GateState:
    is_better = state.best_loss is None or val_loss < state.best_loss - rules.min_delta
    return replace(
        state,
        epochs=epoch + 1,
        epoch_loss=val_loss,
        best_loss=val_loss if is_better else state.best_loss,
        counter=0 if is_better else state.counter + 1,
    )


def _meets_target(val_loss: float, rules: GateRules) -> bool:
    return rules.target_val_loss is not None and val_loss <= rules.target_val_loss


def _reached(val_loss: float, rules: GateRules, when: str) -> Verdict:
    reason = f"val_loss is {val_loss:.9g} {when}, the target is {rules.target_val_loss:.9g}"
    return Verdict("target_reached", reason, "target")
