"""One job of a platform, from its environment to its exit code.

    settle      environment and job file -> Job                     refused: a startup.* code, nothing fetched
    authorise   the token, offline; then the lease of the orchestrator
    prepare     inputs -> Arrow -> contract                         a stop in between: preempted, cancelled
    bring       the door's way: row, devices, the trainer's process, watched to its end
    finish      uploads -> terminal payload -> terminal event -> exit code, all of one category

Whatever is refused or fails on the way ends in the same last step, with its own category. The worker imports nothing of
a stranger, and holds the token; the trainer's process has neither.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from trn.doors.processes import Asked, read_processes
from trn.doors.progress import PlainDisplay
from trn.doors.staying import Start, Taken, devices_of, keep, leased, recorded
from trn.doors.text import clean_line
from trn.errors import ResumeRefused, Stopped, StorageError, TrnError, Unauthorized
from trn.files import is_locked
from trn.jobs import open_store, record_lost
from trn.launch.confined import keep_to_itself
from trn.records import JobRow, new_job_id
from trn.transfer.client import Client
from trn.worker.authorisation import authorise, read_token
from trn.worker.cancelling import asks_to_cancel
from trn.worker.company import Company
from trn.worker.ending import Terminal, terminal_of, terminal_of_error
from trn.worker.finished import finished
from trn.worker.handing_out import refuse_unfit_folders
from trn.worker.holding import Holding
from trn.worker.job import Job, place_of_journal, settle_job
from trn.worker.journal import WorkerJournal
from trn.worker.lease import claim
from trn.worker.plain import open_plain
from trn.worker.preparing import prepare
from trn.worker.stopping import Stopping, stopping_on_signals
from trn.worker.uploading import Report

__all__ = ["leave_refusal", "run_worker"]

_MOST_KEY_BYTES = 1 << 20
_MOST_TOLD = 50
"""Of what was not uploaded, a line each."""
_HURRY_S = 10.0
"""What uploads may still take where a signal has said that this machine is taken away."""
_RUN_IS_FREE_S = 60.0
"""How long the trainer of a worker that was killed may take to end its step and save: it holds its run until then."""


def run_worker(environ: Mapping[str, str]) -> int:
    """Do the job that the environment names; returns the exit status. Raises TrnError for what is refused before."""
    keep_to_itself()  # the trainer's process is of the same user, and the token is in this one
    job_id = new_job_id()
    with ExitStack() as stack:
        stopping = stack.enter_context(stopping_on_signals())
        place = place_of_journal(environ)
        try:
            job = settle_job(environ)
            run_dir, settings = job.run_dir, job.settings
            refuse_unfit_folders(
                *(run_dir, job.run_id),
                checkpoints=settings.checkpoints_dir,
                samples=settings.samples_dir,
                events=settings.events_path,
            )
        except (TrnError, OSError) as error:
            leave_refusal(place, job_id, error)
            raise
        journal = WorkerJournal(place, run_id=job.run_id, job_id=job_id)
        stack.callback(journal.close)
        return _Worker(job, job_id, stopping, journal).run()


def leave_refusal(place: Path | None, job_id: str, error: TrnError | OSError) -> None:
    """The event of a job that is refused before it is known, but not in a journal that is a run's own."""
    if place is None or (place.parent / "resolved_config.json").exists():
        return
    try:
        journal = WorkerJournal(place, job_id=job_id)
    except (TrnError, OSError) as problem:
        _say(str(problem))
        return
    _tell(journal, terminal_of_error(error))
    journal.close()


