"""`trn cancel`, as a run sees it: a file of its job's name, looked for beside the training.

A thread looks for it, four times a second: a step pays nothing, and a step that hangs, a read that is waited for or an
export is reached like a step of the loop. What it finds is a request like that of a signal: the run ends after the step
with a checkpoint, or at once. Only rank 0 looks, and the others agree with it. The job's door removes the file, or
whoever asked.
"""

from __future__ import annotations

import threading
from pathlib import Path

from trn.loop.stop import StopRequest
from trn.records import Json, JsonError, read_json
from trn.runner.signals import wake

__all__ = ["CancelWatch"]

_LOOK_EVERY_S = 0.25
_MOST_LETTERS = 300


class CancelWatch:
    """From `start` to `end`, or to the end of the process, passes what the file at `path` says on to `stop`."""

    def __init__(self, path: Path, stop: StopRequest) -> None:
        self._path, self._stop = path, stop
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trn-cancel", daemon=True)

    def start(self) -> None:
        self._look()  # it may have been there before the process was
        self._thread.start()

    def end(self) -> None:
        """Returns when it looks no more: no signal of it comes later."""
        self._is_over.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        while not self._is_over.wait(_LOOK_EVERY_S):
            self._look()

    def _look(self) -> None:
        stop, wish = self._stop, _read(self._path)
        if wish is None:
            return
        reason = _one_line(wish.get("reason")) or "`trn cancel` was asked for"
        stop.ask("cancelled", reason)
        if wish.get("now") is True and not stop.at_once:
            stop.at_once_reason = f"{reason}: ended at once, without a checkpoint"
            stop.at_once = True
        # asked again at each look: it may have come just before a place where it is obeyed
        if stop.gives_way or (stop.at_once and stop.breakable):
            wake(stop)


def _read(path: Path) -> Json | None:
    """What the file says, None where there is none. One that cannot be read says by being there what matters.

    A disk that does not say whether it is there ends no run.
    """
    try:
        path.stat()
    except OSError:
        return None
    try:
        return read_json(path)
    except FileNotFoundError:
        return None
    except (JsonError, OSError):
        return {}


def _one_line(given: object) -> str:
    """A reason as an outcome may have it, of whatever somebody else's program wrote."""
    text = given if isinstance(given, str) else ""
    return " ".join(text.encode(errors="backslashreplace").decode().split())[:_MOST_LETTERS]
