"""What may go from a folder of runs: each thing found by its exact name and place, and nothing that is not known.

    <run>/checkpoints/abandoned-JOB/             what a resume went back behind
    <run>/reports/{train,val}_metrics.cut-JOB.jsonl     the lines that it cut
    <run>/**/.NAME.tmp-PID-N, checkpoints/.trash-*      what a crashed writer left; .pt files and .files without a meta
    <run>/checkpoints/step-N.*                   of a finished run: all but the newest two, the best and its outcome's;
                                                 with a trainer's own folder, step-N.files
    .trn/cancel/JOB                              a wish that a job ends which has ended
    .trn/sinks/RUN/                              how far targets of events are, of a run that is gone
    .trn/staging/JOB/, .trn-doctor.tmp-*/        folders whose maker is dead: nobody holds the lock in them
    logs/YYYY/MM/DD/JOB.log                      output of a job that neither the store nor any run knows

Looking changes nothing. No link is followed: a folder or file that is one is none of ours. Checkpoints, also abandoned
ones, may go only while those that stay hold: their hashes are read, and the last good one is never put at risk.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from trn.checkpoint.folder import FILES_NAME, folder_name, is_staged
from trn.checkpoint.meta import CheckpointMeta, checkpoint_name, listed_steps, meta_name, reject_reason
from trn.doors.disk import entries, file_names, folder_names
from trn.doors.storage import TRIAL_NAME
from trn.doors.stream import events_of
from trn.files import is_locked
from trn.jobs import OPEN_STATES, launch_lock, open_store, outcome_of
from trn.records import RUN_ID_PATTERN, Json, JsonError, Outcome, read_json

__all__ = ["KINDS", "LOCK_NAME", "PLAN_NAME", "Item", "items_of_run", "items_of_store", "runs_in"]

KINDS = {
    "checkpoint": "older than the newest two, and not the best, of a finished run",
    "abandoned": "checkpoints that a resume went back behind",
    "metrics_cut": "metrics that a resume cut off",
    "leftover": "left by a writer that crashed",
    "staging": "a run that died while it was planned",
    "sinks": "how far targets of events are, of a run that is gone",
    "log": "output of a job that nobody knows any more",
    "uploads": "how far uploads are, of a run that is gone",
    "worker": "what a worker wrote for a run that is gone",
    "input": "an input that no run names",
    "decoded": "data that were decoded for no run that is there",
}
"""What an item is, and the sentence that says why it may go."""

PLAN_NAME = "reports/resolved_config.json"
LOCK_NAME = ".lock"

_KEPT = 2
_PAIR = re.compile(r"(?:step-\d{8,}|last|best)\.(?:pt|meta\.json)|epoch-\d{3,}\.(?:pt|metadata\.json)")
_WEIGHTS = re.compile(r"step-(\d{8,})\.pt")
_TEMPORARY = re.compile(r"\..+\.tmp-\d+-\d+", re.DOTALL)
_TRASH = re.compile(r"\.trash-step-\d{8,}\.(?:pt|meta\.json|files)")
_ABANDONED = re.compile(r"abandoned-[A-Za-z0-9][A-Za-z0-9._-]*")
_CUT = re.compile(r"(?:train|val)_metrics\.cut-[A-Za-z0-9][A-Za-z0-9._-]*\.jsonl")
_JOB_ID = r"job-\d{8}-\d{6}-\d{6}-[0-9a-f]{6}"
_LOG = re.compile(rf"({_JOB_ID})\.(?:log|jsonl|slurm\.log)")
_POSITION = re.compile(r"\.?([0-9a-f]{16})\.(?:json|lock)(?:\.tmp-\d+-\d+)?")
_HOLDER = re.compile(r"\bjob=(\S+)")


@dataclass(frozen=True)
class Item:
    """One thing that may go: `paths` in the order in which they go, a folder with all that is in it.

    `lock` is one that whoever removes it must hold, besides the run's own; `may_still_go` is asked while it is held.
    """

    kind: str
    paths: tuple[Path, ...]
    lock: Path | None = None
    may_still_go: Callable[[], bool] = lambda: True


def runs_in(runs_dir: Path) -> list[Path]:
    """The folders of all runs, by name: real folders with a plan in them."""
    return [
        runs_dir / name
        for name in folder_names(runs_dir)
        if RUN_ID_PATTERN.fullmatch(name) and (runs_dir / name / PLAN_NAME).is_file()
    ]


# Of one run


def items_of_run(run_dir: Path) -> tuple[list[Item], str | None]:
    """What may go from a run that nobody is working on, and why checkpoints of it stay that else might go."""
    reports = run_dir / "reports"
    cut = [Item("metrics_cut", (reports / name,)) for name in file_names(reports) if _CUT.fullmatch(name)]
    checkpoints, reason = _checkpoints(run_dir)
    return [*checkpoints, *cut, *_leftovers(run_dir)], reason


def _checkpoints(run_dir: Path) -> tuple[list[Item], str | None]:
    """Abandoned ones, and those of a finished run that are beyond what is kept."""
    folder = run_dir / "checkpoints"
    files = set(file_names(folder))
    steps = [step for step in (listed_steps(folder) if files else []) if meta_name(step) in files]
    items = [Item("abandoned", (folder / name,)) for name in folder_names(folder) if _is_abandoned(folder / name)]
    stay = set(steps[:_KEPT])
    outcome = outcome_of(run_dir, "")
    if outcome is not None and outcome.exit_code == 0:
        stay |= {step for step in _pointed_at(folder, files, outcome) if step in steps}
        gone = [step for step in steps if step not in stay and checkpoint_name(step) in files]
        items += [Item("checkpoint", tuple(_paths(folder, step))) for step in gone]
    if items and (damage := _damage(run_dir, sorted(stay, reverse=True), outcome)):
        return [], f"its checkpoints stay: {damage}"
    return items, None


def _paths(folder: Path, step: int) -> Iterator[Path]:
    yield folder / meta_name(step)
    yield folder / checkpoint_name(step)
    if (folder / folder_name(step)).is_dir() and not (folder / folder_name(step)).is_symlink():
        yield folder / folder_name(step)


def _is_abandoned(folder: Path) -> bool:
    """Whether it is a folder of set-aside checkpoints, with nothing else in it."""
    return bool(_ABANDONED.fullmatch(folder.name)) and all(map(_is_of_a_checkpoint, entries(folder)))


def _is_of_a_checkpoint(entry: os.DirEntry[str]) -> bool:
    if entry.is_dir(follow_symlinks=False):
        return bool(FILES_NAME.fullmatch(entry.name))
    return entry.is_file(follow_symlinks=False) and bool(
        _PAIR.fullmatch(entry.name) or _TEMPORARY.fullmatch(entry.name)
    )


def _pointed_at(folder: Path, files: set[str], outcome: Outcome) -> Iterator[int]:
    """Steps that the outcome names, and those that last.* and best.* are."""
    for named in (outcome.best, outcome.checkpoint):
        if named is not None and isinstance(step := named.get("step"), int):
            yield step
    for hint in ("last", "best"):
        if f"{hint}.meta.json" in files:
            try:
                yield int(read_json(folder / f"{hint}.meta.json").get("step", 0))
            except (JsonError, OSError, TypeError, ValueError):
                continue  # `trn verify` names it; what it pointed at may be the same file, see below
    for name in sorted(files):
        found = _WEIGHTS.fullmatch(name)
        if found and any(f"{hint}.pt" in files and _is_same(folder, name, f"{hint}.pt") for hint in ("last", "best")):
            yield int(found[1])


def _is_same(folder: Path, one: str, other: str) -> bool:
    return (folder / one).samefile(folder / other)


def _plan(run_dir: Path) -> Json:
    try:
        return read_json(run_dir / PLAN_NAME)
    except (JsonError, OSError):
        return {}


def _damage(run_dir: Path, steps: list[int], outcome: Outcome | None) -> str | None:
    """Why one of the checkpoints that stay does not hold, None where all do."""
    folder, plan = run_dir / "checkpoints", _plan(run_dir)
    earlier = plan.get("earlier_fingerprints")
    lineage = [plan.get("fingerprint"), *(earlier if isinstance(earlier, list) else [])]
    if not steps:
        return "no other one is committed"
    if outcome is not None and outcome.exit_code == 0 and (outcome.checkpoint or {}).get("step") not in steps:
        return "the one that the outcome names is not there"
    for step in steps:
        try:
            meta = CheckpointMeta.read(folder / meta_name(step))
            reason = reject_reason(folder, meta, lineage=lineage, reports=run_dir / "reports")
        except (JsonError, OSError, TypeError, ValueError) as error:
            reason = f"{meta_name(step)}: {error}"
        if reason:
            return reason
    return None


def _leftovers(run_dir: Path) -> Iterator[Item]:
    """Temporaries of writers in every folder that a run writes to, trash, and files that were never committed."""
    checkpoints = run_dir / "checkpoints"
    reports = run_dir / "reports"
    for folder in (run_dir, reports, reports / "outcomes", reports / "plans", run_dir / "samples", checkpoints):
        for name in file_names(folder):
            if _TEMPORARY.fullmatch(name) or (folder == checkpoints and _TRASH.fullmatch(name)):
                yield Item("leftover", (folder / name,))
    for name in folder_names(checkpoints):
        if is_staged(name) or _TRASH.fullmatch(name):
            yield Item("leftover", (checkpoints / name,))
    files, folders = file_names(checkpoints), folder_names(checkpoints)
    weights = {int(found[1]) for name in files if (found := _WEIGHTS.fullmatch(name))}
    weights |= {int(found[1]) for name in folders if (found := FILES_NAME.fullmatch(name))}
    committed = listed_steps(checkpoints) if files else []
    if not (uncommitted := weights.difference(committed)):
        return
    # one that the journal says was committed has lost its meta: that is damage, and it may be mended
    announced = {event.get("step") for event in _events(run_dir) if event.get("event") == "checkpoint"}
    newest = max(committed, default=0)
    for step in sorted(uncommitted):
        if step < newest or step not in announced:
            both = (
                (checkpoint_name(step) in files, checkpoint_name(step)),
                (folder_name(step) in folders, folder_name(step)),
            )
            yield Item("leftover", tuple(checkpoints / name for is_there, name in both if is_there))


def _events(run_dir: Path) -> Iterator[Json]:
    return events_of(run_dir / "reports" / "events.jsonl")


# Of all runs together


def items_of_store(runs_dir: Path) -> list[Item]:
    """What may go beside the runs. Raises StorageError where the job store cannot be read."""
    if (runs_dir / ".trn").is_symlink():
        return []
    staging = runs_dir / ".trn" / "staging"
    dead = [Item("staging", (one,), one / LOCK_NAME) for one in _dead(staging) if _HOLDER.search(_note(one))]
    trials = (one for one in _dead(runs_dir) if one.name.startswith(TRIAL_NAME) and "trn doctor" in _note(one))
    return [
        *dead,
        *(Item("leftover", (one,), one / LOCK_NAME) for one in trials),
        *_wishes(runs_dir),
        *_positions(runs_dir),
        *_logs(runs_dir),
    ]


def _dead(folder: Path) -> Iterator[Path]:
    """Folders with a lock file that nobody holds."""
    for name in folder_names(folder):
        lock = folder / name / LOCK_NAME
        if lock.is_file() and not lock.is_symlink() and is_locked(lock) is None:
            yield folder / name


def _note(folder: Path) -> str:
    """What the last holder of the lock left in it; "" if it was never held, and its maker is about to take it."""
    try:
        return (folder / LOCK_NAME).read_text(errors="replace")[:4096]
    except OSError:
        return ""


def _wishes(runs_dir: Path) -> list[Item]:
    """Requests to cancel a job that has ended, or, of a loop of the user's own, that holds no run any more."""
    folder = runs_dir / ".trn" / "cancel"
    names = [name for name in file_names(folder) if RUN_ID_PATTERN.fullmatch(name)]
    if not names:
        return []
    with open_store(runs_dir) as store:
        rows = {name: store.get(name) for name in names}
    at_work = {found[1] for run in runs_in(runs_dir) if (found := _HOLDER.search(is_locked(run / LOCK_NAME) or ""))}
    open_jobs = {name for name, row in rows.items() if row and row.state in OPEN_STATES} | at_work
    return [Item("leftover", (folder / name,)) for name in names if name not in open_jobs]


