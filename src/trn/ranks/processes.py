"""The ranks of a run as processes: how they meet, and what they do together.

    join(world)      meet at the store: nothing here takes part in the training yet
    tell / hear      rank 0 says what the job is; the others wait for it, and for its ending
    open             connect for collectives
    exchange, gather, sum_, copy_from_first     in lockstep, by all ranks in the same order
    fail, end        the first that fails is remembered; rank 0's ending is everybody's

Two channels. The words of `trn.ranks.words` may be read at any time; the *collectives* move numbers and tensors. A rank
that fails says so in words and then breaks its connections, which wakes all that wait for it in a collective.
"""

from __future__ import annotations

import contextlib
import json
import struct
import time
import zlib
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from trn.errors import PeerFailed, RankLost, Stopped, TrainerError
from trn.ranks import World
from trn.ranks.group import Group
from trn.ranks.words import BROKEN_S, POLL_S, Silence, Words, open_store

__all__ = ["Ranks", "join"]

_JOIN_S = 300.0
"""How long the ranks wait for each other at the start, before anything of a run exists."""
_KIND_BYTES = 4
_SMALL_BYTES = 2048
"""What a gather moves in one collective; longer values need a second one."""
_COLLECTIVE = timedelta(days=1)
"""Nobody's limit: a rank that is lost is found by its silence, one that hangs by limits.hang_seconds."""


class Ranks(Words, Group):
    """A world of several processes.

    Raises PeerFailed where another rank said why it failed, RankLost naming those that gave no sign of life for
    `silence_s` seconds.
    """

    def __init__(self, world: World, store: Any) -> None:
        super().__init__(world, store)
        self.is_waiting = False
        """Whether this rank is in a collective just now."""
        self._shared = 0
        """How many small messages were shared."""
        self._is_open = False

    def fail(self, status: str, reason: str) -> None:
        """Say why this rank cannot go on, unless another said so before; and wake those that wait for it."""
        super().fail(status, reason)
        self.disconnect()

    def end(self, exit_status: int) -> None:
        """Rank 0 says how the job ended; from then on everybody leaves with the same exit status."""
        super().end(exit_status)
        self.disconnect()

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
        silence = Silence(self, others, min(self.silence_s, BROKEN_S))
        deadline_s = time.monotonic() + 2 * BROKEN_S
        while time.monotonic() < deadline_s:
            if failure := self.failure():
                raise failure from error
            silence.check()
            if self.hear_now("end") is not None:
                raise PeerFailed(0, "crashed", "it ended while the others went on.") from error
            time.sleep(POLL_S)
        first = (str(error).splitlines() or [""])[0]
        raise RankLost(f"the connection between the ranks broke: {first}") from error


def join(world: World, until: Callable[[], None]) -> Ranks:
    """Meet the other ranks at the store. Calls `until` while waiting, which may raise.

    Raises RankLost naming those that did not come.
    """
    assert world.world_size > 1, "a world of one has nobody to meet"
    deadline_s = time.monotonic() + _JOIN_S
    store = open_store(world, until, deadline_s)
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
        time.sleep(POLL_S)
    return ranks


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
