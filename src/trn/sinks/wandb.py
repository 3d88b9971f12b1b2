"""An offline folder of Weights & Biases, by its own library, which never opens a connection here.

    <runs_dir>/.trn/wandb/offline-run-<stamp>-<run_id>/      `wandb sync` sends it, when its owner wants

Such a folder can only grow: what the run took back could not be taken back in it, nor is it known what a killed process
got into it. So each `begin` and `cut` writes it anew from the run's files, and there is one folder for a run.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from trn.errors import StorageError
from trn.files import make_folder, remove_tree
from trn.records import Json
from trn.sinks.curves import CURVE_FILES, flat_params, lines_up_to, points, run_state
from trn.sinks.sink import Curve, CurveSink, Refused, RunFacts, Unreachable
from trn.sinks.targets import Target

__all__ = ["WandbSink", "open_wandb"]

_SETTINGS = {
    "mode": "offline",
    "silent": True,
    "console": "off",
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    "symlink": False,
    # unknown to some versions, and then left out
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
}
"""It records what it is given, and nothing of this machine: the run's own records say that, without secrets."""


_open: set[WandbSink] = set()
"""The sinks of this process that are open: the library has one process for all of them."""
_closing = threading.Lock()


def open_wandb(target: Target, run: RunFacts) -> CurveSink:
    """A sink into `PATH/wandb`, without a PATH beside the runs; the project is `?project=`, else `trn`.

    Raises ImportError where wandb is not installed, Refused for a PATH in the run's own folder.
    """
    folder = Path(target.path) if target.path else run.run_dir.parent / ".trn"
    if folder.resolve().is_relative_to(run.run_dir.resolve()):
        # its process makes symbolic links, and a run that has one in its folder is not gone on with
        raise Refused("it lies in the run's own folder: name one elsewhere", of_target=True)
    return WandbSink(folder, target.options.get("project", "trn"), run)


class WandbSink(CurveSink):
    """One offline run, whose id is the run's."""

    def __init__(self, folder: Path, project: str, run: RunFacts) -> None:
        self._library = _load(folder / "wandb")
        self._folder, self._project, self._facts = folder, project, run
        self._run: Any = None
        self._has: dict[Curve, int] = {}

    def begin(self, from_step: int) -> None:
        with _closing:
            _open.add(self)
        with _told():
            self._finish(exit_code=0)
            for old in self._old_folders():
                remove_tree(old)
            make_folder(self._folder / "wandb")
            known = set(self._library.Settings.model_fields)
            settings = {name: value for name, value in _SETTINGS.items() if name in known}
            self._run = self._library.init(
                dir=str(self._folder),
                project=self._project,
                id=self._facts.run_id,
                name=self._facts.run_id,
                config=flat_params(self._facts.plan),
                reinit="create_new",
                settings=self._library.Settings(**settings),
            )
            if not self._run.offline:
                raise Refused("wandb would not stay offline", of_target=True)
            self._run.define_metric("step", hidden=True)
            self._has = dict.fromkeys(CURVE_FILES, 0)
            for kind in CURVE_FILES:
                self._run.define_metric(f"{kind}/*", step_metric="step")
                self._log(kind, lines_up_to(self._facts.reports, kind, from_step))

    def write(self, kind: Curve, lines: Sequence[Json]) -> None:
        with _told():
            self._log(kind, lines)

    def cut(self, step: int) -> None:
        if max(self._has.values()) > step:
            self.begin(step)

    def close(self) -> None:
        _, exit_code = run_state(self._facts.run_dir)
        with contextlib.suppress(Unreachable, Refused), _told():
            self._finish(exit_code=1 if exit_code is None else exit_code)
        with _closing:
            _open.discard(self)
            if not _open:
                with contextlib.suppress(Unreachable), _told():
                    # its own process writes the files; only the end of that one waits until they are written
                    self._library.teardown()

    def _log(self, kind: Curve, lines: Iterable[Json]) -> None:
        """By a step of our own: by theirs, a validation that comes after later steps would be left out."""
        for line in lines:
            self._run.log({"step": line["step"], **points(kind, line)})
            self._has[kind] = line["step"]

    def _finish(self, *, exit_code: int) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.finish(exit_code=exit_code)

    def _old_folders(self) -> list[Path]:
        found = self._folder.glob(f"wandb/offline-run-*-{self._facts.run_id}")  # an id holds nothing that glob reads
        return [path for path in found if _id_in(path.name) == self._facts.run_id and not path.is_symlink()]


def _id_in(name: str) -> str:
    """The id in `offline-run-20261122_120000-ID`."""
    return name.removeprefix("offline-run-").partition("-")[2]


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What goes wrong, in the relay's words."""
    try:
        yield
    except (Refused, Unreachable):
        raise
    except (OSError, StorageError) as error:
        raise Unreachable(str(error)) from error
    except Exception as error:  # the library's own, and those of the process that it starts
        raise Unreachable(f"{type(error).__name__}: {error}".partition("\n")[0]) from error


def _load(folder: Path) -> Any:
    """wandb, which reads these when it is imported: reports no errors home, keeps what it keeps in its own folder."""
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    os.environ["WANDB_MODE"] = "offline"
    for name in ("CACHE", "CONFIG", "DATA"):
        os.environ.setdefault(f"WANDB_{name}_DIR", str(folder / ".library"))
    import wandb

    return wandb
