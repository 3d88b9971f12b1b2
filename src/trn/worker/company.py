"""What goes on beside a run: the lease is renewed, wishes to cancel are looked for, artifacts are handed out and sent.

All of it in threads of the worker, none of it in the trainer's process. A wish to cancel becomes a `trn cancel` of the
job; a lost lease becomes a SIGTERM, as if the machine were taken away: the run saves, and somebody else goes on.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from trn.errors import StorageError
from trn.files import last_line
from trn.jobs.cancelling import ask_to_cancel
from trn.records import JsonError, from_json
from trn.transfer.client import Client
from trn.worker.cancelling import CancelFile
from trn.worker.handing_out import HandingOut
from trn.worker.job import Job
from trn.worker.lease import Lease, Renewing
from trn.worker.stopping import Stopping
from trn.worker.uploading import Endpoints, Uploads

__all__ = ["Company"]


class Company:
    """The threads beside one job. `say` has a line for the worker's own output."""

    def __init__(self, job: Job, job_id: str, stopping: Stopping, say: Callable[[str], None]) -> None:
        self._job, self._job_id, self._stopping, self._say = job, job_id, stopping, say
        self._renewing: Renewing | None = None
        self._cancel_file: CancelFile | None = None
        self._handing_out: HandingOut | None = None
        self.uploads: Uploads | None = None
        self._is_running = False
        self.lost: str | None = None
        """Why the lease is lost."""

    def renew(self, lease: Lease) -> None:
        """Keep the lease from now on."""
        self._renewing = Renewing(lease, report=self._report, on_cancel=self._cancel, on_lost=self._lose, say=self._say)
        self._renewing.start()

    def look_for_wishes(self) -> None:
        if (path := self._job.cancel_file) is not None:
            self._cancel_file = CancelFile(path, self._cancel)
            self._cancel_file.start()

    def open(self, client: Client) -> None:
        """Have a place to send to, if only to say how it ended."""
        job = self._job
        if job.uploads:
            endpoints = Endpoints(**job.uploads)
            self.uploads = Uploads(
                *(job.run_dir, job.run_id, endpoints, client),
                job_id=self._job_id,
                headers=self._headers,
                say=self._say,
            )

    def begin(self) -> None:
        """The run's folder is there, or about to be."""
        job, settings = self._job, self._job.settings
        self._handing_out = HandingOut(
            job.run_dir, job.run_id, checkpoints=settings.checkpoints_dir, samples=settings.samples_dir
        )
        self._handing_out.start()
        if self.uploads is not None:
            self.uploads.start()

    def run_begins(self) -> None:
        """From now on a wish is the run's. One that came before its door took over the signals is passed on then."""
        self._is_running = True
        threading.Thread(target=self._pass_on, name="trn-passing-on", daemon=True).start()

    def run_has_ended(self) -> None:
        self._is_running = False

    def _pass_on(self) -> None:
        while self._is_running and self._stopping.has_signals():
            time.sleep(0.02)
        if self._is_running and self._stopping.is_asked():
            os.kill(os.getpid(), signal.SIGINT if self._stopping.outcome == "cancelled" else signal.SIGTERM)

    def end_handing_out(self) -> None:
        """Raises StorageError for what could not be handed out."""
        if self._handing_out is not None:
            self._handing_out.end()

    def end(self) -> None:
        """Nothing goes on any more; the lease is given back. Can be called again."""
        if self._cancel_file is not None:
            self._cancel_file.end()
        if self._renewing is not None:
            self._renewing.end()
            if self.lost is None:
                self._renewing.release()
        self._renewing = None

    def _headers(self) -> Mapping[str, str]:
        return {} if self._renewing is None else self._renewing.headers()

    def _report(self) -> dict[str, object]:
        """What a renewal tells of the run."""
        return {"step": step_of(self._job.run_dir), "state": "running" if self._is_running else "preparing"}

    def _cancel(self, reason: str) -> None:
        self._stopping.ask("cancelled", reason)
        with suppress(StorageError):
            ask_to_cancel(self._job.runs_dir, self._job_id, now=False, reason=reason)
        if self._job.settings.stop_s:
            threading.Thread(target=self._insist, name="trn-insisting", daemon=True).start()
        self._say(f"trn: cancelled: {reason}")

    def _insist(self) -> None:
        """A trainer that hangs does not hear of it: a signal does not wake it either, but its time then runs."""
        until_s = time.monotonic() + self._job.settings.stop_s
        while (left_s := until_s - time.monotonic()) > 0:
            time.sleep(min(1.0, left_s))
        if self._is_running:
            os.kill(os.getpid(), signal.SIGINT)

    def _lose(self, reason: str) -> None:
        self.lost = reason
        if self.uploads is not None:
            self.uploads.abandon()
        self._stopping.ask("preempted", f"the lease was lost: {reason}")
        os.kill(os.getpid(), signal.SIGTERM)  # passed on to the trainer's process, where there is one
        self._say(f"trn: the lease is lost: {reason}")


def step_of(run_dir: Path) -> int:
    """The newest step that the run has logged."""
    try:
        line = last_line(run_dir / "reports" / "train_metrics.jsonl")
        step = from_json(line).get("step") if line else 0
    except (JsonError, OSError, AttributeError):
        return 0
    return step if type(step) is int else 0
