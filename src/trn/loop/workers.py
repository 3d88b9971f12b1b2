"""Batches transformed ahead by worker processes, in the order and with the random numbers of the loop's own thread.

    thread: feed ──(rows, seed)──> DataLoader ══> worker: transform      loop: <── in order, one handed over at a time
                                              ══> worker: transform

A thread draws from the feed and drives torch's DataLoader, whose sampler gives out whole batches of rows in place of
indices. It is not the loop's thread, for two reasons: the loop can look for a stop while it waits, and torch then
installs no handler of SIGCHLD, which would raise in the middle of whatever the loop is writing when a worker dies.

Workers come from a fork server, a process that has imported everything and started nothing: a fork of the runner would
copy the locks of its threads. They ignore the signals that ask a run to stop, and end when the runner does, whatever
they are doing. At most `2 * workers + 2` batches
wait beyond the one in use. What runs in a worker stands in `trn.loop.worker`.
"""

from __future__ import annotations

import pickle
import queue
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import connection, get_context, resource_tracker
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from trn.errors import TrainerError
from trn.feed import Feed, RawBatch
from trn.loop.batches import Batches, transform_seed
from trn.loop.worker import HELD_BACK, Failure, Task, Transform, Transforming, as_it_is, begin_worker, to_bytes

if TYPE_CHECKING:
    from trn.loop.stop import StopRequest
    from trn.trainer import Context

__all__ = ["WorkerBatches", "WorkerTraceback"]

_AHEAD = 2  # batches that wait for or lie with each worker
_LOOK_S = 0.05
_IDLE_END_S = 1.0  # an idle worker ends at once; one that is still transforming after this is killed
_JOIN_S = 12.0
_LATEST_NEWS_S = 1.0  # of a death, after its traces


class WorkerTraceback(Exception):
    """The traceback of an exception in a worker process, as text: the cause of the error that the run ends with."""

    def __str__(self) -> str:
        return f"in a worker process:\n{self.args[0]}"


class WorkerBatches(Batches):
    """Batches that `workers` processes transform ahead.

    `make` is pickled, called once in each worker, and gives the transform; importing its module must give all that is
    slow to import. The feed is used by a thread of this object from here on. A request of `stop` ends a wait; None
    where the others of several ranks would wait in vain for this one.
    """

    def __init__(
        self, feed: Feed, make: Callable[[], Transform], *, workers: int, seed: int, rank: int, stop: StopRequest | None
    ) -> None:
        self._feed = feed
        self._stop = stop
        self._shared = _Shared()
        self._ready: Any = None
        self._end: _End | None = None
        self._thread = threading.Thread(
            target=_drive, args=(self._shared, _Work(feed, make, workers, seed, rank)), name="trn-workers", daemon=True
        )
        self._thread.start()

    def next(self) -> RawBatch | None:
        handed = self._end or self._wait()
        if handed is None:
            return None
        if isinstance(handed, _End):
            self._end = handed
            if handed.error is not None:
                raise handed.error
            return None
        self._ready = handed.result
        return handed.raw

    def _wait(self) -> _Handed | _End | None:
        """What the thread hands over next; None where a stop was asked for. Raises TrainerError for a dead worker."""
        while True:
            try:
                return self._shared.handed.get(timeout=_LOOK_S)
            except queue.Empty:
                if self._stop is not None and self._stop.requested():
                    return None
                if died := _who_died(self._shared):
                    raise died from None

    def ready(self, raw: RawBatch, ctx: Context) -> Any:
        ready, self._ready = self._ready, None
        if isinstance(ready, Failure):
            cause = WorkerTraceback(ready.traceback)
            if ready.error is not None:
                raise ready.error from cause
            raise TrainerError(ready.text, where=f"{ready.hook} at step {ctx.step}") from cause
        return ready

    def close(self) -> None:
        shared = self._shared
        shared.closing.set()
        self._thread.join(_IDLE_END_S)
        deadline_s = time.monotonic() + _JOIN_S
        while self._thread.is_alive() and time.monotonic() < deadline_s:
            for process in shared.processes:
                process.kill()
            self._thread.join(4 * _LOOK_S)
        self._feed.close()


@dataclass(frozen=True)
class _Work:
    """What the thread is given to do."""

    feed: Feed
    make: Callable[[], Transform]
    workers: int
    seed: int
    rank: int


@dataclass(frozen=True)
class _Handed:
    raw: RawBatch
    result: Any


