"""The verb `doctor`: one block of facts to paste into a question, and what is wrong with what to do about it.

Everything is looked at as it is now and nothing is changed. Only what keeps runs from working makes the exit status
one of an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from trn.devices import accelerators, holders
from trn.doors.installation import Library, environment, libraries, machine, torch_facts, trainers
from trn.doors.lines import size
from trn.doors.listing import json_option, runs_dir_option
from trn.doors.storage import Trial, in_the_way, nearest_existing, space, try_storage
from trn.doors.targets import runs_folder
from trn.doors.text import clean_line
from trn.errors import StorageError, exit_code
from trn.jobs import open_store, rows_of_folders
from trn.records import pretty_json

__all__ = ["doctor_command"]

Json = dict[str, Any]

_LITTLE_BYTES = 1_000_000_000
_AGAIN = "Install trn again with pip, which brings what it needs."
_ELSEWHERE = "Move it away, or name another folder with --runs-dir or TRN_RUNS_DIR."


@dataclass(frozen=True)
class Problem:
    """Something that is wrong; `blocks` is the word of the outcome that runs would have, None where they work."""

    what: str
    remedy: str
    blocks: str | None = None


@click.command(name="doctor")
@runs_dir_option
@json_option
def doctor_command(runs_dir: str | None, as_json: bool) -> int:
    """Say what this machine and this installation can do, and what is wrong: one block to paste into a question.

    The storage is really tried, in a folder of its own that is removed again. Exit status 0 when runs will work, 74
    when the storage keeps them from it, 78 when the installation does.
    """
    document, problems = examine(runs_folder(runs_dir))
    if as_json:
        click.echo(pretty_json(document), nl=False)
    else:
        for name, value in _lines(document):
            click.echo(f"{name:<12}{clean_line(value)}")
    blocking = {problem.blocks for problem in problems}
    return next((exit_code(word) for word in ("io_error", "plan_refused") if word in blocking), 0)


def examine(runs_dir: Path) -> tuple[Json, list[Problem]]:
    """All facts as one JSON document, and the problems, which are in it too."""
    tried_in = nearest_existing(runs_dir)
    trials = try_storage(tried_in)
    known = libraries()
    torch, torch_reason = torch_facts()
    variables, variables_reason = environment(os.environ)
    store, store_problems = _job_store(runs_dir)
    seen = accelerators(os.environ)
    storage = space(tried_in) | {
        "runs_dir": str(runs_dir),
        "tried_in": str(tried_in),
        "trials": {trial.name: {"works": trial.works, "reason": trial.reason} for trial in trials},
    }
    problems = [
        *_storage_problems(trials, storage),
        *store_problems,
        *_lease_problems(),
        *_installation_problems(known, torch_reason, variables_reason),
        *_variable_problems(),
    ]
    document = {
        **machine(),
        "accelerators": {"devices": [one.to_json() for one in seen.devices], "reasons": dict(seen.reasons)},
        "libraries": {library.name: library.version for library in known},
        "torch": torch,
        "torch_reason": torch_reason,
        "trainers": trainers(),
        "storage": storage,
        "job_store": store,
        "environment": variables,
        "problems": [asdict(problem) for problem in problems],
    }
    return document, problems


def _job_store(runs_dir: Path) -> tuple[Json, list[Problem]]:
    """Whether the store can be read, how many jobs are in it, and how many runs there are."""
    with open_store(runs_dir) as store:
        facts: Json = {"path": str(store.path), "exists": store.path.exists(), "jobs": None, "runs": None}
        try:
            facts["jobs"] = len(store.list())
            facts["runs"] = len(rows_of_folders(runs_dir, ()))
        except (StorageError, OSError) as error:
            message = error.message if isinstance(error, StorageError) else str(error)
            hint = getattr(error, "hint", None) or "Look at its permissions, and at the disk."
            return facts, [Problem(f"{store.path}: {message}", hint, "io_error")]
    return facts, []


def _storage_problems(trials: list[Trial], storage: Json) -> Iterator[Problem]:
    if obstacle := in_the_way(Path(storage["runs_dir"])):
        yield Problem(f"{obstacle} is in the way, and no folder", _ELSEWHERE, "io_error")
    for trial in trials:
        if trial.works is False:
            blocks = "io_error" if trial.is_needed else None
            yield Problem(f"{trial.name} does not work in {storage['tried_in']}: {trial.reason}", trial.remedy, blocks)
    if storage["note"]:
        yield Problem(f"{storage['tried_in']} is on {storage['file_system']}: {storage['note']}", "Know about it.")
    if storage["free_bytes"] < _LITTLE_BYTES:
        free = size(storage["free_bytes"])
        yield Problem(f"{free} are free in {storage['tried_in']}", "Free some space: `trn gc` shows what runs occupy.")


def _lease_problems() -> Iterator[Problem]:
    try:
        holders(os.environ)
    except StorageError as error:
        yield Problem(f"devices cannot be leased in {error.where}: {error.message.rstrip('.')}", error.hint or "")


def _installation_problems(known: list[Library], torch_reason: str | None, own_reason: str | None) -> Iterator[Problem]:
    if not known:
        yield Problem("trn has no metadata: it is not installed", "Install it with pip.", "plan_refused")
    for library in known:
        if library.problem and library.extra:
            yield Problem(library.problem, f"For the trainer `lm`: pip install 'trn-runtime[{library.extra}]'")
        elif library.problem:
            yield Problem(library.problem, _AGAIN, "plan_refused")
    if torch_reason:
        yield Problem(f"torch cannot be used: {torch_reason}", "Install torch again.", "plan_refused")
    if own_reason:
        yield Problem(f"trn itself cannot be loaded: {own_reason}", _AGAIN, "plan_refused")


def _variable_problems() -> Iterator[Problem]:
    if os.environ.get("TRN_FAULT"):
        yield Problem("TRN_FAULT is set: runs will fail on purpose", "Unset it.")


# For people


def _lines(document: Json) -> Iterator[tuple[str, str]]:
    """Name and value of each line; a name is given once, for the first of its lines."""
    yield "trn", str(document["trn"])
    yield "python", f"{document['python']}, {_short(document['executable'])}"
    yield "platform", document["platform"]
    yield "cpu", _cpu_line(document["cpu"])
    if memory := document["memory"]:
        yield "memory", f"{size(memory['total_bytes'])}, {size(memory['available_bytes'])} available"
    yield "devices", _accelerators_line(document["accelerators"])
    yield "libraries", ", ".join(f"{name} {found or 'missing'}" for name, found in document["libraries"].items())
    yield "torch", _torch_line(document["torch"], document["torch_reason"])
    found = [f"{one['name']} ({one['value']}, {one['package']})" for one in document["trainers"]]
    yield "trainers", ", ".join(found) or "none installed"
    yield from _storage_lines(document["storage"])
    yield "job store", _store_line(document["job_store"])
    variables = document["environment"]
    said = [f"{name}={value}" for name, value in (variables or {}).items()]
    yield "variables", " ".join(said) or ("none" if variables is not None else "unknown")
    problems = document["problems"]
    yield "problems", str(len(problems)) if problems else "none"
    for problem in problems:
        yield "", f"{'NOT USABLE: ' if problem['blocks'] else ''}{problem['what']}. {problem['remedy']}"


def _short(path: str) -> str:
    """The path as it may be pasted: the home folder, which names a person, as `~`."""
    home = os.path.expanduser("~")
    return f"~{path[len(home) :]}" if home != "/" and path.startswith(f"{home}/") else path


def _cpu_line(cpu: Json) -> str:
    usable = cpu["usable"]
    return f"{cpu['count']}" if usable is None else f"{cpu['count']}, usable {len(usable)}"


def _accelerators_line(seen: Json) -> str:
    def told(one: Json) -> str:
        total = one["memory_total_bytes"]
        return f"{one['id']} ({one['name'] or one['kind']}{'' if total is None else f', {size(total)}'})"

    return ", ".join(map(told, seen["devices"])) or f"none: {'; '.join(seen['reasons'].values())}"


def _torch_line(torch: Json | None, reason: str | None) -> str:
    if torch is None:
        return f"unknown: {reason}"
    devices = ", ".join(torch["devices"]) or ("mps" if torch["mps"] else "no accelerator")
    built_for = f", built for {torch['built_for']}" if torch["built_for"] else ""
    return f"{torch['version']}{built_for}, {torch['threads']} threads, {torch['cpu_capability']}, {devices}"


def _storage_lines(storage: Json) -> Iterator[tuple[str, str]]:
    runs_dir, tried_in = storage["runs_dir"], storage["tried_in"]
    yield "runs", _short(runs_dir) + ("" if runs_dir == tried_in else f" (not there yet; tried in {_short(tried_in)})")
    kind = f", {storage['file_system']}" if storage["file_system"] else ""
    yield "disk", f"{size(storage['free_bytes'])} free of {size(storage['total_bytes'])}{kind}"
    words = {True: "yes", False: "NO", None: "not tried"}
    yield "storage", ", ".join(f"{name} {words[trial['works']]}" for name, trial in storage["trials"].items())


def _store_line(store: Json) -> str:
    if not store["exists"]:
        return "none yet"
    return "damaged" if store["jobs"] is None else f"{store['jobs']} jobs, {store['runs']} runs"
