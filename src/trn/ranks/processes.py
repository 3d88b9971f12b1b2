"""The ranks of a run, talking to each other: who is there, what rank 0 tells, and collectives that name who is missing.

    join(world)      meet at the store: nothing here takes part in the training yet
    tell / hear      rank 0 says what the job is; the others wait for it, and for its ending
    open             connect for collectives
    exchange, gather, sum_, copy_from_first     in lockstep, by all ranks in the same order
    fail, end        the first that fails is remembered; rank 0's ending is everybody's

Two channels. The *store* (a small server of torch's, kept by the launcher or by rank 0) holds words that may be read at
any time: every rank's sign of life, the first failure, the ending. The *collectives* move numbers and tensors. A rank
that fails says so in the store and then breaks its connections, which wakes all that wait for it in a collective.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from trn.errors import PeerFailed, RankLost, Stopped, TrainerError
from trn.ranks import World, meeting_place
from trn.ranks.group import Group

__all__ = ["Ended", "Ranks", "Silence", "join"]

_POLL_S = 0.1
_JOIN_S = 300.0
"""How long the ranks wait for each other at the start, before anything of a run exists."""
_BROKEN_S = 4.0
"""Silence that is enough once a connection broke: beats come every half second."""
_KIND_BYTES = 4
_LASTING = ("failed", "told/end")
_SMALL_BYTES = 2048
"""What a gather moves in one collective; longer values need a second one."""
_ATTEMPT = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
_COLLECTIVE = timedelta(days=1)
"""Nobody's limit: a rank that is lost is found by its silence, one that hangs by limits.hang_seconds."""


class Ended(Exception):
    """Rank 0 has ended the job, with this exit status."""

    def __init__(self, exit_status: int) -> None:
        super().__init__(exit_status)
        self.exit_status = exit_status