def _positions(runs_dir: Path) -> Iterator[Item]:
    """Of a run that is gone, all that is known of its targets; of one that is there, what a killed sender left."""
    sinks = runs_dir / ".trn" / "sinks"
    for folder in (sinks / name for name in folder_names(sinks)):
        found = {name: _POSITION.fullmatch(name) for name in file_names(folder)}
        locks = {name: folder / f"{match[1]}.lock" for name, match in found.items() if match}
        if any(is_locked(lock) is not None for lock in locks.values()):
            continue
        if not os.path.lexists(runs_dir / folder.name):
            if len(locks) == len(entries(folder)):
                yield Item("sinks", (folder,))
            continue
        for name in locks:
            if _TEMPORARY.fullmatch(name):
                yield Item("leftover", (folder / name,), locks[name])


def _logs(runs_dir: Path) -> list[Item]:
    """Output of jobs that nobody knows; none where there is no store, which may only have been lost."""
    found: dict[str, list[Path]] = {}
    for path in _log_files(runs_dir / "logs"):
        if match := _LOG.fullmatch(path.name):
            found.setdefault(match[1], []).append(path)
    with open_store(runs_dir) as store:
        if not found or not store.path.exists():
            return []
        unknown = set(found) - {row.job_id for row in store.list()}
    for run_dir in runs_in(runs_dir) if unknown else ():
        unknown -= {str(event.get("job_id")) for event in _events(run_dir)}
        unknown -= set(_HOLDER.findall(_note(run_dir)))
    return [
        Item("log", tuple(found[job_id]))
        for job_id in sorted(unknown)
        if is_locked(launch_lock(runs_dir, job_id)) is None
    ]


def _log_files(logs: Path) -> Iterator[Path]:
    for year in (name for name in folder_names(logs) if re.fullmatch(r"\d{4}", name)):
        for month in (name for name in folder_names(logs / year) if re.fullmatch(r"\d\d", name)):
            for day in (name for name in folder_names(logs / year / month) if re.fullmatch(r"\d\d", name)):
                folder = logs / year / month / day
                yield from (folder / name for name in file_names(folder))
