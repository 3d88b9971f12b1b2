"""What the ranks of a run say to each other at any time: signs of life, the first failure, the ending.

The words lie in the *store*, a small server of torch's, kept by the launcher or by rank 0; who says one waits for
nobody to read it. Every question can raise RankLost: the store is gone with whoever kept it, or stands still.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from trn.errors import PeerFailed, RankLost, Stopped
from trn.ranks import World, meeting_place

__all__ = ["BROKEN_S", "POLL_S", "Ended", "Silence", "Words", "open_store"]

POLL_S = 0.1
BROKEN_S = 4.0
"""Silence that is enough once a connection broke: beats come every half second."""
_LASTING = ("failed", "told/end")
_ATTEMPT = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")


class Ended(Exception):
    """Rank 0 has ended the job, with this exit status."""

    def __init__(self, exit_status: int) -> None:
        super().__init__(exit_status)
        self.exit_status = exit_status


class Words:
    """What one rank says, and hears of the others."""

    def __init__(self, world: World, store: Any) -> None:
        self.rank, self.world_size = world.rank, world.world_size
        self.silence_s = 20.0
        """limits.grace_seconds of the plan, once it is known."""
        self.asked_s = math.inf
        """Since when, by time.monotonic, the store owes an answer."""
        self._store = store
        self._beats = 0
        self._kept: dict[str, str] = {}
        """Answers that stay true when the store is gone."""
        self._lock = threading.Lock()
        """The store answers one question at a time: the watchdog asks too."""

    def beat(self) -> None:
        """Give a sign of life. Raises RankLost when the store is gone."""
        self._beats += 1
        self._set(f"beat/{self.rank}", str(self._beats))

    def beat_of(self, rank: int) -> str | None:
        """The newest sign of life of a rank; None before the first."""
        return self._get(f"beat/{rank}")

    def tell(self, key: str, value: Any) -> None:
        """Say something to all, once."""
        self._set(f"told/{key}", json.dumps(value))

    def hear_now(self, key: str) -> Any:
        """What was told under `key`; None where nothing was."""
        told = self._get(f"told/{key}")
        return None if told is None else json.loads(told)

    def hear(self, key: str, *, of: int, until: Callable[[], None]) -> Any:
        """What rank `of` tells under `key`, however long it takes. Calls `until` all the while, which may raise.

        Raises Ended when rank 0 ends the job instead, PeerFailed when a rank fails meanwhile, RankLost when `of` falls
        silent.
        """
        silence = Silence(self, [of], self.silence_s)
        while (told := self._get(f"told/{key}")) is None:
            try:
                until()
            except Stopped:
                self._require_alive(of)
                raise
            if (code := self.hear_now("end")) is not None:
                raise Ended(int(code))
            if failure := self.failure():
                raise failure
            silence.check()
            time.sleep(POLL_S)
        return json.loads(told)

    def _require_alive(self, rank: int) -> None:
        """Raise RankLost unless a rank gives a sign of life: launchers ask all to stop where one is gone."""
        silence, last = Silence(self, [rank], BROKEN_S), self.beat_of(rank)
        while rank != self.rank and self.beat_of(rank) == last:
            silence.check()
            time.sleep(POLL_S)

    def fail(self, status: str, reason: str) -> None:
        """Say why this rank cannot go on, unless another said so before."""
        word = json.dumps({"rank": self.rank, "status": status, "reason": reason})
        with contextlib.suppress(RankLost):
            self._ask(lambda: self._store.compare_set("failed", "", word))

    def failure_kept(self) -> PeerFailed | None:
        """What `failure` has said before, without asking: the store may be gone."""
        return self.failure() if "failed" in self._kept else None

    def failure(self) -> PeerFailed | None:
        """Why the first rank failed that did; None while none has, or it was this one."""
        word = self._get("failed")
        told = json.loads(word) if word else None
        if told is None or told["rank"] == self.rank:
            return None
        return PeerFailed(told["rank"], told["status"], told["reason"])

    def end(self, exit_status: int) -> None:
        """Rank 0 says how the job ended; from then on everybody leaves with the same exit status."""
        with contextlib.suppress(RankLost):
            self.tell("end", exit_status)

    def ending(self, timeout_s: float = math.inf) -> int | None:
        """The exit status that rank 0 ends with; None if it says nothing in this time, or is lost."""
        deadline_s = time.monotonic() + timeout_s
        with contextlib.suppress(RankLost):
            silence = Silence(self, [0], self.silence_s)
            while time.monotonic() < deadline_s:
                if (told := self.hear_now("end")) is not None:
                    return int(told)
                silence.check()
                time.sleep(POLL_S)
        return None

    def depart(self) -> None:
        """The last word of this rank, so that whoever keeps the store can close it."""
        with contextlib.suppress(RankLost):
            self._set(f"departed/{self.rank}", "1")

    def wait_for_departures(self, timeout_s: float) -> None:
        """Until all other ranks have left, or the time is over."""
        deadline_s = time.monotonic() + timeout_s
        waited_for = set(range(self.world_size)) - {self.rank}
        with contextlib.suppress(RankLost):
            silences = {rank: Silence(self, [rank], BROKEN_S) for rank in waited_for}
            while waited_for and time.monotonic() < deadline_s:
                for rank in list(waited_for):
                    if self._get(f"departed/{rank}") is not None or silences[rank].is_silent():
                        waited_for.discard(rank)
                time.sleep(0.02)

    def listen(self) -> None:
        """Keep the words that must not be missed, should the store go with the rank that said them."""
        for key in _LASTING:
            self._get(key)

    def _set(self, key: str, value: str) -> None:
        self._ask(lambda: self._store.set(key, value))

    def _get(self, key: str) -> str | None:
        if key in self._kept:
            return self._kept[key]

        def ask() -> str | None:
            return self._store.get(key).decode() if self._store.check([key]) else None

        answer: str | None = self._ask(ask)
        if answer is not None and key in _LASTING:
            self._kept[key] = answer
        return answer

    def _ask(self, question: Callable[[], Any]) -> Any:
        if not self._lock.acquire(timeout=self.silence_s):
            raise RankLost(
                "the store of the ranks gives no answer: rank 0, or the launcher that keeps it, stands still."
            )
        self.asked_s = time.monotonic()
        try:
            return question()
        except RuntimeError as error:
            raise RankLost("the store of the ranks is gone, and rank 0 or the launcher with it.") from error
        finally:
            self.asked_s = math.inf
            self._lock.release()


class Silence:
    """Watches for signs of life of some ranks, by its own clock: no two clocks are ever compared."""

    def __init__(self, words: Words, of: Sequence[int], limit_s: float) -> None:
        self._words, self._limit_s = words, limit_s
        self._heard = {rank: (time.monotonic(), words.beat_of(rank)) for rank in of}

    def is_silent(self) -> bool:
        """Look."""
        try:
            self.check()
        except RankLost:
            return True
        return False

    def check(self) -> None:
        """Look. Raises RankLost naming the ranks that gave no sign for `limit_s`."""
        now_s = time.monotonic()
        for rank, (_, last) in self._heard.items():
            if (newest := self._words.beat_of(rank)) != last:
                self._heard[rank] = (now_s, newest)
        silent = [rank for rank, (heard_s, _) in self._heard.items() if now_s - heard_s > self._limit_s]
        if silent:
            names = f"rank {silent[0]}" if len(silent) == 1 else f"ranks {', '.join(map(str, silent))}"
            raise RankLost(f"{names} gave no sign of life for {self._limit_s:g} s.")


def open_store(world: World, until: Callable[[], None], deadline_s: float) -> Any:
    """The launcher's store where it keeps one for its workers, as torchrun does; else rank 0's own."""
    address, port = meeting_place(os.environ)
    is_kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    while True:
        try:
            store = dist.TCPStore(  # type: ignore[attr-defined]  # torch exports it, and says so nowhere
                address,
                port,
                is_master=world.rank == 0 and not is_kept,
                wait_for_workers=False,
                timeout=timedelta(seconds=5),
            )
            # launchers that restart their workers, and the steps of a job, may share one server
            return PrefixStore("/".join(["trn", *(os.environ.get(name, "") for name in _ATTEMPT)]), store)
        except RuntimeError as error:
            until()
            if time.monotonic() > deadline_s or (world.rank == 0 and isinstance(error, dist.DistNetworkError)):
                first = (str(error).splitlines() or [""])[0]
                raise RankLost(
                    f"rank {world.rank} cannot reach the store of the ranks: {first}", where=f"{address}:{port}"
                ) from error
