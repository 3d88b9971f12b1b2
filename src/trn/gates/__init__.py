"""Rules that let a step, an epoch or an export pass, or end the run. Pure functions, no torch, no files, no clocks.

Here: predicates and transitions over plain numbers and frozen values. Not here: who calls them and what happens then
(the loop), what is written down (the journal), tensors (the trainer hands in floats).

    loss, grad_norm, lr ──finite────────> pass, or NumericalInstability naming step, field and value          G7
    line of a step      ──record────────> what is missing or ill-typed in it                                  G1
    line of a step      ──after_step────> GateState, the line with bad readings as null, Verdict or None      G8
    a refused step      ──after_skip────> GateState, Verdict or None
    steps of an epoch   ──EpochTally────> the nine fields of its metadata, and what is missing in them        G2
    val_loss            ──after_validation──> GateState, Verdict or None                                      G3 G4 G5
    end of the budget   ──at_budget_end─> Verdict

Whatever a gate remembers is in `GateState` or `EpochTally`: saved with a checkpoint and read back, they give the same
verdict at the same step. G6, the same numbers from the same seed, is a property of the whole house; no code is here.
"""

from trn.gates.epoch import EPOCH_KEYS, EpochTally, build_epoch_metadata, epoch_problems, perplexity
from trn.gates.finite import require_finite
from trn.gates.record import record_problems
from trn.gates.rules import DIVERGENCE_RATIO, FINETUNE_CAP, GateRules, Regime, first_loss_cap, regime_of
from trn.gates.state import GateState
from trn.gates.step import after_skip, after_step
from trn.gates.telemetry import READING_RANGES, bad_readings
from trn.gates.validation import after_validation, at_budget_end, standing_verdict
from trn.gates.verdict import Verdict

__all__ = [
    "CLOCKED_KEYS",
    "DIVERGENCE_RATIO",
    "EPOCH_KEYS",
    "FINETUNE_CAP",
    "READING_RANGES",
    "EpochTally",
    "GateRules",
    "GateState",
    "Regime",
    "Verdict",
    "after_skip",
    "after_step",
    "after_validation",
    "at_budget_end",
    "bad_readings",
    "build_epoch_metadata",
    "epoch_problems",
    "first_loss_cap",
    "perplexity",
    "record_problems",
    "regime_of",
    "require_finite",
    "standing_verdict",
]

CLOCKED_KEYS = frozenset({"telemetry_warnings", "wall_s"})
"""The saved keys that a clock or a sensor gave: all others of GateState and EpochTally follow from (plan, step)."""
