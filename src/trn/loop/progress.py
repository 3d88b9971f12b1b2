"""How far a run has come: with the trainer's state and the random streams, all that must survive a restart."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Self

from trn.feed import Cursor
from trn.gates import EpochTally, GateState
from trn.records import Json, JsonError

__all__ = ["Progress"]


@dataclass
class Progress:
    """Moved forward by the loop alone. What is not listed here is not saved.

    `cursor` is the feed's position: the next batch, never one that was only prefetched. `settled` is the
    last step whose evaluation and sample were done, so that a stop in the middle of them is made good on resume.
    `best` is `{"step", "metric", "value"}`.
    """

    step: int = 0
    cursor: Cursor | None = None
    tokens_seen: int | None = None
    settled: int = 0
    best: Json | None = None
    validation: Json | None = None
    """The last validation's metrics and its step."""
    gates: GateState = field(default_factory=GateState)
    """All that the gates remember."""
    tally: EpochTally = field(default_factory=EpochTally)
    """The steps of the epoch under way; at the end of an epoch, of the one that is over."""
    holds_back: bool = False
    """Whether the current step asked for no emission; what its cadences owe then comes later, see trn.loop.control."""
    held_back: int = 0
    """How many steps in a row directly before it did."""

    def to_json(self) -> Json:
        value = {**asdict(self), "cursor": None if self.cursor is None else self.cursor.to_json()}
        return {key: one for key, one in value.items() if one or key not in _LEFT_OUT}

    @classmethod
    def from_json(cls, value: Json) -> Self:
        """Raises JsonError for missing, unknown or ill-typed fields."""
        value = {**_LEFT_OUT, **value}
        if set(value) != set(cls.__dataclass_fields__):
            raise JsonError("progress: its keys are not those of this version")
        tokens_seen = 0 if value["tokens_seen"] is None else value["tokens_seen"]
        numbers = (value["step"], value["settled"], tokens_seen, value["held_back"])
        records = (value["cursor"], value["best"], value["validation"])
        if (
            not all(type(one) is int and one >= 0 for one in numbers)
            or not all(one is None or isinstance(one, dict) for one in records)
            or type(value["holds_back"]) is not bool
        ):
            raise JsonError("progress: a field is of the wrong type")
        parts = {"gates": GateState.from_json(value["gates"]), "tally": EpochTally.from_json(value["tally"])}
        cursor = None if value["cursor"] is None else Cursor.from_json(value["cursor"])
        return cls(**(value | parts | {"cursor": cursor}))

    @property
    def best_step(self) -> int | None:
        return None if self.best is None else int(self.best["step"])


_LEFT_OUT: Json = {"holds_back": False, "held_back": 0}
"""Keys that are not there where they say nothing, as in all checkpoints of runs that hold nothing back."""
