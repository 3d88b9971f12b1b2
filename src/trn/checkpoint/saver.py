"""Save beside the loop: a copy between two steps, then a thread that writes, hashes, commits, links and prunes.

Order of commitment, each step durable before the next:

    step-N.pt (hashed while written) -> step-N.files/, the trainer's own -> artifact of the epoch
        -> metrics files synced -> step-N.meta.json -> last.*, best.* -> older ones removed

A crash between any two of them leaves the previous checkpoint whole and this one either committed or absent.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from trn.checkpoint.discover import set_aside_later
from trn.checkpoint.epochs import metadata_name, prune_epochs, publish_epoch
from trn.checkpoint.folder import Filled, discard, folder_name, publish, seal
from trn.checkpoint.meta import CheckpointMeta, checkpoint_name, listed_steps, meta_name
from trn.checkpoint.payload import write_payload
from trn.checkpoint.retention import link_hint, prune
from trn.checkpoint.snapshot import Snapshots
from trn.errors import StorageError
from trn.files import free_bytes, write_atomic
from trn.records import Json, Position, read_json, utc_now

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
    epoch_metadata: Json | None = None
    """Of the epoch that ends with this step, where it has an artifact; without the optimizer's digest."""
    folder: Filled | None = None
    """What the trainer's own `save_checkpoint` wrote; the saver publishes or removes it."""


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
        keep_epochs: int = 0,
        sync_journal: Callable[[], None],
    ) -> None:
        self.folder = folder
        self._run_id, self._job_id, self._plan_fingerprint = run_id, job_id, plan_fingerprint
        self._keep, self._keep_epochs = keep, keep_epochs
        self._sync_journal = sync_journal
        self._snapshots = Snapshots()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._committed: deque[CheckpointMeta] = deque()

    def save(self, state: dict[str, Any], moment: Moment) -> None:
        """Copy `state` now and commit it in the background. Raises the error of the save before, StorageError."""
        try:
            self.wait()
            payload = {"trainer": self._snapshots.take(state), "progress": moment.progress, "rng": moment.rng}
        except BaseException:
            discard(moment.folder)
            raise
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

    def complete_epoch(self, step: int, metadata: Json) -> None:
        """Write the artifact of an epoch whose checkpoint was committed before all that it says was known."""
        path, known = self.folder / checkpoint_name(step), self.folder / metadata_name(metadata["epoch"])
        before = read_json(known) if known.exists() else {}
        if any(before.get(key, key) != value for key, value in metadata.items() if key not in _NOT_OF_THE_PLAN):
            payload = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            publish_epoch(path, metadata, payload["trainer"])
            prune_epochs(self.folder, keep=self._keep_epochs)

    def retract(self, step: int, *, epochs_over: int, best_step: int | None) -> None:
        """Set the checkpoint of `step` aside, and what came with it."""
        older = max((one for one in listed_steps(self.folder) if one < step), default=0)
        run_dir = self.folder.parent
        set_aside_later(run_dir, step=older, epochs_over=epochs_over, best_step=best_step, job_id=self._job_id)

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
        finally:
            discard(moment.folder)  # of which nothing is left once it is published

    def _commit(self, payload: dict[str, Any], moment: Moment) -> CheckpointMeta:
        self._require_space()
        path = self.folder / checkpoint_name(moment.step)
        sha256, size_bytes = write_payload(path, payload, self._snapshots.at_pages())
        files = None if moment.folder is None else seal(moment.folder)
        if moment.folder is not None:
            publish(moment.folder, self.folder / folder_name(moment.step))
        if moment.epoch_metadata is not None:
            publish_epoch(path, moment.epoch_metadata, payload["trainer"])
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
            files=files,
            hook=None if moment.folder is None else moment.folder.hook,
        )
        write_atomic(self.folder / meta_name(moment.step), meta.to_bytes())
        link_hint(self.folder, "last", moment.step)
        # after walking back behind a damaged one, the checkpoint of the best may be gone: then nothing is called best
        if moment.best_step is not None and (self.folder / meta_name(moment.best_step)).exists():
            link_hint(self.folder, "best", moment.best_step)
        prune(self.folder, keep=self._keep, best_step=moment.best_step)
        prune_epochs(self.folder, keep=self._keep_epochs)
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
_NOT_OF_THE_PLAN = ("optimizer_state_sha", "wall_seconds")
"""What an epoch's metadata say besides what plan and step decide: the saver's own digest, and a clock's reading."""