class _Worker:
    """One settled job."""

    def __init__(self, job: Job, job_id: str, stopping: Stopping, journal: WorkerJournal) -> None:
        self._job, self._job_id, self._stopping, self._journal = job, job_id, stopping, journal
        self._company = Company(job, job_id, stopping, _say)
        self._holding = Holding(job.own_folder)
        self._said = ""
        """What stands in the output about the end already."""

    def run(self) -> int:
        self._journal.tell("worker_started", pid=os.getpid(), defaulted=self._job.form.defaulted)
        try:
            try:
                terminal = self._bring()
            except (TrnError, OSError) as error:
                terminal = terminal_of_error(error)
                self._said = str(error) if isinstance(error, TrnError) else terminal.reason
                _say(self._said)
            except Exception as error:  # noqa: BLE001 - a mistake of ours: the platform still hears of one ending
                _say(traceback.format_exc().rstrip())
                terminal = Terminal("crashed", f"{type(error).__name__} in the worker itself")
            return self._finish(terminal)
        finally:
            self._company.end()
            self._holding.end()

    def _bring(self) -> Terminal:
        """Prepare, and bring the run forward. Raises TrnError for what is refused before the trainer's process."""
        job, company = self._job, self._company
        row = self._row()
        with recorded(job.runs_dir, row):
            try:
                start = self._prepare(row)
            except Stopped:
                self._stopping.require_not()  # in the words of who asked
                raise
        self._journal.follow(job.run_dir, job.run_id)
        company.begin()
        if isinstance(start, Terminal):
            return start
        self._stopping.require_not()
        with leased(start, row) as held, open_store(job.runs_dir) as store:
            record_lost(store)
            company.run_begins()
            taken = Taken(replace(row, devices=devices_of(held)), None)
            ending, watch = keep(start, store, lambda: PlainDisplay(sys.stderr), held=held, taken=taken)
            company.run_has_ended()
            if watch.signals:
                self._stopping.ask("preempted", "a signal was received")
        watch.relaying.wait(_say, is_asked_to_stop=bool(watch.signals))
        self._said = watch.last_output
        return terminal_of(ending, watch.last_output)

    def _prepare(self, row: JobRow) -> Start | Terminal:
        """What is to be started, or how it has ended: the token is good, the lease held, the run nobody else's."""
        job, company = self._job, self._company
        client = self._authorise()
        if job.settings.is_cancelled or (job.cancel_file is not None and asks_to_cancel(job.cancel_file)):
            self._stopping.ask("cancelled", "it was cancelled before it began")
        self._stopping.require_not()
        self._claim(client)
        company.open(client)
        company.look_for_wishes()
        self._require_free()
        self._holding.begin()
        return finished(job) or prepare(job, row, client, self._stopping, _say)

    def _row(self) -> JobRow:
        job = self._job
        processes = read_processes(Asked(), ddp=False, device="cpu", before=None, launcher="local", environ={})
        start = Start(job.runs_dir, job.run_id, (), processes, str(job.settings.job_spec_path), 30.0)
        return replace(start.new_job(), job_id=self._job_id)

    def _authorise(self) -> Client:
        """Before anything is fetched. Raises StartupRefused, Unauthorized."""
        job, settings = self._job, self._job.settings
        token = read_token(os.environ, _say)
        form = job.form.document
        authorise(
            token(),
            _key_of(settings.public_key_file),
            owner=form.get("owner"),
            release_ref=form.get("release_ref"),
            run_id=job.run_id,
            is_orchestrated=job.is_orchestrated,
            now=time.time(),
        )
        return Client(token, job.token_hosts)

    def _claim(self, client: Client) -> None:
        job = self._job
        if not job.is_orchestrated:
            return
        assert job.settings.orchestrator_url is not None, "settle_job has looked"
        lease = claim(
            client,
            job.settings.orchestrator_url,
            job.run_id,
            worker_id=f"worker-{self._job_id}",
            job_id=self._job_id,
            wait_s=job.settings.lease_wait_s,
            is_stopped=self._stopping.is_asked,
            host=socket.gethostname(),
        )
        self._journal.tell("lease_claimed", generation=lease.generation)
        self._company.renew(lease)

    def _require_free(self) -> None:
        """Wait for the trainer of a worker that was killed: it ends its step, saves, and lets go of its run.

        Raises ResumeRefused where somebody else keeps it.
        """
        job, deadline_s = self._job, time.monotonic() + _RUN_IS_FREE_S
        if (note := _holder(job.run_dir)) is not None:
            _say(f"trn: another process has the run ({note}); it is waited for, up to {_RUN_IS_FREE_S:g} s")
        while (note := _holder(job.run_dir)) is not None:
            self._stopping.require_not()
            if time.monotonic() > deadline_s:
                raise ResumeRefused(
                    f"another process is running it ({note}).",
                    where=str(job.run_dir),
                    hint="Wait for it, or cancel it.",
                )
            time.sleep(0.1)

    def _finish(self, terminal: Terminal) -> int:
        """Whatever is left to be handed over; then the one ending, in all three places."""
        if (lost := self._company.lost) is not None and terminal.exit_code:
            terminal = terminal.but(terminal.status, f"the lease is lost: {lost}; {terminal.reason}")
        try:
            self._company.end_handing_out()
        except StorageError as error:
            _say(str(error))
            terminal = terminal if terminal.exit_code else terminal.but("io_error", str(error))
        try:
            self._journal.catch_up()
        except StorageError as error:
            _say(str(error))
            terminal = terminal if terminal.exit_code else terminal.but("io_error", str(error))
        terminal = self._send(terminal)
        _tell(self._journal, terminal)
        reason = "" if terminal.reason == self._said else f": {clean_line(terminal.reason)}"
        _say(f"trn: worker: {terminal.status} (exit {terminal.exit_code}){reason}")
        return terminal.exit_code

    def _send(self, terminal: Terminal) -> Terminal:
        """Send what is left, and the end. A run that is complete and is not sent whole has failed for a platform."""
        uploads, lost = self._company.uploads, self._company.lost
        if uploads is None or lost is not None or terminal.status == "unauthorized":
            return _after_loss(terminal, lost)

        def end(report: Report) -> Mapping[str, Any]:
            told = _after_uploads(terminal, report)
            return told.payload(self._job.run_id, self._job_id, report.final_checkpoint)

        seconds = self._job.settings.upload_s
        if self._stopping.is_asked():
            report = uploads.finish(end, min(_HURRY_S, seconds))
        else:
            with self._stopping.then(lambda: uploads.hurry(_HURRY_S)):  # a signal from now on is for the uploads
                _say(f"trn: the run has ended ({terminal.status}); uploads have up to {seconds:g} s")
                report = uploads.finish(end, seconds)
        told = {"accepted": report.accepted, "pending": report.pending, "skipped": report.skipped}
        try:
            self._journal.tell(
                "uploaded", is_complete=report.is_complete, failed=list(report.failed[:_MOST_TOLD]), **told
            )
        except StorageError as error:  # the end is told by now, and stays what it is
            _say(str(error))
        for line in report.failed[:_MOST_TOLD]:
            _say(f"trn: not uploaded: {line}")
        lost = self._company.lost or ("somebody else has the run" if report.is_fenced else None)
        return _after_loss(terminal, None if report.is_complete else lost, report)


