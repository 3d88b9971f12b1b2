"""Slurm, asked with its own programs: a script handed to sbatch, its job seen, signalled and cancelled.

The state of a job is what scontrol says, and sacct where scontrol has forgotten it; a Slurm without accounting forgets
it for good after some minutes. What the script says: slurm_script.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence

from trn.errors import EngineError
from trn.launch.engine import Engine, Prepared, Request, Seen, ask
from trn.launch.slurm_script import OVERRULED, name_of, script_of

__all__ = ["SlurmEngine"]

_QUEUED = frozenset(
    ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")
)
_RUNNING = frozenset(("RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"))
_ENDED = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY")
) | frozenset(("PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT"))
_PASSED_ON = frozenset((signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1))


class SlurmEngine(Engine):
    """Asks with sbatch, scontrol, sacct and scancel, which find Slurm as they always do.

    With a `run_id` only jobs of this run are seen and ended: a number alone can be another job's, in another Slurm, or
    in one that has begun to count again.
    `options` are more options of sbatch; with `is_array` a restart is the next task of an array, in place of a requeue.
    `environ` is what the job starts with, as sbatch hands it on; `program` is trn, this very installation, which all
    machines are to see at the same path.
    """

    def __init__(
        self,
        options: Mapping[str, str] | None = None,
        *,
        run_id: str | None = None,
        is_array: bool = False,
        environ: Mapping[str, str] | None = None,
        program: Sequence[str] = (sys.executable, "-u", "-P", "-m", "trn"),
    ) -> None:
        self._options, self._is_array, self._environ = dict(options or {}), is_array, environ
        self._program = program
        self._name = None if run_id is None else name_of(run_id)

    def prepare(self, request: Request) -> Prepared:
        text = script_of(request, self._options, is_array=self._is_array, program=self._program)
        return Prepared(name_of(request.run_id), text)

    def submit(self, prepared: Prepared) -> str:
        given = os.environ if self._environ is None else self._environ
        environ = {name: value for name, value in given.items() if name not in OVERRULED}
        said = ask(["sbatch", "--parsable"], text=prepared.text, environ=environ, within="Slurm").strip()
        job = said.partition(";")[0]  # behind it the cluster's name, where there are several
        if not job.isdecimal():
            raise EngineError(f"expected the number of a job from sbatch, found {said[:200]!r}.", where="Slurm")
        return job

    def poll(self, engine_id: str) -> Seen:
        try:
            said = ask(["scontrol", "-o", "show", "job", _checked(engine_id)], within="Slurm")
        except EngineError as error:
            if "Invalid job id" not in error.message:
                raise
            return _from_accounting([*self._only, _checked(engine_id)])
        tasks = [_fields(line) for line in said.splitlines() if line.strip()] or [{}]
        seen = [(task.get("JobName"), _seen(task)) for task in tasks]
        return _together([one for name, one in seen if self._name in (None, name)])

    def cancel(self, engine_id: str) -> None:
        ask(["scancel", *self._only, _checked(engine_id)], within="Slurm")

    def signal(self, engine_id: str, number: int) -> None:
        if number not in _PASSED_ON:
            raise EngineError(f"the script passes on no signal {number}.", where="Slurm", hint="Send SIGTERM.")
        name = signal.Signals(number).name.removeprefix("SIG")
        ask(["scancel", *self._only, "--batch", f"--signal={name}", _checked(engine_id)], within="Slurm")

    @property
    def _only(self) -> list[str]:
        return [] if self._name is None else [f"--name={self._name}"]


def _checked(engine_id: str) -> str:
    """The number of a job; the store could have been written by anybody."""
    if not (engine_id.isascii() and engine_id.isdecimal()):
        raise EngineError(f"expected the number of a job, found {engine_id[:80]!r}.", where="Slurm")
    return engine_id


def _fields(line: str) -> dict[str, str]:
    """`JobState=RUNNING Reason=None ...`; of what stands twice, the first."""
    pairs = (part.partition("=") for part in reversed(line.split()))
    return {key: value for key, equals, value in pairs if equals}


def _seen(fields: Mapping[str, str]) -> Seen:
    state, reason = fields.get("JobState", ""), fields.get("Reason", "None")
    told = state if reason in ("None", "") else f"{state} ({reason})"
    if state in _QUEUED:
        return Seen("queued", None, told)
    if state in _RUNNING:
        return Seen("running", None, told)
    word = state.split()[0] if state else ""  # sacct says by whom it was cancelled
    if word not in _ENDED:
        raise EngineError(f"expected the state of a job, found {state[:80]!r}.", where="Slurm")
    status, _, number = fields.get("ExitCode", "").partition(":")
    code = int(status) if status.isdecimal() else None
    if number.isdecimal() and int(number):
        code = 128 + int(number)
    return Seen("cancelled" if word == "CANCELLED" else "ended", code, told)


def _together(tasks: Sequence[Seen]) -> Seen:
    """One word for all tasks of an array: the liveliest that one of them says, else the last one that was begun."""
    if not tasks:
        return Seen("gone")
    for state in ("running", "queued"):
        if alive := [one for one in tasks if one.state == state]:
            return alive[0]
    begun = [one for one in tasks if one.state == "ended"]
    return (begun or list(tasks))[0]


def _from_accounting(which: Sequence[str]) -> Seen:
    """What sacct remembers, where there is an accounting; nothing of it is promised."""
    if shutil.which("sacct") is None:
        return Seen("gone")
    try:
        said = ask(["sacct", "-n", "-X", "-P", "-o", "State,ExitCode", *which[:-1], "-j", which[-1]], within="Slurm")
    except EngineError:
        return Seen("gone")
    rows = [line.split("|") for line in said.splitlines() if line.count("|") == 1]
    return _together([_seen({"JobState": state, "ExitCode": code}) for state, code in reversed(rows)])
