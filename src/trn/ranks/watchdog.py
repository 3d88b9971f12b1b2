"""A thread beside the loop that sees what the loop cannot: that no step ends, or that another rank is gone.

    each half second:  a sign of life -> are the others alive? -> has one of them failed? -> do steps end?

Rank 0 watches all, the others watch rank 0. The loop says `step_ended` and, when it is over, `rest`. What the watchdog
finds it hands to `give_up`, which does not come back: a main thread that waits in a collective or in a trainer's code
cannot be asked to end.
"""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import threading
import time
from collections.abc import Callable

from trn.errors import Hang, RankLost, TrnError
from trn.ranks.processes import Ranks
from trn.ranks.words import Silence

__all__ = ["Watchdog"]

_EVERY_S = 0.5
_SPOKEN_S = 5.0
"""How long this rank may take to end by itself once another one has failed."""
_SUSPENDED_S = 5.0
_STACKS_S = 2.0
"""How long the ranks are given to write down where they are, before the first of them ends."""


class Watchdog:
    """Gives signs of life from `start` on; watches from `watch` on, until `rest`."""

    def __init__(self, ranks: Ranks | None) -> None:
        self._ranks = ranks
        self._hang_s = 0.0
        self._give_up: Callable[[TrnError], None] = lambda error: None
        self._alive_s = time.monotonic()
        self._failed_s: float | None = None
        self._is_watching = False
        self._is_running = False
        """Whether the clock of the steps runs."""
        self._wrote_stacks = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trn-watchdog", daemon=True)
        # a server that stands still answers nothing, not even with an error: then the thread above waits for ever
        self._second = threading.Thread(target=self._watch_store, name="trn-watchdog-store", daemon=True)

    def start(self) -> None:
        self._thread.start()
        if self._ranks is not None:
            self._second.start()

    def watch(self, *, hang_s: float, give_up: Callable[[TrnError], None]) -> None:
        """From now on, look: a run without a step for `hang_s` seconds (0: however long) hangs."""
        self._hang_s, self._give_up = hang_s, give_up
        self._alive_s = time.monotonic()
        self._is_watching = self._is_running = True
        if not self._thread.is_alive():
            self.start()

    def step_ended(self) -> None:
        """A step, or a batch of an evaluation: the run moves."""
        self._alive_s = time.monotonic()

    def steps_are_over(self) -> None:
        """No step is due any more; the others are still watched."""
        self._is_running = False

    def rest(self) -> None:
        """From now on only give signs of life: what is still to be done takes its time."""
        self._is_watching = False

    def stop(self) -> None:
        """No more signs of life; the thread is gone afterwards."""
        self._is_watching = False
        self._stop.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=1.0)  # it may wait for a store that is gone, and dies with the process

    def _run(self) -> None:
        ranks = self._ranks
        silence: Silence | None = None
        looked_s = time.monotonic()
        while not self._stop.wait(_EVERY_S):
            now_s = time.monotonic()
            if now_s - looked_s > _SUSPENDED_S:
                # this process stood still, and with it perhaps all of them: nobody's silence is known
                silence, self._alive_s = None, now_s
            looked_s = now_s
            try:
                if ranks is not None:
                    ranks.beat()
                    ranks.listen()
                if not self._is_watching:
                    silence = None
                    continue
                if ranks is not None:
                    watched = range(1, ranks.world_size) if ranks.rank == 0 else [0]
                    silence = silence or Silence(ranks, watched, ranks.silence_s)
                    silence.check()
                    self._look_at_others(ranks)
                if self._hang_s and self._is_running and now_s - self._alive_s > self._hang_s:
                    self._hang(ranks)
            except Exception as error:  # noqa: BLE001 - the end of this thread would be the end of all watching
                if self._is_watching:
                    self._is_watching = False
                    known = error if isinstance(error, TrnError) else RankLost(f"{type(error).__name__}: {error}")
                    self._give_up((ranks and ranks.failure_kept()) or known)

    def _watch_store(self) -> None:
        ranks = self._ranks
        assert ranks is not None, "a world of one has no store"
        while not self._stop.wait(_EVERY_S):
            if self._is_watching and time.monotonic() - ranks.asked_s > ranks.silence_s:
                self._is_watching = False
                self._give_up(
                    RankLost(f"the store of the ranks, kept by rank 0, did not answer for {ranks.silence_s:g} s.")
                )

    def _look_at_others(self, ranks: Ranks) -> None:
        failure = ranks.failure()
        if failure is None:
            if ranks.hear_now("hang") is not None:
                self._write_stacks(ranks)
            return
        now_s = time.monotonic()
        self._failed_s = self._failed_s or now_s
        if now_s - self._failed_s > _SPOKEN_S:
            raise failure

    def _hang(self, ranks: Ranks | None) -> None:
        """Let every rank write down where it is, then raise who holds up the others, if that can be told."""
        said = f"no step ended for {self._hang_s:g} s"
        if ranks is None:
            self._write_stacks(None)
            raise Hang(f"{said}; where each thread stood is in the log.", where="limits.hang_seconds")
        ranks.tell("hang", ranks.rank)
        self._write_stacks(ranks)
        time.sleep(_STACKS_S)
        busy = [rank for rank in range(ranks.world_size) if ranks.hear_now(f"stuck/{rank}") == "busy"]
        names = f"; rank {', '.join(map(str, busy))} did not come to where the others wait" if busy else ""
        raise Hang(f"{said}{names}; where each thread stood is in the log.", where="limits.hang_seconds")

    def _write_stacks(self, ranks: Ranks | None) -> None:
        if self._wrote_stacks:
            return
        self._wrote_stacks = True
        who = "the run" if ranks is None else f"rank {ranks.rank}"
        if ranks is not None:
            ranks.tell(f"stuck/{ranks.rank}", "waiting" if ranks.is_waiting else "busy")
        with contextlib.suppress(OSError, ValueError):  # a log that takes no more
            sys.stderr.write(f"{who}: no step ended for {self._hang_s:g} s; its threads stand here:\n")
            sys.stderr.flush()
            faulthandler.dump_traceback(file=sys.stderr.fileno())