@dataclass(frozen=True)
class _End:
    """The data ended, or `error` ended them."""

    error: BaseException | None = None


@dataclass
class _Shared:
    """What the thread and the loop both see."""

    handed: queue.Queue[_Handed | _End] = field(default_factory=lambda: queue.Queue(maxsize=1))
    closing: threading.Event = field(default_factory=threading.Event)
    processes: tuple[BaseProcess, ...] = ()
    asking: threading.Lock = field(default_factory=threading.Lock)


# the thread


def _drive(shared: _Shared, work: _Work) -> None:
    """Hand on every batch, and at last why there are no more."""
    try:
        _hand_on(shared, _End(_hand_on_all(shared, work)))
    except BaseException as error:  # noqa: BLE001 - the end of a thread: the loop raises it
        died = _who_died(shared, within_s=_LATEST_NEWS_S)  # then the error is only that it cannot be reached
        failed = TrainerError(f"{type(error).__name__}: {error}", where="dataset.workers")
        failed.__cause__ = error
        _hand_on(shared, _End(died or failed))


def _hand_on_all(shared: _Shared, work: _Work) -> Exception | None:
    """Hand on what the workers make of each batch; returns what the feed raised, which comes after all before it."""
    # torch warns twice where there are more workers than processors; the spec asks for that many
    warnings.filterwarnings("ignore", r"This DataLoader will create \d+ worker processes", UserWarning)
    drawn: deque[RawBatch] = deque()
    failed: list[Exception] = []
    loader: DataLoader[Any] = DataLoader(
        Transforming(work.make),  # type: ignore[arg-type]  # it is a Dataset by its one method
        batch_size=None,
        sampler=_draw(shared, work, drawn, failed),
        num_workers=work.workers,
        prefetch_factor=_AHEAD,
        collate_fn=as_it_is,
        worker_init_fn=begin_worker,
        multiprocessing_context=_fork_server(work.make),
        generator=torch.Generator(),  # or the loader would draw from the run's own stream
    )
    iterator: Any = iter(loader)
    try:
        shared.processes = tuple(iterator._workers)  # to see one die, and to kill one that does not end
        for given in iterator:
            result = given if isinstance(given, Failure) else pickle.loads(given)  # from a process of our own
            if not _hand_on(shared, _Handed(drawn.popleft(), result)):
                return None
    finally:
        del iterator  # ends the workers
    return failed[0] if failed else None


def _draw(shared: _Shared, work: _Work, drawn: deque[RawBatch], failed: list[Exception]) -> Iterator[Task]:
    """The sampler: each batch of the feed as a task."""
    while not shared.closing.is_set():
        try:
            raw = work.feed.next()
        except Exception as error:  # noqa: BLE001 - raised when its batch has come, not when it was drawn
            failed.append(error)
            raw = None
        if raw is None:
            break
        drawn.append(raw)
        seed = transform_seed(work.seed, raw.cursor, work.rank)
        yield Task(to_bytes(raw.record_batch), raw.row_ids, raw.row_passes, seed)


def _hand_on(shared: _Shared, item: _Handed | _End) -> bool:
    """Wait until the loop has taken what came before; False where it takes no more."""
    while not shared.closing.is_set():
        try:
            shared.handed.put(item, timeout=_LOOK_S)
            return True
        except queue.Full:
            continue
    return False


def _fork_server(make: Callable[[], Transform]) -> Any:
    """The way to start workers; they, and what starts them, inherit that this thread's signals are held back."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    resource_tracker.ensure_running()  # lets SIGINT and SIGTERM through again (CPython 3.11 to 3.13)
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    context = get_context("forkserver")
    context.set_forkserver_preload([Transforming.__module__, make.__module__])
    return context


def _who_died(shared: _Shared, *, within_s: float = 0.0) -> TrainerError | None:
    """The error of a worker that did not end by itself; one that ended in order, with status 0, is none."""
    with shared.asking:  # the first to ask gets the status, and notes it
        ended = connection.wait([process.sentinel for process in shared.processes], timeout=within_s)
        codes = [process.exitcode or 0 if process.sentinel in ended else 0 for process in shared.processes]
    for number, (process, code) in enumerate(zip(shared.processes, codes, strict=True), 1):
        if code:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
            return TrainerError(
                f"worker {number} of {len(codes)} (process {process.pid}) {how}.",
                where="dataset.workers",
                hint="If memory ran out, take fewer workers or smaller batches.",
            )
    return None
