"""One target kept up to date: patience with whatever it does, until all is delivered or the time is over.

    connect ──> deliver ──> deliver ... nothing new: look again in half a second
       ^           │ Unreachable: wait, with back-off and jitter; then ask what it has
       └───────────┘ Refused: leave the batch out and count it; of the whole target: ask again now and then

The first failure is told, and the last word at the end; what lies between is counted in the target's standing. What
a sink raises ends nothing but its own attempt.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from trn.addresses import Target
from trn.errors import StorageError
from trn.files import Lock
from trn.records import utc_now
from trn.sinks.feeds import Feed, feed_of
from trn.sinks.position import Standing, lock_of, position_file, read_standing, write_standing
from trn.sinks.reader import first_mark
from trn.sinks.secrets import told
from trn.sinks.sink import CurveSink, EventSink, Refused, RunFacts, Unreachable
from trn.sinks.targets import open_sink
from trn.transfer.backoff import Backoff

__all__ = ["Relay"]

_LOOK_EVERY_S = 0.5
_SAVE_EVERY_S = 1.0
_CONFIRM_EVERY_S = 10.0
_REFUSED_AGAIN_S = 30.0
_LONGEST_AT_THE_END_S = 2.0


class Relay:
    """Sends one run to one target, on whatever thread calls `run`; `finish` and `standing` are for any other.

    With `from_start` nothing that is remembered counts: curves are written anew, and a target that cannot tell what
    it has is sent everything.
    """

    def __init__(
        self,
        target: Target,
        run: RunFacts,
        say: Callable[[str], None],
        *,
        from_start: bool = False,
        poll_s: float = _LOOK_EVERY_S,
    ) -> None:
        self.target = target
        self._run = run
        self._say = say
        self._poll_s = poll_s
        self._path: Path = position_file(run.run_dir, target)
        self._from_start = from_start
        self.standing = Standing(target.text)
        self.is_delivered = False
        """Whether the target has everything that there was when `run` returned."""
        self.is_hopeless = False
        """Whether it refuses everything, so that waiting for it is of no use."""
        self.taken = 0
        """What it took of this relay."""
        self.dropped = 0
        """What it refused of what this relay sent."""
        self._feed: Feed | None = None
        self._saved: Standing | None = None
        self._has_failed = False
        self._has_told = False
        self._is_ending = threading.Event()
        self._has_time = True
        self._backoff = Backoff()
        self._saved_s = -_SAVE_EVERY_S

    def finish(self) -> None:
        """The job has ended: send what is left, and return."""
        self._is_ending.set()

    def stop(self) -> None:
        """The time is over: return before the next attempt."""
        self._has_time = False
        self._is_ending.set()

    @property
    def is_dead(self) -> bool:
        """Whether it has failed, and never taken anything of this relay."""
        return self.taken == 0 and self._has_failed

    def run(self) -> None:
        """Send until everything is delivered and `finish` was called, or until `stop`. Raises nothing of the sink's."""
        lock = self._take_lock()
        if lock is None:
            return
        try:
            found = read_standing(self._path, self.target)
            if (mark := self._mark()) and found.journal not in ("", mark):
                found = Standing(self.target.text)  # of a run that was removed, and began anew under its name
            self.standing = replace(found, target=self.target.text, job_id=self._run.job_id)
            if self._from_start:
                self.standing = replace(self.standing, seq=0, offset=0, curves={})
            self._save(at_once=True)
            self._keep_on()
        finally:
            lock.release()

    def _take_lock(self) -> Lock | None:
        """Another process may still be sending what an earlier job left."""
        while True:
            reason = "another process is sending to it"
            try:
                lock = lock_of(self._path)
                if lock.acquire(note=f"job={self._run.job_id}"):
                    return lock
            except StorageError as error:
                reason = f"its position cannot be kept: {error}"
                if not self._has_told:
                    self._say(f"trn: {self.target.text} is sent nothing: {reason}")
                    self._has_told = True
            self._has_failed = True
            self.standing = replace(read_standing(self._path, self.target), last_error=reason)
            self._wait(self._poll_s, is_last=self._is_ending.is_set())
            if not self._has_time:
                return None

    def _mark(self) -> str:
        """Which journal it is; "" where that cannot be read now."""
        with contextlib.suppress(OSError):
            return first_mark(self._run.reports / "events.jsonl")
        return ""

    def _keep_on(self) -> None:
        sink: EventSink | CurveSink | None = None
        try:
            while self._has_time:
                is_last = self._is_ending.is_set()
                try:
                    sink = sink or open_sink(self.target, self._run)
                    self._feed = self._feed or feed_of(sink, self._run, self.standing)
                    self._send(self._feed)
                    return
                except Unreachable as error:
                    delay_s = self._failed(error.reason, error.retry_after_s)
                except Refused as error:
                    self.is_hopeless = True
                    self._failed(error.reason, None)
                    delay_s = _REFUSED_AGAIN_S
                except Exception as error:  # noqa: BLE001 - the boundary of a plugin: what it raises is its own failure
                    delay_s = self._failed(f"{type(error).__name__}: {error}", None)
                if is_last and self.is_hopeless:
                    return
                self._wait(delay_s, is_last=is_last)
        finally:
            self._save(at_once=True)
            if sink is not None:
                sink.close()

    def _send(self, feed: Feed) -> None:
        """Connect, and deliver until the end."""
        feed.connect()
        asked_s = time.monotonic()
        while self._has_time:
            is_last = self._is_ending.is_set()  # before the look: what comes later is another job's
            if count := self._deliver(feed):
                asked_s = time.monotonic()
            elif is_last or time.monotonic() - asked_s > _CONFIRM_EVERY_S:
                feed.confirm()  # a server may have come back with less than it had, and nobody sent anything since
                asked_s = time.monotonic()
            if count == 0 and is_last and feed.behind() == 0:
                self.is_delivered = True
                return
            self._save()
            if count == 0:
                self._wait(self._poll_s, is_last=is_last)

    def _deliver(self, feed: Feed) -> int:
        try:
            count = feed.deliver()
        except Refused as error:
            if error.of_target or not (count := feed.skip()):
                raise
            lost = count if error.lost is None else error.lost
            if count > lost:
                self._took(count - lost)
            self._dropped(told(error.reason, self.target, self._run), lost)
            return count
        self._backoff.reset()
        self.is_hopeless = False
        if count or self.standing.failing_since is not None:
            self._took(count)
        return count

    def _took(self, count: int) -> None:
        self.taken += count
        self.standing = replace(self.standing, sent=self.standing.sent + count, last_error=None, failing_since=None)

    def _dropped(self, reason: str, count: int) -> None:
        if self.dropped == 0:
            self._say(f"trn: {self.target.text} refuses what it is sent, which is left out and counted: {reason}")
        self.dropped += count
        self.standing = replace(self.standing, dropped=self.standing.dropped + count, last_error=reason)

    def _failed(self, reason: str, wish_s: float | None) -> float:
        """Count a failure and tell the first; returns how long to wait."""
        reason = told(reason, self.target, self._run)
        self._has_failed = True
        is_first = not self._has_told
        if is_first:
            self._say(f"trn: {self.target.text} does not take events, and is asked again until it does: {reason}")
            self._has_told = True
        since = self.standing.failing_since or utc_now()
        self.standing = replace(self.standing, last_error=reason, failing_since=since)
        self._save(at_once=is_first)
        delay_s = self._backoff.failed(wish_s)
        return min(delay_s, _LONGEST_AT_THE_END_S) if self._is_ending.is_set() and wish_s is None else delay_s

    def _wait(self, delay_s: float, *, is_last: bool) -> None:
        """Wait so long, or until the job ends, which is a reason to try at once; `is_last`: that is known already."""
        if not is_last:
            self._is_ending.wait(delay_s)
            return
        deadline_s = time.monotonic() + delay_s
        while self._has_time and (left_s := deadline_s - time.monotonic()) > 0:
            time.sleep(min(left_s, 0.1))

    def _save(self, *, at_once: bool = False) -> None:
        """Publish the standing where it has changed, once a second at the most."""
        now_s = time.monotonic()
        if not at_once and now_s - self._saved_s < _SAVE_EVERY_S:
            return
        if self._feed is not None:
            with contextlib.suppress(OSError):  # of the run's files: what cannot be read now is counted next time
                self.standing = replace(self._feed.mark(self.standing), behind=self._feed.behind())
                self.standing = replace(self.standing, journal=self.standing.journal or self._mark())
        if self.standing != self._saved:
            write_standing(self._path, self.standing)
        self._saved, self._saved_s = self.standing, now_s
