"""What runs in a worker process: a task in, the pickled result of a transform or a failure out.

A worker is started by torch's DataLoader for `trn.loop.workers`, which says what it is for. It heeds no signal that
asks the run to stop, and does not outlive the process that trains, whatever a transform is doing.
"""

from __future__ import annotations

import io
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pyarrow as pa
import torch.multiprocessing  # noqa: F401 - ForkingPickler then passes tensors through shared memory

from trn.checkpoint import rng
from trn.errors import TrnError

__all__ = ["HELD_BACK", "Failure", "Task", "Transform", "Transforming", "as_it_is", "begin_worker", "to_bytes"]

Transform = Callable[[pa.RecordBatch, np.ndarray, np.ndarray], Any]
"""Rows, their ids and their passes, to what `prepare_batch` is given."""

HELD_BACK = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Signals that ask a run to stop."""


@dataclass(frozen=True)
class Task:
    """What a worker is told of a batch."""

    rows: bytes
    """An Arrow IPC stream of one record batch."""
    row_ids: np.ndarray
    row_passes: np.ndarray
    seed: int


@dataclass(frozen=True)
class Failure:
    """An exception in a worker: the error itself where it is one of ours, else its name and words."""

    hook: str
    error: TrnError | MemoryError | None
    text: str
    traceback: str


def to_bytes(rows: pa.RecordBatch) -> bytes:
    """A stream, since only that holds the words of a dictionary; of a slice only what is seen of it."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    return sink.getvalue()


class Transforming:
    """What the DataLoader calls its data set, and indexes with tasks; `make` gives the transform, once."""

    def __init__(self, make: Callable[[], Transform]) -> None:
        self._make = make
        self._transform: Transform | None = None

    def __getitem__(self, task: Task) -> bytes | Failure:
        hook = "setup in a worker"
        try:
            if self._transform is None:
                self._transform = self._make()
            hook = "transform"
            rows = pa.ipc.open_stream(task.rows).read_next_batch()
            rng.seed_all(task.seed)
            # pickled here, where an error can be told: the queue's own thread would lose it, and the batch
            return bytes(ForkingPickler.dumps(self._transform(rows, task.row_ids, task.row_passes)))
        except BaseException as error:  # noqa: BLE001 - the boundary of a process: the run's own process raises it
            return _failure(hook, error)


def _failure(hook: str, error: BaseException) -> Failure:
    text = "".join(traceback.format_exception(error)).rstrip()
    ours = error if isinstance(error, (TrnError, MemoryError)) else None
    try:
        pickle.loads(pickle.dumps(ours))
    except Exception:  # noqa: BLE001 - an error that asks for more than its words
        ours = None
    return Failure(hook, ours, f"{type(error).__name__}: {error}", text)


def begin_worker(number: int) -> None:
    """Heed no signal that asks the run to stop, and do not outlive it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    runner = parent_process()
    assert runner is not None, "a worker is a child of the process that trains"
    threading.Thread(target=_end_with, args=(runner,), name="trn-parent", daemon=True).start()


def _end_with(runner: Any) -> None:
    runner.join()
    os._exit(1)


def as_it_is(given: Any) -> Any:
    """In place of what the DataLoader would make of a result."""
    return given