def _after_loss(terminal: Terminal, lost: str | None, report: Report | None = None) -> Terminal:
    if lost is not None and terminal.exit_code == 0:
        return terminal.but("preempted", f"the run is complete, and the lease was lost before that was told: {lost}")
    return terminal if report is None else _after_uploads(terminal, report)


def _after_uploads(terminal: Terminal, report: Report) -> Terminal:
    if terminal.exit_code or report.is_complete:
        return terminal
    return terminal.but("upload_failed", f"the run is complete, and not all of it is uploaded: {report.reason}")


def _tell(journal: WorkerJournal, terminal: Terminal) -> None:
    """The terminal event, if there is a place for it."""
    try:
        journal.end(
            terminal.status, exit_code=terminal.exit_code, step=terminal.step, reason=terminal.reason, **terminal.told
        )
    except StorageError as error:
        _say(str(error))


def _holder(run_dir: Path) -> str | None:
    try:
        return is_locked(run_dir / ".lock")
    except OSError:
        return None


def _key_of(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        with open_plain(path.resolve().parent, path.resolve().name) as stream:
            return stream.read(_MOST_KEY_BYTES)
    except OSError as error:
        why = error.strerror or str(error)
        raise Unauthorized(f"the key cannot be read ({why}).", where="TRAINER_PUBLIC_KEY_FILE") from error


def _say(text: str) -> None:
    """A line for whoever reads along. When nobody does any more, the job goes on, and its exit status is its own."""
    try:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
    except OSError:  # what is left of it must not fail once more when the interpreter ends
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 2)
