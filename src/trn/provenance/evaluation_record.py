"""The schema of reports/evaluations/*.json: what the writer fills, `trn verify` applies and `trn schema` prints.

Every key is required, none may be added, no value is converted, every number is finite.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from trn.provenance.run_meta_schema import NotNegative, Positive, RunId, Sha256, Text, UtcTime
from trn.records import JsonError, from_json

__all__ = ["EvaluatedCheckpoint", "EvaluatedData", "EvaluationRecord", "evaluation_name", "evaluation_problems"]

Metrics = Annotated[dict[Text, float | int], Field(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class EvaluatedCheckpoint(_Section):
    file: Annotated[str, StringConstraints(pattern=r"^step-[0-9]{8,}\.pt$")]
    sha256: Sha256
    step: Positive
    epoch: NotNegative


class EvaluatedData(_Section):
    source: Literal["plan", "given"]
    """The plan's own validation data, or others that were named."""
    fingerprint: Sha256
    rows: Positive
    files: Annotated[list[Text], Field(min_length=1)]
    columns: Annotated[list[Text], Field(min_length=1)]
    batch_size: Positive
    max_batches: NotNegative
    """0: all of them."""


class Environment(_Section):
    """The process that evaluated, as runtime_env.json and run_metadata.json tell it of a run."""

    runtime_env: dict[str, Any]
    run_metadata: dict[str, Any]


class Command(_Section):
    argv: Annotated[list[str], Field(min_length=1)]
    cwd: Text


class EvaluationRecord(_Section):
    """One evaluation of one checkpoint."""

    schema_version: Literal[1]
    created_at: UtcTime
    run_id: RunId
    plan_fingerprint: Sha256
    checkpoint: EvaluatedCheckpoint
    metrics: Metrics
    run_metrics: Metrics | None
    """What the run itself found at this step; null where it did not evaluate the same data in the same batches."""
    is_equal: bool | None
    """Whether both are the same to the bit."""
    data: EvaluatedData
    code_sha256: Sha256
    device: Text
    seconds: Annotated[float, Field(ge=0)]
    versions: dict[Text, Text]
    command: Command
    environment: Environment

    @model_validator(mode="after")
    def _agree(self) -> EvaluationRecord:
        expected = None if self.run_metrics is None else self.metrics == self.run_metrics
        if self.is_equal is not expected:
            raise ValueError(f"is_equal does not follow from the metrics: expected {expected}")
        return self


def evaluation_name(created_at: str, checkpoint: str) -> str:
    """The name of the record's file: `20261122T091500.123456Z-step-00000060.json`."""
    stamp = created_at.replace("-", "").replace(":", "")
    return f"{stamp}-{checkpoint.removesuffix('.pt')}.json"


def evaluation_problems(data: bytes) -> list[str]:
    """What is wrong with the bytes of a record, a line for each problem; empty where nothing is."""
    try:
        EvaluationRecord.model_validate(from_json(data))
    except JsonError as error:
        return [f"not strict JSON: {error}"]
    except ValidationError as error:
        return [
            f"{'.'.join(map(str, one['loc'])) or 'the record'}: {one['msg'].removeprefix('Value error, ')}"
            for one in error.errors(include_url=False)
        ]
    return []
