"""`--detach` and `--queue` of `run` and `resume`: a job is submitted, and nobody stays with it.

    --detach   request ──> keeper, with the devices that were leased here ──> its first event, or its refusal ──> told
    --queue    plan in a child, as this very door ──> request ──> row `queued` ──> whoever serves the queue

Either way what is wrong is told here, with the runner's exit status, and nothing of it stays behind.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from trn.devices import Lease, Want, usable_cores
from trn.doors.apart import plain, serve_if_needed
from trn.doors.foreground import plan_in_foreground
from trn.doors.forwarding import forwarding
from trn.doors.given import shown_argv
from trn.doors.keeper import start_keeper
from trn.doors.listing import say_news
from trn.doors.progress import display_for
from trn.doors.staying import Start, check_devices, leased, planner
from trn.doors.storable import check_storable, storable
from trn.doors.summary import summary_lines
from trn.doors.text import clean_line
from trn.doors.watch import Watch
from trn.errors import StorageError, UsageError, exit_code
from trn.files import remove
from trn.jobs import OPEN_STATES, Store, launch_lock, observe, open_store, record_lost
from trn.jobs.queue import waiting_rows
from trn.jobs.request import Request, drop_request, sweep_requests, write_request
from trn.launch import LocalLauncher
from trn.launch.local import running_on
from trn.records import JobRow, JsonError, pretty_json, read_json

__all__ = ["asked_to_submit", "submit", "submit_options"]

_PLAN = Path("reports") / "resolved_config.json"
_LOOK_EVERY_S = 0.5


def submit_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command --detach and --queue."""
    queue = click.option("--queue", is_flag=True, help="Plan it now, start it when its turn comes; see `trn queue`.")
    detach = click.option("--detach", is_flag=True, help="Start it apart from this terminal, and print the job's id.")
    return detach(queue(function))


def asked_to_submit(given: dict[str, Any], *, launcher: str, dry_run: bool = False) -> str:
    """ "detach", "queue" or "": takes its own out of a command's parameters. Raises UsageError."""
    asked = [name for name in ("detach", "queue") if given.pop(name)]
    if not asked:
        return ""
    where = f"--{asked[0]}"
    if len(asked) > 1:
        raise UsageError("--detach starts it now, and --queue when its turn comes.", where="command line")
    if dry_run:
        raise UsageError("--dry-run prints the plan and starts nothing.", where=where, hint="Leave one of them out.")
    if launcher == "inline":
        raise UsageError("--launcher inline runs in this very process.", where=where, hint="Leave one of them out.")
    if launcher not in ("local", "torchrun"):
        raise UsageError(
            f"{launcher} has a queue of its own, and nobody stays with its jobs.", where=where, hint="Leave it out."
        )
    return asked[0]


def submit(start: Start, how: str, as_json: bool) -> int:
    """Detach or queue it; returns 0 where the job has begun or waits, else the exit status of its refusal."""
    processes = start.processes
    if processes.is_follower or processes.world.world_size > 1 or processes.layout.nnodes > 1:
        raise UsageError("it is for jobs of one machine, that no launcher has started.", where=f"--{how}")
    check_storable([os.getcwd(), *start.arguments])
    with open_store(start.runs_dir) as store:
        record_lost(store)
        say_news(store)
        sweep_requests(store)
        row, status = (_detach if how == "detach" else _enqueue)(start, store)
    if as_json:
        names = ("job_id", "run_id", "run_dir", "state")
        click.echo(pretty_json({name: getattr(row, name) for name in names}), nl=False)
    elif status == 0:
        click.echo(row.job_id)
    return status


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        click.echo(clean_line(text), err=True)


# --detach


def _detach(start: Start, store: Store) -> tuple[JobRow, int]:
    row = start.new_job()
    with forwarding() as signals:  # until the job has begun, they are its own
        with leased(start, row) as held:
            keeper = _start_keeper(start, store, row, held)
        signals.attach(keeper.send_signal)
        _listen(keeper, store, row.job_id)
    now = store.get(row.job_id)
    if now is None:
        return _never_begun(store, row, keeper.wait())
    now = observe(now, start.runs_dir)
    if now.state not in OPEN_STATES:
        status = exit_code("crashed") if now.exit_code is None else now.exit_code
        told = "refused" if now.state == "rejected" else now.state
        _say(f"trn: {told} (exit {status}){_reason(now)}")
        return now, status
    _say(f"trn: detached as job {now.job_id}; `trn logs -f {now.run_id}` follows it, `trn cancel {now.run_id}` ends it")
    return now, 0


