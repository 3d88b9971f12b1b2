"""The records of evaluations: each by its schema, of this run, under its own name."""

from __future__ import annotations

from collections.abc import Iterator

from trn.provenance.evaluation_record import evaluation_name, evaluation_problems
from trn.records import from_json
from trn.verify.finding import Finding, Run

__all__ = ["check_evaluations"]

_LARGEST_BYTES = 16 << 20
"""A record has a line for each metric, file of the data and library."""


def check_evaluations(run: Run) -> Iterator[Finding]:
    """What a record says of a checkpoint that is gone, or was made again by a resume, nobody can check."""
    for path in sorted((run.reports / "evaluations").glob("[!.]*")):
        name = f"reports/evaluations/{path.name}"
        if not path.is_file() or path.stat().st_size > _LARGEST_BYTES:
            yield Finding(name, f"it is no file of at most {_LARGEST_BYTES >> 20} MiB, and so no record")
            continue
        data = path.read_bytes()
        if problems := evaluation_problems(data):
            yield from (Finding(name, problem) for problem in problems)
            continue
        record = from_json(data)
        is_own = record["run_id"] == run.plan.run_id and record["plan_fingerprint"] in run.plan.lineage
        is_named = path.name == evaluation_name(record["created_at"], record["checkpoint"]["file"])
        problem = None if is_own and is_named else "it belongs to another run, plan or checkpoint"
        yield Finding(f"{name}: {len(record['metrics'])} metrics", problem)
