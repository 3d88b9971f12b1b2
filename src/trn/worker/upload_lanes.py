"""One kind of thing on its way to one place: patience with that place, and what is under way there.

    MetricsLane   the next batch of lines
    FileLane      a checkpoint (its .pt, its trainer's folder, its meta), or a sample

A lane sends one request when it is asked to. What a place does wrong costs the other lanes no more than that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from trn.errors import StorageError
from trn.worker.upload_artifacts import (
    Artifact,
    Changed,
    Checkpoint,
    Gone,
    Opened,
    Sample,
    open_checkpoint,
    open_sample,
)
from trn.worker.upload_http import Garbled, Refused, Sender, Unreachable, Upload
from trn.worker.upload_metrics import Metrics
from trn.worker.upload_patience import Failure, Patience
from trn.worker.upload_queue import Queue
from trn.worker.upload_source import Pace
from trn.worker.upload_spool import Spool

__all__ = ["FileLane", "MetricsLane"]

_PATIENCE = 8
"""Failures in a row after which others are sent first: to come back to a big file means to read it again."""
_ANSWERS_BEFORE_BYTES = 2
"""That it may be sent, and from where."""
_TOO_LARGE = 413
_OF_PLACE = (401, 403)
"""Where no token was shown: then this place takes nothing, and the others may."""


class MetricsLane:
    """Sends batches of metrics, one each `every_s` seconds at the most."""

    def __init__(
        self, url: str, *, sender: Sender, metrics: Metrics, every_s: float, say: Callable[[str], None]
    ) -> None:
        self._url, self._sender, self._metrics, self._every_s, self._say = url, sender, metrics, every_s, say
        self.patience = Patience("metrics", say)
        self.failed: dict[str, str] = {}
        """What was given up, and why."""

    def go(self, *, is_ending: bool) -> bool:
        """One batch; False where there was nothing to do. Raises Denied, Fenced, Over."""
        if not self._url or _ALL in self.failed or not self.patience.is_due():
            return False
        try:
            batch = self._metrics.next(is_last=is_ending)
            if batch is None:
                return False
            self._sender.post(self._url, *batch)
        except Refused as error:
            if error.status != _TOO_LARGE:
                self._give_up(_ALL, error.reason)
            elif not self._metrics.too_large():
                self._give_up("a line of the metrics", error.reason)
        except (Unreachable, StorageError, OSError) as error:
            self.patience.failed(error, is_ending=is_ending)
        else:
            self._metrics.taken()
            self.patience.worked()
            if not is_ending:
                self.patience.wait(self._every_s)
        return True

    def _give_up(self, what: str, reason: str) -> None:
        if what not in self.failed:
            self._say(f"trn: {what}: not uploaded: {reason}")
        self.failed[what] = reason

    def is_pending(self) -> bool:
        return bool(self._url) and _ALL not in self.failed and self._metrics.has_more()


_ALL = "metrics"


class FileLane:
    """Sends the items of one kind, one after the other, a request at a time."""

    def __init__(
        self,
        kind: type[Checkpoint] | type[Sample],
        url: str,
        *,
        run_dir: Path,
        names: Mapping[str, str],
        sender: Sender,
        spool: Spool,
        queue: Queue,
        pace: Pace,
        say: Callable[[str], None],
    ) -> None:
        self._kind, self._url, self._names, self._sender = kind, url, names, sender
        self._spool, self._queue, self._pace, self._say = spool, queue, pace, say
        what = "checkpoints" if kind is Checkpoint else "samples"
        self._folder = run_dir / what
        self.patience = Patience(what, say)
        self.item: Checkpoint | Sample | None = None
        """What is under way; its files are open."""
        self._opened: Opened | None = None
        self._left: list[Artifact] = []
        self._upload: Upload | None = None
        self._garbled = 0
        self._answers = 0
        """How many requests for it were answered."""
        self._reached = 0
        """How much of it the other side has had."""
        self._failures = 0

    def go(self, *, is_ending: bool, final_sha256: str | None) -> bool:
        """One request; False where there was nothing to do. Raises Denied, Fenced, Over."""
        if not self.patience.is_due():
            return False
        if self.item is None:
            self.item = self._queue.next(self._kind, final_sha256)
        if self.item is None:
            return False
        try:
            self._step(self.item)
        except Gone:
            self._queue.gone(self.item)
            self.close()
        except Garbled as error:
            self._garbled += 1
            if self._garbled > 1:
                self._give_up(self.item, str(error))
        except Refused as error:
            if error.status in _OF_PLACE:
                self._queue.give_up_all(self._kind, error.reason)
                self._say(f"trn: no {self._folder.name} are uploaded: {error.reason}")
                self.close()
            else:
                self._give_up(self.item, error.reason)
        except Changed as error:
            self._give_up(self.item, str(error))
        except (Unreachable, StorageError, OSError) as error:
            self._fail(self.item, error, is_ending=is_ending)
        return True

    def _step(self, item: Checkpoint | Sample) -> None:
        """A place works that takes something: one that only answers is asked ever less often, and told of once."""
        if self._opened is None:
            self._opened = self._open(item)
            self._left = list(self._opened.artifacts)
        while self._left and self._spool.has(self._left[0]):
            self._opened.let_go(self._left.pop(0))
        if not self._left:
            self._queue.done(item)
            self.close()
            return
        artifact = self._left[0]
        if self._upload is None:
            source = self._opened.source(artifact)
            self._upload = Upload(self._sender, self._url, artifact, source, self._names)
            self._garbled = self._reached = self._answers = 0
        is_whole = self._upload.step()
        self._answers += 1
        if self._answers <= _ANSWERS_BEFORE_BYTES:
            self.patience.answered()
        if is_whole or self._upload.offset > self._reached:
            self._reached = self._upload.offset
            self._failures = 0
            self.patience.worked()
        if is_whole:
            self._spool.accept(artifact, self._upload.ref)
            self._upload = None

    def _open(self, item: Checkpoint | Sample) -> Opened:
        if isinstance(item, Checkpoint):
            return open_checkpoint(self._folder, item, self._pace)
        return open_sample(self._folder, item, self._pace)

    def _give_up(self, item: Checkpoint | Sample, reason: str) -> None:
        name = self._left[0].name if self._left else item.name
        line = reason if name == item.name or reason.startswith(name) else f"{name}: {reason}"
        self._queue.give_up(item, line)
        self._say(f"trn: {item.name} is not uploaded: {line}")
        self.close()

    def _fail(self, item: Checkpoint | Sample, error: Failure, *, is_ending: bool) -> None:
        self.patience.failed(error, is_ending=is_ending)
        self._failures += 1
        if self._failures >= _PATIENCE:
            self._queue.set_back(item)
            self.close()

    def close(self) -> None:
        """Let go of what is under way."""
        if self._opened is not None:
            self._opened.close()
        self.item = self._opened = self._upload = None
        self._left, self._failures = [], 0
