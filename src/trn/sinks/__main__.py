"""`python -m trn.sinks`: the relays of one run, in a process of their own.

    --job-id J      the targets of the run's plan, until job J has ended; started beside the runner, at a low priority
    --to URL        this target, with what there is now; with --follow until the run's job has ended

A job has ended when standard input is closed, by whoever started this or by its death, and the run's lock is not held
by the job any more. What is then left is sent within 30 s, or told; targets that failed and never took anything are
waited for 5 s.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from trn.errors import UsageError, exit_code
from trn.files import is_locked
from trn.records import JsonError, read_json
from trn.sinks.position import last_words, standings
from trn.sinks.relay import Relay
from trn.sinks.sink import Json, RunFacts
from trn.sinks.targets import parse_target

_LOOK_EVERY_S = 0.2
_AT_THE_END_S = 30.0
_OF_THE_DEAD_S = 5.0
_NICENESS = 10
_NOT_OURS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""They ask the run to stop, and what it says to that is still to be sent."""


def main(arguments: Sequence[str]) -> int:
    asked = _parser().parse_args(arguments)
    run_dir = Path(asked.run_dir)
    plan = _read_plan(run_dir)
    run = RunFacts(run_dir.name, run_dir, asked.job_id, plan, dict(os.environ))
    texts = asked.to or plan.get("events") or []
    relays = [Relay(parse_target(text), run, _say, from_start=asked.from_start) for text in texts]
    if asked.job_id:
        return _beside(run, relays)
    return _by_hand(run, relays, is_following=asked.follow)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trn.sinks")
    parser.add_argument("--run-dir", required=True)
    parser.add_argument("--job-id", default="")
    parser.add_argument("--to", action="append")
    parser.add_argument("--follow", action="store_true")
    parser.add_argument("--from-start", action="store_true")
    return parser


def _read_plan(run_dir: Path) -> Json:
    try:
        return read_json(run_dir / "reports" / "resolved_config.json")
    except (JsonError, OSError) as error:
        raise UsageError(f"expected a run with a plan: {error}.", where=str(run_dir)) from error


def _beside(run: RunFacts, relays: Sequence[Relay]) -> int:
    for number in _NOT_OURS:
        signal.signal(number, signal.SIG_IGN)
    os.nice(_NICENESS)
    threads = _start(relays)
    _wait_for_end_of_input()
    while _is_held(run):
        time.sleep(_LOOK_EVERY_S)
    _finish(relays, threads, lambda: 0, of_the_dead_s=_OF_THE_DEAD_S)
    mine = {relay.target.text for relay in relays}
    for standing in standings(run.run_dir):
        words = last_words(standing, run.run_dir)
        if standing.target in mine and words:
            _say(words)
    return 0


def _by_hand(run: RunFacts, relays: Sequence[Relay], *, is_following: bool) -> int:
    threads = _start(relays)
    while is_following and _is_held(run):
        time.sleep(_LOOK_EVERY_S)
    _finish(relays, threads, lambda: sum(relay.standing.sent + relay.standing.dropped for relay in relays))
    is_done = True
    known = {standing.target: standing for standing in standings(run.run_dir)}
    for relay in relays:
        standing = known.get(relay.target.text, relay.standing)
        words = f"trn: {relay.target.text} has everything of run {run.run_id}"
        if not relay.is_delivered or relay.dropped:
            is_done = False
            words = last_words(standing, run.run_dir) or f"trn: {relay.target.text}: {relay.standing.last_error}"
        _say(words)
    return 0 if is_done else exit_code("upload_failed")


def _start(relays: Sequence[Relay]) -> list[threading.Thread]:
    # daemons: a sink that never returns from a call must not keep the process
    threads = [threading.Thread(target=relay.run, name=relay.target.text, daemon=True) for relay in relays]
    for thread in threads:
        thread.start()
    return threads


def _finish(
    relays: Sequence[Relay],
    threads: Sequence[threading.Thread],
    progress: Callable[[], int],
    of_the_dead_s: float = _AT_THE_END_S,
) -> None:
    """Let them send the rest, as long as there is progress or 30 s, and of those that are dead not so long."""
    for relay in relays:
        relay.finish()
    begun_s = time.monotonic()
    before, deadline_s = progress(), begun_s + _AT_THE_END_S
    while time.monotonic() < deadline_s:
        left = [relay for relay, thread in zip(relays, threads, strict=True) if thread.is_alive()]
        if not left or (time.monotonic() - begun_s > of_the_dead_s and all(relay.is_dead for relay in left)):
            break
        time.sleep(0.02)
        if progress() != before:
            before, deadline_s = progress(), time.monotonic() + _AT_THE_END_S
    for relay in relays:
        relay.stop()
    for thread in threads:
        thread.join(1.0)


def _wait_for_end_of_input() -> None:
    while sys.stdin is not None:
        try:
            if not os.read(0, 4096):
                return
        except OSError:
            return


def _is_held(run: RunFacts) -> bool:
    """Whether the job, or where none is named any job, holds the run."""
    try:
        note = is_locked(run.run_dir / ".lock")
    except OSError:
        return False
    return note is not None and (not run.job_id or f"job={run.job_id}" in note.split())


def _say(text: str) -> None:
    # one write a line: the job's log has other writers
    os.write(2, (" ".join(text.split()) + "\n").encode(errors="replace"))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UsageError as error:
        _say(str(error))
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)
