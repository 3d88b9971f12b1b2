"""Rules that let a step, an epoch or an export pass, or end the run. Pure functions, no torch, no files.

Here: predicates over plain numbers. Not here: who calls them and what happens then (the loop), what is written down
(the journal), tensors (the trainer hands in floats).

    loss, grad_norm, lr ──finite──> pass, or NumericalInstability naming step, field and value
    metrics of a step   ──record──> the complete line of the journal, or a refusal
"""

from trn.gates.finite import require_finite

__all__ = ["require_finite"]
