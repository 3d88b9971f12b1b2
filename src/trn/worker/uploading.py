"""What a run makes, sent to where a platform wants it, beside the run and after it.

    the run's folder ──queue──> checkpoints, samples ─┐
    train_metrics.jsonl ──────> batches of lines ─────┼──one request at a time──> four places
    finish(terminal) ─────────> the end, the last ────┘
                                     └──spool──> what was accepted, for the next start

The disk is the truth: what there is to send is read from the run's folder, by a thread of a process that does not
train. A place that is slow, full, down or mad costs the run nothing: it is asked again until the time is over, or what
it refuses is given up, told once, and told again in the report.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trn.doors.text import clean_line
from trn.errors import StorageError
from trn.transfer.client import Client
from trn.worker.upload_artifacts import Checkpoint, Sample
from trn.worker.upload_final import FinalLane
from trn.worker.upload_http import Denied, Fenced, Over, Refused, Sender, Unreachable
from trn.worker.upload_lanes import FileLane, MetricsLane
from trn.worker.upload_metrics import Metrics
from trn.worker.upload_patience import Patience, reason_of
from trn.worker.upload_queue import Queue
from trn.worker.upload_report import Report
from trn.worker.upload_source import Pace
from trn.worker.upload_spool import Endpoints, Spool

__all__ = ["Endpoints", "Report", "Terminal", "Uploads"]

Json = dict[str, Any]
Terminal = Mapping[str, Any] | Callable[[Report], Mapping[str, Any]]
"""How the job ended, or what says it once it is known what of the run was accepted."""

_LOOK_EVERY_S = 0.5
_METRICS_EVERY_S = 2.0
_KEPT_FOR_END_S = 10.0


class Uploads:
    """Sends from `start` on, on a thread of its own, until `finish`. Raises nothing of the network's."""

    def __init__(
        self,
        run_dir: Path,
        run_id: str,
        endpoints: Endpoints,
        client: Client,
        *,
        job_id: str,
        headers: Callable[[], Mapping[str, str]] = dict,
        say: Callable[[str], None],
        max_bytes_per_s: float | None = None,
        poll_s: float = _LOOK_EVERY_S,
        metrics_every_s: float = _METRICS_EVERY_S,
    ) -> None:
        """`headers` are asked for at each request; a TrnError of theirs means that the lease is lost."""
        self._run_dir, self._job_id, self._endpoints, self._say = run_dir, job_id, endpoints, say
        self._names = {"run_id": run_id, "job_id": job_id}
        self._poll_s = poll_s
        self._is_abandoned, self._is_ending = threading.Event(), threading.Event()
        self._is_drained, self._has_terminal = threading.Event(), threading.Event()
        self._drain_until_s = self._tell_until_s = math.inf
        """By the monotonic clock: of all but the end, of the end."""
        self._is_telling = False
        self._sender = Sender(client, headers, self._is_over)
        self._spool = Spool(run_dir, run_id, endpoints)
        metrics = Metrics(run_dir / "reports" / "train_metrics.jsonl", self._spool, run_id, job_id)
        self._queue = Queue(run_dir, endpoints, self._spool, metrics.follow)
        self._metrics = MetricsLane(
            endpoints.metrics, sender=self._sender, metrics=metrics, every_s=metrics_every_s, say=say
        )
        pace = Pace(max_bytes_per_s, self._is_abandoned.wait, self._is_over)
        self._files = [
            FileLane(
                kind,
                url,
                run_dir=run_dir,
                names=self._names,
                sender=self._sender,
                spool=self._spool,
                queue=self._queue,
                pace=pace,
                say=say,
            )
            for kind, url in ((Checkpoint, endpoints.checkpoint), (Sample, endpoints.sample))
            if url
        ]
        self._of_end = Patience("the end", say)
        self._final = FinalLane(
            run_dir,
            endpoints.checkpoint,
            self._names,
            sender=self._sender,
            spool=self._spool,
            patience=self._of_end,
            send_again=self._send_again,
            say=say,
        )
        self._failed: dict[str, str] = {}
        self._ended_by: Denied | Fenced | None = None
        self._problem: str | None = None
        self._is_open = False
        self._terminal: Terminal | None = None
        self._is_told = False
        self._looked_s = -math.inf
        self._has_begun = False
        """Whether the run has, so that there is something to look at."""
        self._look_problem: str | None = None
        self._thread = threading.Thread(target=self._run, name="trn-uploads", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self, terminal: Terminal | None, deadline_s: float) -> Report:
        """The run has ended: send what is left, then the end, for at most `deadline_s` seconds.

        A `terminal` without `final_checkpoint` gets that of the report. With None nothing is told, and `finish` may
        be called once more with the end: then for that alone.
        """
        now_s = time.monotonic()
        if not self._is_ending.is_set():
            drain_s = deadline_s - (0.0 if terminal is None else min(_KEPT_FOR_END_S, deadline_s / 4))
            self._drain_until_s = min(self._drain_until_s, now_s + drain_s)
            self._final.find()
        self._is_ending.set()
        if self._thread.ident is None:
            self._thread.start()
        if terminal is None:
            self._is_drained.wait(deadline_s)
        else:
            self._terminal, self._tell_until_s = terminal, min(self._tell_until_s, now_s + deadline_s)
            self._has_terminal.set()
            while self._thread.is_alive() and (left_s := self._tell_until_s - time.monotonic()) > 0:
                self._thread.join(min(left_s, self._poll_s))  # the end may come nearer meanwhile
        return self.report()

    def hurry(self, seconds: float) -> None:
        """From any thread: so many seconds are left, half of them for what the end comes after."""
        now_s = time.monotonic()
        self._drain_until_s = min(self._drain_until_s, now_s + seconds / 2)
        self._tell_until_s = min(self._tell_until_s, now_s + seconds)

    def abandon(self) -> None:
        """Nothing more is sent, not even the rest of what is being sent: the lease is lost, or nobody waits for it."""
        self._problem = self._problem or "the worker sends nothing any more"
        self._is_abandoned.set()
        self._is_ending.set()
        self._has_terminal.set()

    # all below belongs to the thread, but for `report`, which only reads

    def _is_over(self) -> bool:
        until_s = self._tell_until_s if self._is_telling else self._drain_until_s
        return self._is_abandoned.is_set() or time.monotonic() >= until_s

    def _run(self) -> None:
        try:
            try:
                if self._take_spool():
                    self._drain()
            except (Over, Denied, Fenced):
                raise
            except Exception as error:  # noqa: BLE001 - a mistake of ours: that the run has ended is told all the same
                self._mistake(error)
            finally:
                self._is_drained.set()
            self._has_terminal.wait()
            self._tell_end()
        except Over:
            pass  # the report says what is missing
        except Denied as error:
            self._end_by(error, f"trn: uploads end here, the token is not taken: {error}")
        except Fenced as error:
            self._end_by(error, f"trn: uploads end here, the run is not this worker's any more: {error}")
        except Exception as error:  # noqa: BLE001 - the run goes on, whatever becomes of its uploads
            self._mistake(error)
        finally:
            for lane in self._files:
                lane.close()
            self._spool.close()
            self._is_drained.set()

    def _mistake(self, error: Exception) -> None:
        self._failed["uploads"] = f"{type(error).__name__} in the worker itself"
        self._say(f"trn: uploads have failed: {type(error).__name__}: {clean_line(str(error))}")

    def _end_by(self, error: Denied | Fenced, line: str) -> None:
        self._ended_by = error
        self._say(line)

    def _take_spool(self) -> bool:
        """Another process may still be sending what an earlier job left."""
        while not self._is_abandoned.is_set():
            try:
                if self._spool.open(self._job_id):
                    self._is_open, self._problem = True, None
                    return True
                problem = "another process is sending what this run has made"
            except StorageError as error:
                problem = f"the notes of uploads: {error.message}"
            if problem != self._problem:
                self._say(f"trn: nothing is uploaded yet: {problem}")
            self._problem = problem
            if time.monotonic() >= self._drain_until_s:
                return False
            self._is_abandoned.wait(self._poll_s)
        return False

    def _drain(self) -> None:
        """Until everything is accepted or given up and the end has come, or the time is over. Raises Denied, Fenced."""
        has_seen_end = has_looked = False
        try:
            while not self._is_over():
                is_ending = self._is_ending.is_set()  # before the look: what comes later is another job's
                if is_ending and not has_seen_end:
                    has_seen_end = True
                    for patience in self._patience():
                        patience.hurry()
                did = self._look(at_once=is_ending and not has_looked) and self._go(is_ending)
                has_looked = is_ending
                if is_ending and not did and not self._pending() and self._look_problem is None:
                    return
                if not did:
                    due_s = [patience.due_in_s() for patience in self._patience() if not patience.is_due()]
                    (self._is_abandoned if is_ending else self._is_ending).wait(min([self._poll_s, *due_s]))
        except Over:
            return

    def _patience(self) -> list[Patience]:
        return [self._metrics.patience, *(lane.patience for lane in self._files), self._of_end]

    def _look(self, *, at_once: bool) -> bool:
        """Whether there is a run; looked for anew where that was long ago."""
        now_s = time.monotonic()
        if at_once or self._looked_s <= now_s - self._poll_s:
            self._looked_s = now_s
            keep = next((lane.item for lane in self._files if isinstance(lane.item, Checkpoint)), None)
            try:
                self._has_begun, self._look_problem = self._queue.look(keep=keep), None
            except (OSError, StorageError) as error:
                self._look_problem = f"the run's folder: {reason_of(error)}"
        return self._has_begun

    def _go(self, is_ending: bool) -> bool:
        """A request of each lane that has one to send, and, the last, the word which checkpoint is the final one."""
        did = self._metrics.go(is_ending=is_ending)
        for lane in self._files:
            did = lane.go(is_ending=is_ending, final_sha256=self._final.sha256) or did
        return did or self._final.go()

    def _send_again(self, step: int) -> None:
        """All of a checkpoint that was lost at the other side: pending from now on, though the time may be over."""
        self._queue.again(step)
        self._look(at_once=True)

    def _give_up(self, what: str, reason: str) -> None:
        self._failed[what] = reason
        self._say(f"trn: {what}: not uploaded: {reason}")

    def _pending(self) -> int:
        """How many things are neither accepted nor given up."""
        return self._queue.pending() + self._metrics.is_pending() + self._final.is_pending()

    def _tell_end(self) -> None:
        """The last word, under the key of the job."""
        given, url = self._terminal, self._endpoints.terminal
        self._is_telling = True
        if given is None or not url or self._job_id in self._spool.state.terminals:
            self._is_told = True
            return
        report = self.report(with_end=False)
        value = dict(given(report) if callable(given) else given)
        value.setdefault("final_checkpoint", report.final_checkpoint)
        while True:
            try:
                self._sender.post(url, value, self._job_id)
            except Refused as error:
                self._give_up("the end", error.reason)
                return
            except Unreachable as error:
                self._of_end.failed(error, is_ending=True)
                left_s = max(0.0, self._tell_until_s - time.monotonic())
                self._is_abandoned.wait(min(self._of_end.due_in_s(), left_s))
            else:
                self._is_told = True
                if self._is_open:
                    self._spool.save(terminals=(*self._spool.state.terminals, self._job_id))
                return

    def report(self, *, with_end: bool = True) -> Report:
        """How it stands; for any thread."""
        given_up = {**self._queue.failed, **self._metrics.failed, **self._final.failed, **self._failed}
        failed = [f"{name}: {why}" for name, why in given_up.items()]
        if self._ended_by is not None:
            failed.append(f"uploads: {self._ended_by}")
        pending = self._pending() if self._is_open else 0
        is_told = self._is_told or self._terminal is None or not with_end
        problems = [self._problem, self._look_problem, *(one.problem for one in self._patience())]
        return Report(
            is_complete=self._is_open and is_told and not failed and not pending and self._look_problem is None,
            failed=tuple(failed),
            pending=pending,
            accepted=len(self._spool.accepted),
            skipped=len(self._spool.skipped),
            final_checkpoint=self._final.accepted,
            is_told=is_told,
            is_unauthorized=isinstance(self._ended_by, Denied),
            is_fenced=isinstance(self._ended_by, Fenced),
            problem=next((one for one in problems if one), None),
        )
