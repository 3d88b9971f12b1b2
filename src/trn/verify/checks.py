"""The checks, in the order a reader would make them. Each yields what it looked at, good or bad."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from trn.checkpoint.folder import folder_name
from trn.checkpoint.meta import CheckpointMeta, checkpoint_name, listed_steps, meta_name, reject_reason
from trn.errors import ResumeRefused, TrnError, VerificationFailed
from trn.files import foreign, sha256_file
from trn.gates import record_problems
from trn.records import ENDINGS, EVENT_KINDS, JsonError, Outcome, read_json, read_lines
from trn.spec.plan_model import Plan
from trn.verify.epochs import check_epochs
from trn.verify.evaluations import check_evaluations
from trn.verify.exports import check_exports
from trn.verify.finding import PLAN_NAME, Finding, Run
from trn.verify.start_up import check_run_meta, check_start_up

__all__ = ["CHECKS", "verify_run"]


def verify_run(folder: Path) -> list[Finding]:
    """All findings of a run's folder. Raises VerificationFailed without a readable plan, or for links and pipes."""
    if problem := foreign(folder):
        raise VerificationFailed(problem, where=str(folder), hint="A run is made of plain files and folders only.")
    path = folder / PLAN_NAME
    try:
        plan = Plan.read(path.read_bytes(), str(path))
    except OSError as error:
        raise VerificationFailed(f"this folder is no run: {error.strerror}.", where=str(path)) from error
    except ResumeRefused as error:
        raise VerificationFailed(error.message, where=str(path)) from error
    run = Run(folder, plan)
    return [finding for check in CHECKS for finding in _guarded(check, run)]


def _guarded(check: Callable[[Run], Iterator[Finding]], run: Run) -> Iterator[Finding]:
    try:
        yield from check(run)
    except (JsonError, TrnError, OSError, KeyError, TypeError, ValueError) as error:
        # damage may take any shape; whatever it breaks is a finding of the check that met it
        yield Finding(check.__name__.removeprefix("_").removeprefix("check_"), f"{type(error).__name__}: {error}")


def _plan(run: Run) -> Iterator[Finding]:
    yield Finding(f"{PLAN_NAME}: fingerprint {run.plan.fingerprint[:12]}")


def _train_metrics(run: Run) -> Iterator[Finding]:
    """Exactly one line a step, from 1, with all keys, every number finite."""
    name = "reports/train_metrics.jsonl"
    expected = 0
    for line in read_lines(run.folder / name):
        expected += 1
        if line.get("step") != expected:
            yield Finding(name, f"line {expected} is of step {line.get('step')!r}; expected one line a step, in order")
            return
        for problem in record_problems(line, makes_own_updates=run.plan.optimizer is None):
            yield Finding(name, f"step {expected}: {problem}")
        if line.get("epoch") != (expected - 1) // run.plan.budget.steps_per_epoch:
            yield Finding(name, f"step {expected} says epoch {line.get('epoch')!r}")
    if expected > run.plan.budget.max_steps:
        yield Finding(name, f"{expected} lines, the budget is {run.plan.budget.max_steps} steps")
    yield from _whole(run, name)
    yield Finding(f"{name}: {expected} steps, one line each")


def _val_metrics(run: Run) -> Iterator[Finding]:
    name = "reports/val_metrics.jsonl"
    steps = [line["step"] for line in read_lines(run.folder / name)]
    if steps != sorted(set(steps)):
        yield Finding(name, "its steps do not rise")
    if steps and run.plan.validation is None:
        yield Finding(name, "the plan has no validation")
    yield from _whole(run, name)
    yield Finding(f"{name}: {len(steps)} validations")


def _whole(run: Run, name: str) -> Iterator[Finding]:
    path = run.folder / name
    if not path.exists() and not _has_runner_events(run):
        return  # killed before the journal was opened
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        yield Finding(name, "its last line is torn; a resume cuts it")


def _has_runner_events(run: Run) -> bool:
    """Whether a runner wrote an event: it makes all files of the journal first. Doors write endings only."""
    return any(event.get("event") not in ENDINGS for event in read_lines(run.reports / "events.jsonl"))


