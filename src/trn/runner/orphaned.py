"""A run whose door is gone saves and ends by itself; where it does not, nobody else is left who could end it.

The loop sees between two steps that the door is gone. A step that hangs sees nothing. So a thread looks too, and some
time after kills the process with all of its group. What was committed stays, and the next job records this one as
crashed. A step that hangs without letting go of Python's lock stops this thread as well.
"""

from __future__ import annotations

import os
import signal
import threading
import time

from trn.loop.stop import StopRequest
from trn.runner.console import say

__all__ = ["OrphanWatch"]

_LOOK_EVERY_S = 0.25


class OrphanWatch:
    """From `start` to the end of the process: `door_pid` must stay its parent, or it has `stop_s` seconds left."""

    def __init__(self, door_pid: int, stop_s: float, stop: StopRequest) -> None:
        self._door_pid, self._stop_s, self._stop = door_pid, stop_s, stop
        self._thread = threading.Thread(target=self._run, name="trn-orphan", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        while os.getppid() == self._door_pid:
            time.sleep(_LOOK_EVERY_S)
        self._stop.requested()
        time.sleep(self._stop_s)
        try:
            say(f"killed: {self._stop_s:g} s after the process that started this run was gone, it had not ended")
        finally:
            if os.getpgid(0) == os.getpid():  # else others are in that group
                os.killpg(0, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
