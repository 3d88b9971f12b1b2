"""The spec: what a user writes, read and refused without guessing; and the plan that is made of it.

Here belongs: reading YAML, JSON and TOML into trees that remember their file and line, `extends`, profiles,
`--set` and flags, the schema, and the words in which a mistake is reported. What does not: anything that needs the
trainer, the data or the machine (that is `plan/`), and torch, pyarrow or numpy.

    bytes ──documents──> Node tree ──layers──> one Node tree ──schema, rules──> Spec ──(plan/)──> Plan
             (file, line)            extends < file < profile < --set < flag

A refusal is one `SpecError` with all problems. Nothing is created, and no code named by a spec is run.
"""

from __future__ import annotations

from trn.spec.job_form import Input, JobForm, WorkerKeys, read_job_file
from trn.spec.json_schema import spec_schema
from trn.spec.load import LoadedSpec, load_spec
from trn.spec.overrides import Flag, read_number
from trn.spec.schema import (
    BestSpec,
    CheckpointSpec,
    CompileSpec,
    DatasetSpec,
    EmaSpec,
    ExportSpec,
    GatesSpec,
    GroupSpec,
    GuardSpec,
    HeartbeatSpec,
    LimitsSpec,
    LogSpec,
    LossScaleSpec,
    OptimizerSpec,
    ScheduleSpec,
    Spec,
    ValidationSpec,
    WeightsSpec,
)
from trn.spec.sources import Source

__all__ = [
    "BestSpec",
    "CheckpointSpec",
    "CompileSpec",
    "DatasetSpec",
    "EmaSpec",
    "ExportSpec",
    "Flag",
    "GatesSpec",
    "GroupSpec",
    "GuardSpec",
    "HeartbeatSpec",
    "Input",
    "JobForm",
    "LimitsSpec",
    "LoadedSpec",
    "LogSpec",
    "LossScaleSpec",
    "OptimizerSpec",
    "ScheduleSpec",
    "Source",
    "Spec",
    "ValidationSpec",
    "WeightsSpec",
    "WorkerKeys",
    "load_spec",
    "read_job_file",
    "read_number",
    "spec_schema",
]
