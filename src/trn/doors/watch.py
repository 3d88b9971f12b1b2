"""What a door knows of its job: the row in the store, and what the run's folder and the job's log have told since.

Not here: starting the child, and when it is over (foreground).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trn.doors.follow import Follower, parsed
from trn.doors.given import shown_argv
from trn.doors.progress import Display, SilentDisplay
from trn.doors.relaying import Relaying
from trn.doors.standing import Standing, after_event, after_metrics
from trn.doors.text import clean_line
from trn.errors import StorageError
from trn.files import Holder, Lock, is_locked
from trn.jobs import OPEN_STATES, Store, job_log
from trn.jobs.attending import attend
from trn.jobs.log import JobLog, job_log_lines
from trn.records import JobRow, utc_now

__all__ = ["Watch"]


class Watch:
    """What the door knows of its job: the row in the store, and the news of its run since the job was submitted.

    `argv` is the command that submitted it, where that is not this process's own.
    """

    def __init__(self, store: Store, row: JobRow, display: Display, argv: Sequence[str] = ()) -> None:
        reports = Path(row.run_dir) / "reports"
        self.row = row
        self.log = Follower(job_log(store.runs_dir, row))
        self.told = JobLog(job_log_lines(self.log.path))
        self.relaying = Relaying(row, self.log.path)
        self.standing = Standing()
        self.sample: dict[str, Any] | None = None
        """The newest event of this kind."""
        self.signals: Sequence[int] = ()
        """What was passed on to the child."""
        self.last_output = ""
        self._argv = argv
        self._pid: int | None = None
        self._has_begun = False
        self._was_blind = False
        self._events = Follower(reports / "events.jsonl", from_end=True)
        self._metrics = Follower(reports / "train_metrics.jsonl", from_end=True)
        self._store = store
        self._display = display

    def attend(self) -> Lock:
        """Show others that this door is there. Raises StorageError."""
        lock = attend(self._store.runs_dir, self.row.job_id)
        if lock is None:
            raise StorageError("another door has this job.", where=self.row.job_id)
        return lock

    def holds_run(self) -> bool:
        """Whether a process of this very job holds the run."""
        try:
            note = is_locked(Path(self.row.run_dir) / ".lock") or ""
        except OSError:
            return False
        return f"job={self.row.job_id}" in note.split()

    def submit(self) -> None:
        """Put the job into the store. Raises StorageError."""
        self._store.add(self.row)
        self.note_submission()

    def note_submission(self) -> None:
        """Begin the job's log, where nobody has yet: an engine may have taken the job, or its store was lost."""
        row = self.row
        if self.told.path.exists():
            return
        facts = {"run_id": row.run_id, "run_dir": row.run_dir, "config_path": row.config_path}
        argv = list(self._argv) or shown_argv()
        self.note("job_submitted", **facts, devices=row.device_names() or None, argv=argv)

    def enqueue(self) -> None:
        """Let the job wait for whoever serves the queue. Raises StorageError."""
        self.row = self._store.advance(self.row.job_id, "queued")
        self.note("state", state="queued")

    def has_child(self, pid: int, state: str | None) -> None:
        """The job's child is there: its row moves to `state`, with None it stays."""
        self._pid = pid
        if state is not None:
            self.record(state)

    def record(self, state: str, **changes: Any) -> None:
        """Move the job's row, once to each state; a store that fails is told of, and costs the run nothing."""
        if state == self.row.state:
            return
        if self._pid is not None and state in ("starting", "running"):
            changes["pid"] = self._pid
        try:
            self.row = self._store.advance(self.row.job_id, state, **changes)
        except StorageError as error:
            self.say(str(error))
        if state in OPEN_STATES:
            self.note("state", state=state, **changes)
        else:
            told = {"exit_code": changes.get("exit_code"), "reason": changes.get("reason")}
            if state == "rejected":
                self.note("job_rejected", run_id=self.row.run_id, **told)
            else:
                self.note("ended", state=state, **told)

    def note(self, event: str, **fields: Any) -> None:
        """A line in the job's log; one that cannot be written costs the run nothing, and the next is tried again."""
        with contextlib.suppress(StorageError):
            self.told.write(event, **fields)

    def say(self, text: str) -> None:
        """Show a line, if anybody still looks."""
        with self._guarded():
            self._display.line(text)

    def look(self) -> bool:
        """Take in what is new and show it; returns whether there was anything."""
        try:
            output = self.log.read()
            metrics = parsed(self._metrics.read())
            events = parsed(self._events.read())
        except OSError as error:
            if not self._was_blind:
                self.say(f"trn: cannot look at the run just now, and goes on: {error}")
            self._was_blind = True
            return False
        self._echo(output)
        own = [event for event in events if event.get("job_id") == self.row.job_id]
        if own and not self._has_begun:
            self._has_begun = True
            self._begin()
        if self._has_begun and (own or metrics):
            self._take_in(own, metrics)
        return bool(output or metrics or events)

    def _begin(self) -> None:
        """The job has told its first event."""
        try:
            note = is_locked(Path(self.row.run_dir) / ".lock") or ""
        except OSError:
            note = ""
        self.record("running", started_at=utc_now(), generation=Holder.read(note).generation)
        self.relaying.begin()

    def _take_in(self, events: Sequence[dict[str, Any]], metrics: Sequence[dict[str, Any]]) -> None:
        for event in events:
            self.standing = after_event(self.standing, event)
            self.sample = event if event.get("event") == "sample" else self.sample
        for line in metrics:
            self.standing = after_metrics(self.standing, line)
        with self._guarded():
            self._display.update(self.standing, events)

    def look_at_the_rest(self) -> None:
        """Everything that is left, when nobody writes any more."""
        while self.look():
            pass
        self._echo([self.log.rest()])
        with self._guarded():
            self._display.close()

    def _echo(self, lines: Sequence[bytes]) -> None:
        for line in lines:
            if text := clean_line(line.decode(errors="replace")):
                self.last_output = text
                self.note("output", text=text)
                # a child that is interrupted before it has begun has nothing to say but where it was
                if self._has_begun or not self.signals:
                    self.say(text)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """A stream that cannot be written to any more is left alone from then on."""
        try:
            yield
        except OSError:
            self._display = SilentDisplay()