def _events(run: Run) -> Iterator[Finding]:
    """`seq` counts from 1 without a gap, kinds are known, a job ends at most once."""
    name = "reports/events.jsonl"
    ended: set[str] = set()
    count = 0
    for count, event in enumerate(read_lines(run.folder / name), 1):
        if event.get("seq") != count:
            yield Finding(name, f"line {count} has seq {event.get('seq')!r}")
        if event.get("event") not in EVENT_KINDS:
            yield Finding(name, f"line {count} is of unknown kind {event.get('event')!r}")
        if event.get("run_id") != run.plan.run_id:
            yield Finding(name, f"line {count} belongs to run {event.get('run_id')!r}")
        if event.get("event") in ENDINGS:
            if event["job_id"] in ended:
                yield Finding(name, f"line {count} ends {event['job_id']} a second time")
            ended.add(event["job_id"])
    if count == 0:
        yield Finding(name, "it has no event")
    yield from _whole(run, name)
    yield Finding(f"{name}: {count} events, {len(ended)} endings")


def _checkpoints(run: Run) -> Iterator[Finding]:
    """Every committed checkpoint: its meta, size, hash, the trainer's own folder, and the metrics that it saw."""
    steps = listed_steps(run.checkpoints)
    for step in steps:
        meta = _read_meta(run, step)
        if isinstance(meta, str):
            yield Finding(f"checkpoints/{meta_name(step)}", meta)
            continue
        reason = reject_reason(run.checkpoints, meta, lineage=run.plan.lineage, reports=run.reports)
        own = "" if meta.files is None else f", {len(meta.files)} files of the trainer's own"
        yield Finding(f"checkpoints/{meta.file}: {meta.size_bytes:,} bytes, sha256 {meta.sha256[:12]}{own}", reason)
        if meta.files is None and (run.checkpoints / folder_name(step)).exists():
            yield Finding(f"checkpoints/{folder_name(step)}", "the meta of its step lists no files")
    committed = {name for step in steps for name in (checkpoint_name(step), folder_name(step))}
    for path in sorted((*run.checkpoints.glob("step-*.pt"), *run.checkpoints.glob("step-*.files"))):
        if path.name not in committed:
            yield Finding(f"checkpoints/{path.name}: not committed, left by a crash; the next job removes it")


def _read_meta(run: Run, step: int) -> CheckpointMeta | str:
    try:
        return CheckpointMeta.read(run.checkpoints / meta_name(step))
    except (JsonError, OSError) as error:
        return str(error)


def _hints(run: Run) -> Iterator[Finding]:
    """last.* and best.*: each is one of the committed checkpoints, and both files of a pair are of the same.

    A crash between the two renames leaves a pair of two checkpoints, which the next job mends: that is no damage.
    """
    committed = {sha256_file(run.checkpoints / meta_name(step)): step for step in listed_steps(run.checkpoints)}
    weights = {sha256_file(path): path.name for path in sorted(run.checkpoints.glob("step-*.pt"))}
    for hint in ("last", "best"):
        path, meta_path = run.checkpoints / f"{hint}.pt", run.checkpoints / f"{hint}.meta.json"
        if not path.exists() and not meta_path.exists():
            continue
        step = committed.get(sha256_file(meta_path)) if meta_path.exists() else None
        name = weights.get(sha256_file(path)) if path.exists() else None
        if meta_path.exists() and step is None:
            yield Finding(f"checkpoints/{meta_path.name}", "it is the meta of no committed checkpoint")
        elif path.exists() and name is None:
            yield Finding(f"checkpoints/{path.name}", "it is none of the checkpoints")
        elif step is not None and name == checkpoint_name(step):
            yield Finding(f"checkpoints/{hint}.pt: step {step}")
        else:
            yield Finding(f"checkpoints/{hint}.*: half renamed by a crash; the next job mends it")


