"""What a step means for the run once it is over: accepted, with its telemetry, or refused and skipped."""

from __future__ import annotations

import sys
from dataclasses import replace

from trn.gates.rules import GateRules
from trn.gates.state import GateState
from trn.gates.telemetry import READING_RANGES, bad_readings
from trn.gates.verdict import Verdict
from trn.records import Json

__all__ = ["after_skip", "after_step"]


def after_step(state: GateState, rules: GateRules, line: Json) -> tuple[GateState, Json, Verdict | None]:
    """The state after an accepted step, its line with bad readings as null, and the verdict if one of them ends it.

    The step is made either way: its line belongs into the journal even with a verdict. Where nothing is wrong, the
    same state and line come back.
    """
    bad = bad_readings(line)
    if not bad and not state.skips_in_row:
        return state, line, None
    state = replace(state, skips_in_row=0, telemetry_warnings=state.telemetry_warnings + len(bad))
    verdict = None
    if bad and rules.telemetry == "stop":
        low, high = READING_RANGES[bad[0]]
        reason = f"{bad[0]} is {line[bad[0]]!r:.60} at step {line['step']}, expected {low:g} to {high:g}"
        verdict = Verdict("telemetry_out_of_range", reason, "telemetry")
    return state, {key: None if key in bad else value for key, value in line.items()}, verdict


def after_skip(state: GateState, rules: GateRules) -> tuple[GateState, Verdict | None]:
    """The state after a step that was refused before its update, and the verdict if the run may not go on without it.

    The learning rate falls with each skip and does not rise again. With a verdict the state comes back as it was.
    """
    if rules.policy == "stop":
        return state, Verdict(
            "numerical_instability", "a step is not finite, guard.policy is stop", "numerical_stability"
        )
    in_row = state.skips_in_row + 1
    if in_row > rules.max_skips:
        reason = f"{in_row} steps in a row are not finite, guard.max_skips is {rules.max_skips}"
        return state, Verdict("numerical_instability", reason, "numerical_stability")
    # after a thousand skips it would round to 0, which hides what happened and is refused when it is read back
    lr_factor = max(state.lr_factor * rules.lr_decay, sys.float_info.min)
    return replace(state, skips_in_row=in_row, skips=state.skips + 1, lr_factor=lr_factor), None
