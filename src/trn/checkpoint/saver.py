"""Save beside the loop: a copy between two steps, then a thread that writes, hashes, commits, links and prunes.

Order of commitment, each step durable before the next:

    step-N.pt (hashed while written) -> metrics files synced -> step-N.meta.json -> last.*, best.* -> older ones removed

A crash between any two of them leaves the previous checkpoint whole and this one either committed or absent.
"""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from trn.checkpoint.meta import CheckpointMeta, checkpoint_name, meta_name
from trn.checkpoint.retention import link_hint, prune
from trn.checkpoint.snapshot import Snapshots
from trn.errors import StorageError
from trn.files import AtomicFile, atomic_file, free_bytes, write_atomic
from trn.records import Json, Position, utc_now

__all__ = ["Moment", "Saver"]


@dataclass(frozen=True)
class Moment:
    """What a checkpoint says besides tensors: where the run stood when the copy was taken."""

    step: int
    epoch: int
    metrics: Json
    journal: Mapping[str, Position]
    progress: Json
    rng: list[Json]
    best_step: int | None


class Saver:
    """Commits checkpoints of one run. At most one save is in flight; its error is raised by the next call."""

    def __init__(
        self,
        folder: Path,
        *,
        run_id: str,
        job_id: str,
        plan_fingerprint: str,
        keep: int,
        sync_journal: Callable[[], None],
    ) -> None:
        self.folder = folder
        self._run_id, self._job_id, self._plan_fingerprint = run_id, job_id, plan_fingerprint
        self._keep = keep
        self._sync_journal = sync_journal
        self._snapshots = Snapshots()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._committed: deque[CheckpointMeta] = deque()

    def save(self, state: dict[str, Any], moment: Moment) -> None:
        """Copy `state` now and commit it in the background. Raises the error of the save before, StorageError."""
        self.wait()
        payload = {"trainer": self._snapshots.take(state), "progress": moment.progress, "rng": moment.rng}
        self._thread = threading.Thread(target=self._run, args=(payload, moment), name="trn-checkpoint")
        self._thread.start()

    def committed(self) -> list[CheckpointMeta]:
        """Checkpoints committed since the last call, oldest first, without waiting. Raises a failed save's error."""
        self._raise_error()
        done = []
        while self._committed:
            done.append(self._committed.popleft())
        return done

    def mark_best(self, step: int) -> None:
        """Let best.* name a checkpoint that was committed before it turned out to be the best."""
        link_hint(self.folder, "best", step)

    def wait(self) -> None:
        """Until nothing is in flight. Raises a failed save's error."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._raise_error()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, payload: dict[str, Any], moment: Moment) -> None:
        try:
            self._committed.append(self._commit(payload, moment))
        except OSError as error:
            self._error = StorageError(f"cannot save: {error.strerror or error}.", where=str(self.folder))
            self._error.__cause__ = error
        except BaseException as error:  # noqa: BLE001 - carried to the loop's thread, which raises it
            self._error = error

    def _commit(self, payload: dict[str, Any], moment: Moment) -> CheckpointMeta:
        self._require_space()
        path = self.folder / checkpoint_name(moment.step)
        sha256, size_bytes = _write_payload(path, payload)
        self._sync_journal()
        meta = CheckpointMeta(
            file=path.name,
            sha256=sha256,
            size_bytes=size_bytes,
            step=moment.step,
            epoch=moment.epoch,
            created_at=utc_now(),
            metrics=moment.metrics,
            journal={name: asdict(position) for name, position in moment.journal.items()},
            progress=moment.progress,
            rng=moment.rng,
            run_id=self._run_id,
            job_id=self._job_id,
            plan_fingerprint=self._plan_fingerprint,
        )
        write_atomic(self.folder / meta_name(moment.step), meta.to_bytes())
        link_hint(self.folder, "last", moment.step)
        # after walking back behind a damaged one, the checkpoint of the best may be gone: then nothing is called best
        if moment.best_step is not None and (self.folder / meta_name(moment.best_step)).exists():
            link_hint(self.folder, "best", moment.best_step)
        prune(self.folder, keep=self._keep, best_step=moment.best_step)
        return meta

    def _require_space(self) -> None:
        needed = self._snapshots.size_bytes() + _SPARE_BYTES
        free = free_bytes(self.folder)
        if free < needed:
            raise StorageError(
                f"a checkpoint needs about {needed:,} bytes, {free:,} are free.",
                where=str(self.folder),
                hint="Free some space and resume; nothing was lost.",
            )


_SPARE_BYTES = 1 << 20


class _Sink:
    """A file object for torch.save: gathers its many small writes, and keeps a failed one for later.

    torch writes a dozen pieces for each tensor, most of a few bytes. An exception that leaves `write` inside its C++
    writer would end the process in a destructor.
    """

    _GATHER_BYTES = 1 << 20

    def __init__(self, file: AtomicFile) -> None:
        self._file = file
        self._small = bytearray()
        self._error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        size = memoryview(data).nbytes
        if size >= self._GATHER_BYTES:
            self._drain()
            self._put(data)
        else:
            self._small += data
            if len(self._small) >= self._GATHER_BYTES:
                self._drain()
        return size

    def flush(self) -> None:
        """Nothing: what is gathered is written by `finish`."""

    def finish(self) -> None:
        """Write what is gathered. Raises the OSError of a write that failed."""
        self._drain()
        if self._error is not None:
            raise self._error

    def _drain(self) -> None:
        small, self._small = self._small, bytearray()
        if small:
            self._put(memoryview(small))

    def _put(self, data: bytes | memoryview) -> None:
        if self._error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self._error = error


def _write_payload(path: Path, payload: dict[str, Any]) -> tuple[str, int]:
    """Write the `.pt`; returns (sha256, size in bytes). One I/O error is answered by a new file, never a retry."""
    for is_last in (False, True):
        try:
            with atomic_file(path) as file:
                sink = _Sink(file)
                torch.save(payload, sink)  # type: ignore[arg-type]  # needs only write and flush
                sink.finish()
            return file.sha256, file.size_bytes
        except StorageError as error:
            cause = error.__cause__
            if is_last or not (isinstance(cause, OSError) and cause.errno == errno.EIO):
                raise
    raise AssertionError("the loop above returns or raises")