def _outcome(run: Run) -> Iterator[Finding]:
    """The outcome against the plan, the metrics, the events and the artifacts that it names."""
    name = "reports/outcome.json"
    path = run.folder / name
    if not path.exists():
        yield Finding(f"{name}: none yet")
        return
    outcome = Outcome.from_json(read_json(path))
    yield from _outcome_problems(run, name, outcome)
    for artifact, digest in outcome.artifacts.items():
        found = sha256_file(run.inside(artifact))
        yield Finding(artifact, None if found == digest else "its sha256 is not the one in the outcome")
    yield Finding(f"{name}: {outcome.status} at step {outcome.step}, exit code {outcome.exit_code}")


def _earlier_outcomes(run: Run) -> Iterator[Finding]:
    """The outcomes of earlier jobs, each under its job's id."""
    for path in sorted((run.reports / "outcomes").glob("[!.]*")):
        name = f"reports/outcomes/{path.name}"
        try:
            outcome = Outcome.from_json(read_json(path))
        except (JsonError, OSError) as error:
            yield Finding(name, str(error))
            continue
        is_own = outcome.run_id == run.plan.run_id and outcome.plan_fingerprint in run.plan.lineage
        named = path.name == f"{outcome.job_id}.json"
        problem = None if is_own and named else "it belongs to another run, plan or job"
        yield Finding(f"{name}: {outcome.status} at step {outcome.step}", problem)


def _outcome_problems(run: Run, name: str, outcome: Outcome) -> Iterator[Finding]:
    lines = sum(1 for _ in read_lines(run.reports / "train_metrics.jsonl"))
    if outcome.run_id != run.plan.run_id or outcome.plan_fingerprint not in run.plan.lineage:
        yield Finding(name, "it belongs to another run or plan")
    if outcome.step != lines:
        yield Finding(name, f"it says step {outcome.step}, the metrics have {lines} lines")
    made = outcome.step + (_left_out(run) if run.plan.budget.by_passes else 0)
    if outcome.status == "completed" and made != run.plan.budget.max_steps:
        yield Finding(name, f"completed at step {outcome.step} of {run.plan.budget.max_steps}")
    if outcome.exit_code == 0 and (outcome.checkpoint is None or outcome.checkpoint["step"] != outcome.step):
        yield Finding(name, "a met goal names no checkpoint of its last step")
    if outcome.checkpoint is not None:
        found = sha256_file(run.inside(outcome.checkpoint["file"]))
        if found != outcome.checkpoint["sha256"]:
            yield Finding(name, f"the sha256 of {outcome.checkpoint['file']} is not the one it names")
    ended = _jobs(run)
    said = ended.get(outcome.job_id)
    if said is not None and said != outcome.status:
        yield Finding(name, f"it says {outcome.status}, the journal says {said}")
    last = next(reversed(ended), outcome.job_id)
    last_ended = next((job_id for job_id in reversed(ended) if ended[job_id] is not None), last)
    # a job that was killed before its first event is unknown to the journal; it took up a run without an outcome
    is_unknown = outcome.job_id not in ended and ended.get(last) is None
    if outcome.job_id not in (last, last_ended) and not is_unknown:
        yield Finding(name, f"it is of {outcome.job_id}, the last job that ended is {last_ended}")


def _left_out(run: Run) -> int:
    """How many batches the run went on without; one that was left out again after a kill counts once."""
    events = read_lines(run.reports / "events.jsonl")
    return len({tuple(event["row_ids"]) for event in events if event.get("event") == "step_skipped"})


def _jobs(run: Run) -> dict[str, str | None]:
    """How each job ended, None where it did not; in the order of their first events.

    Not in that of their endings: a door that was stopped may write its job's ending after a later job's.
    """
    jobs: dict[str, str | None] = {}
    for event in read_lines(run.reports / "events.jsonl"):
        jobs.setdefault(event["job_id"], None)
        if event.get("event") in ENDINGS:
            jobs[event["job_id"]] = event.get("outcome")
    return jobs


CHECKS: tuple[Callable[[Run], Iterator[Finding]], ...] = (
    _plan,
    check_run_meta,
    check_start_up,
    _train_metrics,
    _val_metrics,
    _events,
    _checkpoints,
    _hints,
    check_epochs,
    _outcome,
    _earlier_outcomes,
    check_evaluations,
    check_exports,
)
