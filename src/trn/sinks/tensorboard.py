"""TensorBoard's event files, by tensorboardX: the curves, the plan as text, its settings as hyperparameters.

One record a metrics line, in a file that only this process writes. What the run took back is taken back by a start
mark, which TensorBoard reads as "forget all from this step on"; a target that is begun anew loses the files that were
written here before, and no others. The time of a point is when it was written here.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from trn.errors import StorageError
from trn.files import make_folder, remove
from trn.records import pretty_json
from trn.sinks.curves import CURVE_FILES, flat_params, lines_up_to, points
from trn.sinks.sink import Curve, CurveSink, Json, RunFacts, Unreachable
from trn.sinks.targets import Target

__all__ = ["TensorBoardSink", "open_tensorboard"]

_SUFFIX = ".trn"


def open_tensorboard(target: Target, run: RunFacts) -> CurveSink:
    """A sink into `<PATH>/<run_id>`, so that several runs may share a PATH; without one, into the run's folder.

    Raises ImportError where tensorboardX is not installed.
    """
    folder = Path(target.path) / run.run_id if target.path else run.run_dir / "tensorboard"
    return TensorBoardSink(folder, run)


class TensorBoardSink(CurveSink):
    """Files `events.out.tfevents.TIME.HOST.NUMBER.trn` in `folder`, a new one for each `begin` and `cut`."""

    def __init__(self, folder: Path, run: RunFacts) -> None:
        self._library = _load()
        self._folder, self._run = folder, run
        self._writer: Any = None

    def begin(self, from_step: int) -> None:
        with _told():
            self._end_file()
            make_folder(self._folder)
            if not from_step:
                for path in self._files():
                    remove(path)
            is_empty = not self._files()
            self._start_file(from_step, is_cut=not is_empty)
            self._describe(from_step)
            if is_empty:  # somebody removed what was here
                for kind in CURVE_FILES:
                    self._add(kind, lines_up_to(self._run.reports, kind, from_step))
            self._writer.flush()

    def write(self, kind: Curve, lines: Sequence[Json]) -> None:
        with _told():
            self._add(kind, lines)
            self._writer.flush()

    def cut(self, step: int) -> None:
        with _told():
            self._end_file()
            self._start_file(step, is_cut=True)
            self._writer.flush()

    def close(self) -> None:
        with contextlib.suppress(Unreachable), _told():
            self._end_file()

    def _files(self) -> list[Path]:
        return sorted(path for path in self._folder.glob(f"events.out.tfevents.*{_SUFFIX}") if path.is_file())

    def _start_file(self, step: int, *, is_cut: bool) -> None:
        # TensorBoard reads files in the order of their names, which have the second they were made in
        number = 1 + max((int(path.name.split(".")[-2]) for path in self._files()), default=0)
        self._writer = self._library.EventsWriter(str(self._folder / "events"), f".{number:06d}{_SUFFIX}")
        if is_cut:
            session = self._library.SessionLog
            mark = self._library.Event(wall_time=time.time(), step=step + 1, session_log=session(status=session.START))
            self._writer.write_event(mark)

    def _add(self, kind: Curve, lines: Iterable[Json]) -> None:
        event, summary = self._library.Event, self._library.Summary
        for line in lines:
            values = [summary.Value(tag=tag, simple_value=value) for tag, value in points(kind, line).items()]
            self._writer.write_event(event(wall_time=time.time(), step=line["step"], summary=summary(value=values)))

    def _describe(self, step: int) -> None:
        library, params = self._library, flat_params(self._run.plan)
        fence = "```"
        text = library.summary.text("plan", f"{fence}\n{pretty_json(params).decode()}{fence}")
        experiment, session, _ = library.summary.hparams(params, {"train/loss": 0.0, "val/loss": 0.0})
        for summary in (text, experiment, session):
            self._writer.write_event(library.Event(wall_time=time.time(), step=step, summary=summary))

    def _end_file(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """An error of the disk, in the relay's words."""
    try:
        yield
    except (OSError, StorageError) as error:
        raise Unreachable(str(error)) from error


def _load() -> Any:
    """What is used of tensorboardX, without torch and boto3, which it takes where it finds them, and does not need."""
    unwanted = [name for name in ("torch", "boto3") if name not in sys.modules]
    modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]  # None: as if it were not there
    modules.update(dict.fromkeys(unwanted))
    try:
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary
    finally:
        for name in unwanted:
            modules.pop(name, None)
    return SimpleNamespace(
        summary=summary, EventsWriter=EventsWriter, Event=Event, SessionLog=SessionLog, Summary=Summary
    )
