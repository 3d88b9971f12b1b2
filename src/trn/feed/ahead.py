"""Parts made ahead of time by a thread, for a consumer that must not wait.

The thread holds nothing of the consumer, so a consumer that is forgotten ends it; it makes at most one window more
than is being consumed. It never touches the random state of Python, numpy or torch.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable

from trn.feed.parts import Part

__all__ = ["Ahead", "GivenUp", "Inline"]

_JOIN_S = 5.0
_ALIVE_CHECK_S = 1.0


class GivenUp(Exception):
    """The consumer was asked to stop while it waited; nothing was taken."""


class Inline:
    """The parts themselves, made when they are asked for."""

    def __init__(self, parts: Iterable[Part], *, finish: Callable[[], None]) -> None:
        self._parts = iter(parts)
        self._finish = finish
        self._error: Exception | None = None

    def next(self) -> Part | None:
        """The next part, None after the last; what making a part raised is raised again by each later call."""
        if self._error is not None:
            raise self._error
        try:
            return next(self._parts, None)
        except Exception as error:
            self._error = error
            raise

    def close(self) -> None:
        """Release what the parts are made from."""
        self._parts = iter(())
        self._finish()


class _Shared:
    """What the thread and its consumer both see; guarded by `changed`."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.parts: deque[Part] = deque()
        self.rows = 0
        self.ended = False
        self.error: BaseException | None = None


class Ahead:
    """Iterates over `parts` on a thread of its own and hands them on in order; used by one consumer.

    It holds back once the rows of a whole window wait, and at least `min_rows`. `stop` must end the iteration of
    `parts` soon after it is set; `finish` is called on the thread when iteration is over, however it ended. While
    `next` waits it asks `give_up` now and then: a store can take minutes to say that it does not answer.
    """

    def __init__(
        self,
        parts: Iterable[Part],
        *,
        min_rows: int,
        stop: threading.Event,
        finish: Callable[[], None],
        give_up: Callable[[], bool] | None = None,
    ) -> None:
        self._shared = _Shared()
        self._give_up = give_up
        self._thread = threading.Thread(
            target=_work, args=(parts, self._shared, min_rows, stop, finish), name="trn-feed", daemon=True
        )
        # A daemon, so that a read that hangs cannot keep the process; and ended at exit before the interpreter is
        # torn down, since a daemon thread that wakes up inside a library after that can abort the process.
        self._finalizer = weakref.finalize(self, _end, self._shared, self._thread, stop)
        self._thread.start()

    def next(self) -> Part | None:
        """The next part, None after the last; raises, at its place in the order, what making it raised.

        Raises GivenUp where `give_up` says so, and can then be called again.
        """
        shared = self._shared
        with shared.changed:
            while not shared.parts:
                if shared.error is not None:
                    raise shared.error
                if shared.ended:
                    return None
                if not self._thread.is_alive():
                    raise RuntimeError("the feed's thread is gone: a feed cannot be used in a forked child")
                if self._give_up is not None and self._give_up():
                    raise GivenUp
                shared.changed.wait(_ALIVE_CHECK_S)
            part = shared.parts.popleft()
            shared.rows -= len(part.row_ids)
            shared.changed.notify_all()
        return part

    def close(self) -> None:
        """End the thread; waits until a block that is being decoded is done, at most some seconds."""
        self._finalizer()


def _work(
    parts: Iterable[Part], shared: _Shared, min_rows: int, stop: threading.Event, finish: Callable[[], None]
) -> None:
    error: BaseException | None = None
    try:
        try:
            _hand_on(parts, shared, min_rows, stop)
        finally:
            finish()
    except BaseException as caught:  # noqa: BLE001 - the end of a thread: the consumer raises it
        error = caught
    with shared.changed:
        shared.ended = True
        shared.error = error
        shared.changed.notify_all()


def _hand_on(parts: Iterable[Part], shared: _Shared, min_rows: int, stop: threading.Event) -> None:
    for part in parts:
        with shared.changed:
            while shared.rows >= max(part.window_rows, min_rows) and not stop.is_set():
                shared.changed.wait()
            if stop.is_set():
                return
            shared.parts.append(part)
            shared.rows += len(part.row_ids)
            shared.changed.notify_all()
        del part  # or this part would live on while the next window is decoded


def _end(shared: _Shared, thread: threading.Thread, stop: threading.Event) -> None:
    stop.set()
    with shared.changed:
        shared.parts.clear()
        shared.changed.notify_all()
    if thread is not threading.current_thread():
        thread.join(_JOIN_S)
