"""What of a run's folder is still to be sent: found on the disk, and in the run's events where that has forgotten it.

A checkpoint is found by its meta, which commits it; one that the events told of and that was pruned before it could
be sent is counted. Samples are found by their events: how far those were read is kept only up to the first sample that
is still to be sent, so that the next start finds it again.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trn.checkpoint.meta import checkpoint_name, listed_steps, meta_name
from trn.sinks.reader import EventReader, first_mark
from trn.worker.upload_artifacts import Changed, Checkpoint, Gone, Sample, read_meta
from trn.worker.upload_spool import Endpoints, Spool

__all__ = ["Queue"]

Json = dict[str, Any]
Item = Checkpoint | Sample

_EVENTS = 256
_SAMPLES = "samples/"


class Queue:
    """Items in the order in which they were made. For one thread; `look` finds what is new."""

    def __init__(self, run_dir: Path, endpoints: Endpoints, spool: Spool, resumed: Callable[[int, int], None]) -> None:
        """`resumed` is told the seq of each such event, and the step that it went back to."""
        self._run_dir, self._endpoints, self._spool, self._resumed = run_dir, endpoints, spool, resumed
        self._events = EventReader(run_dir / "reports" / "events.jsonl")
        self._is_known = False
        self._metas: dict[int, tuple[int, int, int]] = {}
        self._checkpoints: dict[int, Checkpoint] = {}
        self._samples: dict[str, tuple[Sample, int, int]] = {}
        """By name, in the order of their events; with each, the place before its event."""
        self._turns: deque[Sample] = deque()
        """In which order they are sent; those that are over leave it when it is their turn."""
        self._announced: dict[tuple[str, str], int] = {}
        self._set_back: dict[Checkpoint, int] = {}
        self._unreadable: dict[str, str] = {}
        self._given_up: dict[Item, str] = {}
        self._closed: dict[type[Item], str] = {}

    def look(self, *, keep: Item | None = None) -> bool:
        """Find what is new; False where the run has not begun. `keep` is being sent, wherever its files are now.

        Raises OSError, StorageError.
        """
        if not self._identify():
            return False
        self._read_events()
        if self._endpoints.checkpoint:
            self._scan(keep)
            self._count_pruned()
        reached = self._events.seq, self._events.offset
        _, seq, offset = next(iter(self._samples.values()), (None, *reached))
        self._spool.note(seq=seq, offset=offset)
        return True

    def _identify(self) -> bool:
        """See that what is known is of this run, and not of one that was removed and had its name."""
        if self._is_known:
            return True
        mark = first_mark(self._events.path)
        if not mark:
            return False
        if self._spool.state.journal not in ("", mark):
            self._spool.begin_anew(mark)
        self._spool.save(journal=mark)
        self._events.seek(self._spool.state.seq, self._spool.state.offset)
        self._is_known = True
        return True

    def _read_events(self) -> None:
        while True:
            place = self._events.seq, self._events.offset
            events = self._events.read(_EVENTS)
            for event in events:
                self._take(event, *place)
            if not events:
                return

    def _take(self, event: Json, seq: int, offset: int) -> None:
        """An event that comes after the place `seq`, `offset`."""
        kind, step = event.get("event"), event.get("step")
        if kind == "resumed" and isinstance(back := event.get("from_step"), int):
            self._resumed(int(event["seq"]), back)
        elif kind == "checkpoint" and isinstance(step, int) and self._endpoints.checkpoint:
            self._announced[str(event.get("file")), str(event.get("sha256"))] = step
        elif kind == "sample" and isinstance(step, int) and self._endpoints.sample:
            paths = event.get("paths")
            for path in paths if isinstance(paths, list) else ():
                name = str(path).removeprefix(_SAMPLES)
                if name and "/" not in name and name not in (".", ".."):
                    self._add_sample(Sample(step, name, int(event["seq"])), seq, offset)

    def _add_sample(self, sample: Sample, seq: int, offset: int) -> None:
        if (before := self._samples.pop(sample.name, None)) is not None:
            self._given_up.pop(before[0], None)
        self._samples[sample.name] = (sample, seq, offset)
        self._turns.append(sample)

    def _scan(self, keep: Item | None) -> None:
        folder = self._run_dir / "checkpoints"
        steps = set(listed_steps(folder))
        unreadable: dict[str, str] = {}
        for step in sorted(steps):
            try:
                status = os.stat(folder / meta_name(step))
                seen = status.st_ino, status.st_mtime_ns, status.st_size
                if self._metas.get(step) == seen:
                    continue
                found, _ = read_meta(folder, step)
            except (Gone, FileNotFoundError):
                continue
            except Changed as error:
                unreadable[checkpoint_name(step)] = str(error)
                continue
            self._metas[step] = seen
            if (before := self._checkpoints.get(step)) is not None:
                self._given_up.pop(before, None)  # which is there no more
            if self._spool.has(found.meta):
                self._checkpoints.pop(step, None)
            else:
                self._checkpoints[step] = found
        self._unreadable = unreadable
        for step in set(self._checkpoints) - steps:
            if self._checkpoints[step] != keep:
                self.gone(self._checkpoints[step])

    def again(self, step: int) -> None:
        """Let the next look find the checkpoint of a step as if it had just been made."""
        self._metas.pop(step, None)

    def _count_pruned(self) -> None:
        for (name, sha256), step in self._announced.items():
            here = self._checkpoints.get(step)
            if ("checkpoint", name, sha256) not in self._spool.accepted and (here is None or here.sha256 != sha256):
                self._spool.skip("checkpoint", name, step, sha256)
        self._announced.clear()

    def next(self, kind: type[Item], final_sha256: str | None) -> Item | None:
        """What is to be sent next; the final checkpoint first, and last what was set back most often."""
        if kind in self._closed:
            return None
        if kind is Sample:
            while self._turns and (self._turns[0] in self._given_up or not self._is_current(self._turns[0])):
                self._turns.popleft()
            return self._turns[0] if self._turns else None
        found = [item for item in self._checkpoints.values() if item not in self._given_up]
        return min(found, key=lambda item: self._rank(item, final_sha256), default=None)

    def _is_current(self, item: Sample) -> bool:
        return self._samples.get(item.name, (None,))[0] == item

    def _rank(self, item: Checkpoint, final_sha256: str | None) -> tuple[int, bool, int]:
        return self._set_back.get(item, 0), item.sha256 != final_sha256, item.step

    @property
    def failed(self) -> dict[str, str]:
        """What cannot be sent or was given up, by name, and why."""
        closed = {"checkpoints" if kind is Checkpoint else "samples": why for kind, why in self._closed.items()}
        given_up = {item.name: why for item, why in self._given_up.copy().items()}
        return {**self._unreadable, **given_up, **closed}

    def give_up(self, item: Item, reason: str) -> None:
        here = (
            self._samples.get(item.name, (None,))[0] if isinstance(item, Sample) else self._checkpoints.get(item.step)
        )
        if here == item:  # else another has come in its place
            self._given_up[item] = reason

    def give_up_all(self, kind: type[Item], reason: str) -> None:
        """Of this kind nothing will be taken."""
        self._closed[kind] = reason

    def pending(self) -> int:
        """How many items are neither accepted nor given up."""
        items: list[Item] = [] if Checkpoint in self._closed else list(self._checkpoints.values())
        if Sample not in self._closed:
            items += [sample for sample, _, _ in list(self._samples.values())]
        return sum(item not in self._given_up for item in items)

    def done(self, item: Item) -> None:
        """All of it was accepted."""
        if isinstance(item, Checkpoint):
            self._drop_checkpoint(item)
        elif self._is_current(item):
            del self._samples[item.name]

    def gone(self, item: Item) -> None:
        """It went away before it could be sent."""
        self._spool.skip(
            "sample" if isinstance(item, Sample) else "checkpoint",
            item.name,
            item.step,
            "" if isinstance(item, Sample) else item.sha256,
        )
        self.done(item)

    def _drop_checkpoint(self, item: Checkpoint) -> None:
        if self._checkpoints.get(item.step) == item:
            del self._checkpoints[item.step]

    def set_back(self, item: Item) -> None:
        """Others are sent first."""
        if isinstance(item, Checkpoint):
            self._set_back[item] = self._set_back.get(item, 0) + 1
        else:
            self._turns.append(item)
            self._turns.popleft()
