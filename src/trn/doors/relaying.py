"""The process that sends a run's events: started beside the runner, waited for at the end; and the verb `relay`.

    first event of the job ──> begin: python -m trn.sinks, its standard input held open
    the job has ended ───────> end: the input is closed, and it has 30 s for what is left, 5 s for who was never there
    who stays with the run ──> wait for that, and tell what was not delivered

What it sends, and how far it is, is its own business (trn.sinks): when it fails, or cannot be started, the run goes on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import click

from trn.addresses import absolute_target, parse_target
from trn.doors.apart import module
from trn.doors.completion import complete_run
from trn.doors.listing import runs_dir_option
from trn.doors.targets import find, runs_folder
from trn.errors import UsageError
from trn.launch import become
from trn.records import JobRow, JsonError, read_json
from trn.sinks.position import last_words, never_sent, standings

__all__ = ["Relaying", "relay_command"]

_LONGEST_S = 35.0
"""The 30 s that what sends has for the rest, and its start where a job is over at once."""
_LONGEST_WHEN_ASKED_TO_STOP_S = 5.0
_TOLD_AFTER_S = 1.0
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Relaying:
    """What sends the events of one job; nothing at all where its plan names no target. Raises nothing."""

    def __init__(self, row: JobRow, log: Path) -> None:
        self._row = row
        self._log = log
        self._targets: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """The job has begun, so that its plan is there."""
        self._targets = _targets_of(Path(self._row.run_dir))
        if not self._targets:
            return
        argv = [*module("trn.sinks"), "--run-dir", self._row.run_dir, "--job-id", self._row.job_id]
        with contextlib.suppress(OSError), open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=None if "-" in self._targets else log,
                stderr=log,
                start_new_session=True,  # the terminal's Ctrl-C is not for it
            )

    def end(self) -> None:
        """The job has ended, and its journal is complete."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def wait(self, say: Callable[[str], None], *, is_asked_to_stop: bool) -> None:
        """Wait until all is delivered or the time is over, and tell what is not; a signal ends the waiting."""
        if not self._targets:
            return
        if self._process is not None:
            self._wait(say, _LONGEST_WHEN_ASKED_TO_STOP_S if is_asked_to_stop else _LONGEST_S)
        run_dir = Path(self._row.run_dir)
        known = {_place(standing.target): standing for standing in standings(run_dir)}
        for target in (one for one in self._targets if one != "-"):
            # without a standing, what sends was not started, or failed at once: its log says why
            standing = known.get(_place(target))
            words = last_words(standing, run_dir) if standing else never_sent(target, run_dir, self._log)
            if words is not None:
                say(words)

    def _wait(self, say: Callable[[str], None], longest_s: float) -> None:
        assert self._process is not None
        begun_s = time.monotonic()
        is_told = False
        with _noticing() as signals:
            while self._process.poll() is None and not signals and time.monotonic() - begun_s < longest_s:
                if not is_told and time.monotonic() - begun_s > _TOLD_AFTER_S:
                    say("trn: sending the rest of the events; Ctrl-C to leave")
                    is_told = True
                time.sleep(0.02)


def _place(target: str) -> str:
    """The same for two ways of writing one target."""
    try:
        return parse_target(target).digest
    except UsageError:  # of a file that somebody has changed
        return target


def _targets_of(run_dir: Path) -> list[str]:
    try:
        events = read_json(run_dir / "reports" / "resolved_config.json").get("events")
    except (JsonError, OSError):
        return []
    return [one for one in events if isinstance(one, str)] if isinstance(events, list) else []


@contextlib.contextmanager
def _noticing() -> Iterator[list[int]]:
    """Signals that ask to stop, noted instead of obeyed: how the job ended is still to be told."""
    noticed: list[int] = []

    def notice(number: int, frame: FrameType | None) -> None:
        noticed.append(number)

    before = {number: signal.signal(number, notice) for number in _STOPPING}
    try:
        yield noticed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@click.command(name="relay")
@click.argument("run", metavar="ID|PATH", shell_complete=complete_run)
@click.option("--to", "targets", multiple=True, metavar="URL", help="Where to: file:PATH, redis://..., -; repeatable.")
@click.option("--follow", is_flag=True, help="Go on until the run's job has ended.")
@click.option("--from-start", is_flag=True, help="Send everything again, to a target that cannot tell what it has.")
@runs_dir_option
def relay_command(run: str, targets: tuple[str, ...], follow: bool, from_start: bool, runs_dir: str | None) -> None:
    """Send the events and metrics of a run to a target, as far as it does not have them yet.

    Without --to: to the targets that the run's spec names. A run that goes on is sent as it is now, or with --follow
    until its job has ended.
    """
    target = find(run, runs_folder(runs_dir))
    texts = [absolute_target(text, os.getcwd()) for text in targets] or _targets_of(target.run_dir)
    for text in texts:
        parse_target(text)
    if not texts:
        raise UsageError("the run's spec names no target of events.", where="--to", hint="Give one, such as -.")
    options = [part for text in texts for part in ("--to", text)]
    options += [name for name, on in (("--follow", follow), ("--from-start", from_start)) if on]
    become([*module("trn.sinks"), "--run-dir", str(target.run_dir), *options])
