"""What all curve sinks make of a run: points of its metrics lines, parameters of its plan, and how it stands.

Pure but for reading the run's own files. Not here: which library takes them (tensorboard, mlflow, wandb, prometheus).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trn.files import is_locked
from trn.records import JsonError, Outcome, canonical_json, read_json, read_lines
from trn.sinks.sink import Curve, Json

__all__ = ["CURVE_FILES", "flat_params", "lines_up_to", "points", "run_state"]

CURVE_FILES: Mapping[Curve, str] = {"train": "train_metrics.jsonl", "val": "val_metrics.jsonl"}

_NOT_PARAMETERS = frozenset(
    {
        *("schema_version", "run_id", "run_dir", "runs_dir", "spec_folder", "config_path", "base_config_path"),
        *("dataset_seed", "fingerprint", "earlier_fingerprints", "revision", "log", "heartbeat_s", "events"),
        *("sample_prompts", "sample_seed", "defaulted"),
    }
)
"""Keys of a plan that say where and how a run is kept, not what it computes."""

_FILES = frozenset({"dataset.data.files", "validation.data.files"})
"""One entry a file of the data: too long for a parameter, and their fingerprint stands beside them."""


def points(kind: Curve, line: Json) -> dict[str, int | float]:
    """The numbers of a metrics line by the name of their curve: `train_loss` of a train line is `train/loss`.

    Nulls are no points, and neither are step and epoch, which say where on a curve the line is.
    """
    found: dict[str, int | float] = {}
    for key, value in line.items():
        if key in ("step", "epoch") or isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        short = key.removeprefix(f"{kind}_")
        found[f"{kind}/{key if short in line else short}"] = value
    return found


def flat_params(plan: Json) -> dict[str, str | int | float | bool]:
    """The plan's settings by dotted name; lists as JSON, nulls left out, sorted by name."""
    return dict(sorted(_flat("", {key: plan[key] for key in plan if key not in _NOT_PARAMETERS})))


def _flat(head: str, value: Any) -> Iterator[tuple[str, str | int | float | bool]]:
    if head in _FILES or value is None:
        return
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _flat(f"{head}.{key}" if head else str(key), below)
    elif isinstance(value, list):
        yield head, canonical_json(value).decode()
    else:
        yield head, value


def lines_up_to(reports: Path, kind: Curve, step: int) -> Iterator[Json]:
    """The lines of one of the metrics files that belong to steps up to `step`, as they stand there now.

    For a library that cannot take a point back: what it has is thrown away, and written anew from these. Ends at a
    line that is damaged, as every reader of the journal does.
    """
    lines = read_lines(reports / CURVE_FILES[kind])
    try:
        for line in lines:
            if line["step"] > step:
                return
            yield line
    except (JsonError, KeyError, TypeError):
        return


def run_state(run_dir: Path) -> tuple[str, int | None]:
    """How the run stands: `running`, or the word of its outcome with its exit code; `lost`: neither."""
    if is_locked(run_dir / ".lock") is not None:
        return "running", None
    try:
        outcome = Outcome.from_json(read_json(run_dir / "reports" / "outcome.json"))
    except (OSError, JsonError):
        return "lost", None
    return outcome.status, outcome.exit_code
