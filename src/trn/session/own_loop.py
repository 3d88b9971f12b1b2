"""What plan, checkpoint and evaluation see in the place of a trainer: the module that has the loop."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from trn.feed.tensors import to_tensors
from trn.session.tracked import Tracked

if TYPE_CHECKING:
    import pyarrow as pa

    from trn.trainer import Context, StepResult

__all__ = ["Caller", "Evaluate", "OwnLoop", "caller_of", "stand_in_for"]

Evaluate = Callable[[Iterator[Any]], Mapping[str, Any]]


@dataclass(frozen=True)
class Caller:
    """Which module has the loop, and its file; a notebook has none."""

    module: str
    file: Path | None


def caller_of(frame: FrameType) -> Caller:
    """The module whose code runs in `frame`; it has a file only where this code is in it, and not in a string."""
    name = frame.f_globals.get("__name__", "__main__")
    module = sys.modules.get(name) or sys.modules["__main__"]
    file = getattr(module, "__file__", None)
    is_there = file is not None and _is_same(frame.f_code.co_filename, file)
    return Caller(module.__name__, Path(file) if file and is_there else None)


def _is_same(one: str, other: str) -> bool:
    with contextlib.suppress(OSError):
        return one == other or os.path.samefile(one, other)
    return False


class OwnLoop:
    """A trainer without hooks of its own: the loop calls the run, not the run the loop."""

    evaluation: Evaluate | None = None
    has_file = True
    takes_rows = False
    """Whether the loop is given rows instead of tensors: then its evaluation is too."""

    def evaluate(self, batches: Iterable[pa.RecordBatch], state: Tracked, ctx: Context) -> Mapping[str, Any]:
        assert self.evaluation is not None, "a run with validation does not begin without"
        return self.evaluation(iter(batches) if self.takes_rows else map(to_tensors, batches))

    def state_dict(self, state: Tracked) -> dict[str, Any]:
        return state.state_dict()

    def load_state_dict(self, state: Tracked, payload: dict[str, Any], ctx: Context) -> None:
        _not_called()

    def setup(self, ctx: Context) -> None:
        _not_called()

    def configure(self, ctx: Context) -> Any:
        _not_called()

    def prepare_batch(self, raw_batch: pa.RecordBatch, state: Any, ctx: Context) -> Any:
        _not_called()

    def train_step(self, batch: Any, state: Any, ctx: Context) -> StepResult:
        _not_called()


def stand_in_for(caller: Caller) -> OwnLoop:
    """A trainer whose class lies where the loop does: the plan records its module, and the digest of that code."""
    place = {"__module__": caller.module, "__qualname__": caller.file.name if caller.file else "loop"}
    stand_in: OwnLoop = type("OwnLoop", (OwnLoop,), place)()
    stand_in.has_file = caller.file is not None
    return stand_in


def _not_called() -> NoReturn:
    raise AssertionError("the loop is the user's own")