def _start_keeper(start: Start, store: Store, row: JobRow, held: Lease) -> subprocess.Popen[bytes]:
    request = _request(start, row)
    write_request(start.runs_dir, request)
    try:
        return start_keeper(start.runs_dir, request, held, plain(os.environ), stderr=subprocess.PIPE)
    except StorageError:
        drop_request(store, row.job_id)
        raise


def _never_begun(store: Store, row: JobRow, status: int) -> tuple[JobRow, int]:
    """The keeper has ended, and why was told, unless it was killed; there is no row of the job."""
    drop_request(store, row.job_id)
    remove(launch_lock(store.runs_dir, row.job_id))
    if status <= 0:
        _say("trn: its keeper was ended before it could take the job; nothing was started")
        status = exit_code("crashed")
    return replace(row, state="rejected"), status


def _reason(row: JobRow) -> str:
    if row.state == "rejected":  # what the runner said was passed on
        return "; nothing was changed."
    return f": {row.reason}" if row.reason else ""


def _listen(keeper: subprocess.Popen[bytes], store: Store, job_id: str) -> None:
    """Pass on what the keeper tells, until its job has begun or is over."""
    assert keeper.stderr is not None
    with keeper.stderr as told:
        rest = b""
        while True:
            if not select.select([told], [], [], _LOOK_EVERY_S)[0]:
                # something else may hold the pipe open
                row = store.get(job_id)
                if keeper.poll() is not None or (row is not None and row.state not in ("submitted", "starting")):
                    break
                continue
            data = os.read(told.fileno(), 65536)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                _say(line.decode(errors="replace"))
        if rest:
            _say(rest.decode(errors="replace"))


# --queue


def _enqueue(start: Start, store: Store) -> tuple[JobRow, int]:
    row = start.new_job()
    check_devices(start, row)
    watch = Watch(store, row, display_for(sys.stderr))
    watch.say(f"trn: run {start.run_id} in {start.run_dir}")
    is_new = not (start.run_dir / _PLAN).is_file()

    def enqueue() -> None:
        arguments = start.resumption if is_new else start.arguments
        environ, left_out = storable(plain(os.environ))
        want = _want(start)
        request = _request(replace(start, arguments=arguments, want=want), row)
        write_request(start.runs_dir, replace(request, environ=environ, left_out=tuple(left_out)))
        if left_out:
            names = ", ".join(left_out)
            watch.say(f"trn: not stored with the job, and to be set where the queue is served: {names}")

    launcher = LocalLauncher(start.place_of_planner)
    door = ["--door-pid", str(os.getpid())]
    # on as many cores as it will have: the plan says how many threads
    with running_on(usable_cores()[: start.want.cpus]):
        ending = plan_in_foreground(watch, launcher, [*planner(row.job_id), *start.arguments, *door], enqueue)
    if ending is not None:
        for line in summary_lines(ending, watch):
            watch.say(line)
        with contextlib.suppress(StorageError):
            drop_request(store, row.job_id)
        return watch.row, ending.exit_code
    waiting = [one.job_id for one in waiting_rows(store)]  # whoever serves may have been quicker
    place = f", place {waiting.index(row.job_id) + 1}" if row.job_id in waiting else ""
    _say(f"trn: queued as job {row.job_id}{place}; `trn queue` shows what it waits for")
    serve_if_needed(start.runs_dir)
    return watch.row, 0


def _want(start: Start) -> Want:
    """What the job waits for; one that computes on cores and does not say on how many, for those of its plan."""
    if not start.want.is_empty:
        return start.want
    try:
        plan = read_json(start.run_dir / _PLAN)
    except (JsonError, OSError):
        return start.want
    threads = plan.get("threads")
    if plan.get("device") != "cpu" or not isinstance(threads, int):
        return start.want
    return replace(start.want, cpus=max(1, min(threads * start.processes.size, len(usable_cores()))))


# What is written down


def _request(start: Start, row: JobRow) -> Request:
    return Request(
        job_id=row.job_id,
        run_id=row.run_id,
        submitted_at=row.submitted_at,
        config_path=row.config_path,
        arguments=tuple(start.arguments),
        python=sys.executable,
        cwd=os.getcwd(),
        argv=tuple(shown_argv()),
        nproc=start.processes.layout.nproc,
        want=start.want,
        max_restarts=start.processes.max_restarts,
        grace_s=start.grace_s,
        allow_change=tuple(start.allow_change),
    )