class Ranks(Group):
    """A world of several processes.

    Raises PeerFailed where another rank said why it failed, RankLost naming those that gave no sign of life for
    `silence_s` seconds.
    """

    def __init__(self, world: World, store: Any) -> None:
        self.rank, self.world_size = world.rank, world.world_size
        self.silence_s = 20.0
        """limits.grace_seconds of the plan, once it is known."""
        self.is_waiting = False
        """Whether this rank is in a collective just now."""
        self.asked_s = math.inf
        """Since when, by time.monotonic, the store owes an answer."""
        self._store = store
        self._beats = 0
        self._shared = 0
        """How many small messages were shared."""
        self._kept: dict[str, str] = {}
        """Answers that stay true when the store is gone."""
        self._is_open = False
        self._lock = threading.Lock()
        """The store answers one question at a time: the watchdog asks too."""

    # The store

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
            time.sleep(_POLL_S)
        return json.loads(told)

    def _require_alive(self, rank: int) -> None:
        """Raise RankLost unless a rank gives a sign of life: launchers ask all to stop where one is gone."""
        silence, last = Silence(self, [rank], _BROKEN_S), self.beat_of(rank)
        while rank != self.rank and self.beat_of(rank) == last:
            silence.check()
            time.sleep(_POLL_S)

    def fail(self, status: str, reason: str) -> None:
        """Say why this rank cannot go on, unless another said so before; and wake those that wait for it."""
        word = json.dumps({"rank": self.rank, "status": status, "reason": reason})
        with contextlib.suppress(RankLost):
            self._ask(lambda: self._store.compare_set("failed", "", word))
        self.disconnect()

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
        self.disconnect()

    def ending(self, timeout_s: float = math.inf) -> int | None:
        """The exit status that rank 0 ends with; None if it says nothing in this time, or is lost."""
        deadline_s = time.monotonic() + timeout_s
        with contextlib.suppress(RankLost):
            silence = Silence(self, [0], self.silence_s)
            while time.monotonic() < deadline_s:
                if (told := self.hear_now("end")) is not None:
                    return int(told)
                silence.check()
                time.sleep(_POLL_S)
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
            silences = {rank: Silence(self, [rank], _BROKEN_S) for rank in waited_for}
            while waited_for and time.monotonic() < deadline_s:
                for rank in list(waited_for):
                    if self._get(f"departed/{rank}") is not None or silences[rank].is_silent():
                        waited_for.discard(rank)
                time.sleep(0.02)

    def _set(self, key: str, value: str) -> None:
        self._ask(lambda: self._store.set(key, value))

    def listen(self) -> None:
        """Keep the words that must not be missed, should the store go with the rank that said them."""
        for key in _LASTING:
            self._get(key)

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

    # Collectives

    def open(self, device: torch.device) -> None:
        """Connect for collectives; called by all ranks at about the same time, all known to be alive."""
        kinds = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        self._is_open = True
        self._call(
            lambda: dist.init_process_group(
                kinds,
                # a client of its own: this one must go on giving signs of life meanwhile
                store=PrefixStore("group", self._store.clone()),
                rank=self.rank,
                world_size=self.world_size,
                timeout=_COLLECTIVE,
            )
        )

    def exchange(self, values: Sequence[float]) -> list[list[float]]:
        count = len(values)
        pieces = self._share(f"exchange of {count} numbers", struct.pack(f"<{count}d", *values))
        return [list(struct.unpack(f"<{count}d", piece)) for piece in pieces]

    def gather(self, value: Any) -> list[Any]:
        return [json.loads(piece) for piece in self._share("gather", json.dumps(value).encode())]

    def _share(self, what: str, data: bytes) -> list[bytes]:
        """The data of every rank. All small messages have one form and one size: who is out of step is found by it.

        Of collectives of different sizes, gloo ends the process or gives garbage. Raises TrainerError.
        """
        self._shared += 1
        kind = zlib.crc32(f"{self._shared} {what}".encode()).to_bytes(_KIND_BYTES, "little")
        rows = self._gather_bytes(kind + data, _SMALL_BYTES)
        differing = [rank for rank, (_, piece) in enumerate(rows) if piece[:_KIND_BYTES] != kind]
        if differing:
            raise TrainerError(
                f"rank {self.rank} came to its {what}, rank {differing[0]} to something else.",
                where=f"what the ranks do together, number {self._shared}",
                hint="Call ctx.ranks on all ranks in the same order, and judge only what is the same on all of them.",
            )
        longest = max(size for size, _ in rows)
        if longest > _SMALL_BYTES:
            rows = self._gather_bytes(kind + data, longest)
        return [piece[_KIND_BYTES:] for _, piece in rows]

    def _gather_bytes(self, data: bytes, room: int) -> list[tuple[int, bytes]]:
        """The length of each rank's data, and as much of it as there is room for."""
        given = torch.zeros(8 + room, dtype=torch.uint8)
        head = len(data).to_bytes(8, "little") + data[:room]
        given[: len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
        rows = torch.empty(self.world_size * len(given), dtype=torch.uint8)
        self._call(lambda: _all_gather(rows, given))
        found = []
        for row in rows.view(self.world_size, len(given)).numpy():
            size = int.from_bytes(row[:8].tobytes(), "little")
            found.append((size, row[8 : 8 + min(size, room)].tobytes()))
        return found

    def sum_(self, tensors: Sequence[torch.Tensor], *, have_met: bool = False) -> None:
        if not have_met:
            self._share(f"sum of {[(str(one.dtype), one.numel()) for one in tensors]}", b"")
        # one flat tensor of each kind, always laid out alike: in a ring, the order of a sum depends on the place
        for alike in _by_kind(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in alike])
            self._call(lambda flat=flat: dist.all_reduce(flat))  # type: ignore[misc]  # a lambda cannot be annotated
            _unflatten(flat, alike)

    def copy_from_first(self, tensors: Sequence[torch.Tensor]) -> None:
        for alike in _by_kind(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in alike])
            # as bytes: not every backend knows every type of number
            self._call(lambda flat=flat: dist.broadcast(flat.view(torch.uint8), 0))  # type: ignore[misc]  # as above
            if self.rank:
                _unflatten(flat, alike)

    def disconnect(self) -> None:
        """Break the connections of the collectives, if there are any: whoever waits in one is woken by an error."""
        if self._is_open:
            self._is_open = False
            with contextlib.suppress(RuntimeError, AssertionError, ValueError):
                dist.destroy_process_group()

    def _call(self, collective: Callable[[], Any]) -> None:
        self.is_waiting = True
        try:
            collective()
        except (RuntimeError, ValueError) as error:
            if self._is_open and not _is_broken(error):
                raise
            self._explain(error)
        finally:
            self.is_waiting = False

    def _explain(self, error: BaseException) -> NoReturn:
        """Raise why a collective broke: another rank's failure, or who is lost."""
        self.disconnect()
        others = [rank for rank in range(self.world_size) if rank != self.rank]
        silence = Silence(self, others, min(self.silence_s, _BROKEN_S))
        deadline_s = time.monotonic() + 2 * _BROKEN_S
        while time.monotonic() < deadline_s:
            if failure := self.failure():
                raise failure from error
            silence.check()
            if self.hear_now("end") is not None:
                raise PeerFailed(0, "crashed", "it ended while the others went on.") from error
            time.sleep(_POLL_S)
        first = (str(error).splitlines() or [""])[0]
        raise RankLost(f"the connection between the ranks broke: {first}") from error


