"""What a run was: its code, dependencies, machine, environment and command, told so that a stranger can rely on it.

Here: reading the state of git, packages, machine and environment; hiding secrets; the content of the start-up
artifacts; the schema of run_meta.json, which drives its writer and its validator. Not here: writing files (the runner
writes the bytes it is given), torch (its facts are handed in), the plan itself, outcomes and metrics.

    git, lock, machine, environment, code ──┐
    plan, argv, environ, sources ──redact───┴──> startup_artifacts ──> {path: bytes} ──> runner writes them
                                                 resumed_run_meta  ──> one job entry more at each resume
    run_meta.json ──> validate_run_meta ──> problems
    what a trainer says ──process──> the same without secrets: names, events, samples, printed lines
"""

from trn.provenance.machine import Accelerator, Device, TorchFacts
from trn.provenance.redact import Redactor, redact, secret_paths
from trn.provenance.run_meta import validate_run_meta
from trn.provenance.startup import StartupFacts, make_redactor, resumed_run_meta, startup_artifacts

__all__ = [
    "Accelerator",
    "Device",
    "Redactor",
    "StartupFacts",
    "TorchFacts",
    "make_redactor",
    "redact",
    "resumed_run_meta",
    "secret_paths",
    "startup_artifacts",
    "validate_run_meta",
]