class Silence:
    """Watches for signs of life of some ranks, by its own clock: no two clocks are ever compared."""

    def __init__(self, ranks: Ranks, of: Sequence[int], limit_s: float) -> None:
        self._ranks, self._limit_s = ranks, limit_s
        self._heard = {rank: (time.monotonic(), ranks.beat_of(rank)) for rank in of}

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
            if (newest := self._ranks.beat_of(rank)) != last:
                self._heard[rank] = (now_s, newest)
        silent = [rank for rank, (heard_s, _) in self._heard.items() if now_s - heard_s > self._limit_s]
        if silent:
            names = f"rank {silent[0]}" if len(silent) == 1 else f"ranks {', '.join(map(str, silent))}"
            raise RankLost(f"{names} gave no sign of life for {self._limit_s:g} s.")


def join(world: World, until: Callable[[], None]) -> Ranks:
    """Meet the other ranks at the store. Calls `until` while waiting, which may raise.

    Raises RankLost naming those that did not come.
    """
    assert world.world_size > 1, "a world of one has nobody to meet"
    deadline_s = time.monotonic() + _JOIN_S
    store = _store(world, until, deadline_s)
    ranks = Ranks(world, store)
    ranks.beat()
    missing = set(range(world.world_size))
    while missing := {rank for rank in missing if ranks.beat_of(rank) is None}:
        try:
            until()
        except Stopped as error:
            ranks.fail(error.outcome, str(error))  # the others would wait for its first sign of life
            raise
        if failure := ranks.failure():
            raise failure
        if time.monotonic() > deadline_s:
            raise RankLost(f"rank {min(missing)} of {world.world_size} did not come within {_JOIN_S:g} s.")
        time.sleep(_POLL_S)
    return ranks


def _store(world: World, until: Callable[[], None], deadline_s: float) -> Any:
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


# its newer name; the older one warns where there is a newer
_all_gather: Callable[[torch.Tensor, torch.Tensor], Any] = getattr(
    dist, "all_gather_single", dist.all_gather_into_tensor
)


def _is_broken(error: BaseException) -> bool:
    """Whether a collective failed because of the others or the network, and not because of what it was given."""
    said = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in said for word in ("gloo", "connection", "socket", "store"))


def _by_kind(tensors: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    kinds: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    return list(kinds.values())


def _unflatten(flat: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
    pieces = torch.split(flat, [tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [piece.view(one.shape) for piece, one in zip(pieces, tensors, strict=True)])
