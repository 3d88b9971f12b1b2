"""TRAINER_CHECKPOINTS_DIR and TRAINER_SAMPLES_DIR, filled with what the run has committed.

    <run>/checkpoints/step-N.pt, step-N.files/, then step-N.meta.json ──copied, hash compared──> the same names there
    <run>/samples/*                                                   ──copied─────────────────> the same names there
    what the run has pruned                                           ──meta first─────────────> removed there too

They are copies, so that nothing that is done to them can harm the run, whose own folder is what a resume reads. Only
files of this run's own names are ever replaced or removed. A folder that holds checkpoints of another run is refused:
two runs in one place cannot be told apart by who collects them.

The trainer writes where these are read, and the worker can read what the trainer cannot, its own variables in /proc
first: no link is followed below the run's folder, and what has another hash than its meta says never gets its name.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from trn.checkpoint.meta import CheckpointMeta, listed_steps, meta_name
from trn.errors import StorageError
from trn.files import TEMP_MARK, atomic_file, make_folder, remove, remove_tree, sweep, write_atomic
from trn.records import JsonError, read_json
from trn.worker.plain import open_plain
from trn.worker.refusal import StartupRefused

__all__ = ["HandingOut", "refuse_unfit_folders"]

_LOOK_EVERY_S = 0.5
_LONGEST_PAUSE_S = 60.0
"""After copies that failed: a full disk is not filled again and again beside a run that goes on."""
_CHUNK_BYTES = 1 << 20


class HandingOut:
    """Copies from the folder of a run, from `start` to `end`; a folder that is None is not filled.

    A copy that fails is tried again, more and more seldom, and costs the run nothing.
    """

    def __init__(self, run_dir: Path, run_id: str, *, checkpoints: Path | None, samples: Path | None) -> None:
        self._from, self._run_id = run_dir, run_id
        self._checkpoints, self._samples = checkpoints, samples
        self._sizes: dict[str, tuple[int, int]] = {}
        self._metas: dict[int, tuple[int, int]] = {}
        """Of the checkpoints that this worker has looked at: which file their meta was. A resume makes steps anew."""
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trn-handing-out", daemon=True)

    def start(self) -> None:
        for folder in (self._checkpoints, self._samples):
            if folder is not None:
                make_folder(folder)
                sweep(folder)
        self._thread.start()

    def end(self) -> None:
        """Hand out the rest. Raises StorageError for what could not be handed out, now."""
        self._is_over.set()
        self._thread.join()
        if (problem := self._look()) is not None:
            raise problem

    def _run(self) -> None:
        pause_s = _LOOK_EVERY_S
        while not self._is_over.wait(pause_s):
            pause_s = _LOOK_EVERY_S if self._look() is None else min(2 * pause_s, _LONGEST_PAUSE_S)

    def _look(self) -> StorageError | None:
        """What could not be done."""
        problem = None
        for folder, hand_out in ((self._checkpoints, self._hand_checkpoints), (self._samples, self._hand_samples)):
            if folder is not None:
                try:
                    hand_out(folder)
                except StorageError as error:
                    problem = problem or error
                except OSError as error:
                    said = f"cannot be handed out: {error.strerror or error}."
                    problem = problem or StorageError(said, where=str(error.filename or folder))
        return problem

    def _hand_checkpoints(self, target: Path) -> None:
        source = self._from / "checkpoints"
        here = listed_steps(source)
        try:
            for step in sorted(here):
                with contextlib.suppress(FileNotFoundError):  # pruned meanwhile
                    status = os.lstat(source / meta_name(step))
                    found = status.st_ino, status.st_mtime_ns
                    if self._metas.get(step) != found:
                        self._hand_checkpoint(source, target, step)
                        self._metas[step] = found
        finally:  # where the disk is full, this is what makes room
            for step in sorted(set(listed_steps(target)) - set(listed_steps(source))) if here else ():
                self._withdraw(target, step)
                self._metas.pop(step, None)

    def _hand_checkpoint(self, source: Path, target: Path, step: int) -> None:
        with open_plain(source, meta_name(step)) as stream:
            meta_bytes = stream.read()
        if (there := _bytes_of(target / meta_name(step))) == meta_bytes:
            return
        try:
            meta = CheckpointMeta.read(source / meta_name(step))
        except JsonError:
            return  # the resume will reject it, and so do we
        if there is not None:
            self._withdraw(target, step)  # its meta would stand beside other bytes
        try:
            _copy(source, meta.file, target / meta.file, meta.sha256)
            for one in meta.files or ():
                name = f"{meta.folder}/{one['path']}"
                make_folder((target / name).parent)
                _copy(source, name, target / name, one["sha256"])
        except _Changed:
            return
        write_atomic(target / meta_name(step), meta_bytes)

    def _withdraw(self, target: Path, step: int) -> None:
        if _run_of(target / meta_name(step)) != self._run_id:
            return
        remove(target / meta_name(step))
        remove(target / f"step-{step:08d}.pt")
        if (folder := target / f"step-{step:08d}.files").is_dir():
            remove_tree(folder)

    def _hand_samples(self, target: Path) -> None:
        source = self._from / "samples"
        for path in _files_below(source):
            with contextlib.suppress(FileNotFoundError):  # a resume went back behind it
                status = path.lstat()
                key, seen = str(path), (status.st_size, status.st_mtime_ns)
                if self._sizes.get(key) == seen:
                    continue
                name = path.relative_to(source)
                make_folder((target / name).parent)
                _copy(source, str(name), target / name)
                self._sizes[key] = seen


def refuse_unfit_folders(
    run_dir: Path, run_id: str, *, checkpoints: Path | None, samples: Path | None, events: Path | None
) -> None:
    """Raise StartupRefused where what is handed out cannot go where the environment says."""
    for folder, name in ((checkpoints, "TRAINER_CHECKPOINTS_DIR"), (samples, "TRAINER_SAMPLES_DIR")):
        if folder is None:
            continue
        if folder.exists() and not folder.is_dir():
            raise StartupRefused("invalid_artifact_paths", f"{folder} is no folder.", where=name)
        real, run = Path(os.path.realpath(folder)), Path(os.path.realpath(run_dir))
        if real == run or real.is_relative_to(run) or run.is_relative_to(real):
            raise StartupRefused(
                "invalid_artifact_paths",
                f"{folder} and the run's own folder {run_dir} lie in each other.",
                where=name,
                hint="Name a folder beside it: it gets copies.",
            )
    if checkpoints is not None and samples is not None and os.path.realpath(checkpoints) == os.path.realpath(samples):
        raise StartupRefused(
            "invalid_artifact_paths", "it is the folder of the checkpoints too.", where="TRAINER_SAMPLES_DIR"
        )
    if events is not None and Path(os.path.realpath(events)).is_relative_to(os.path.realpath(run_dir)):
        raise StartupRefused(
            "invalid_artifact_paths",
            "it lies in the run's own folder, which has a journal of its own.",
            where="TRAINER_EVENTS_PATH",
        )
    if checkpoints is not None:
        _refuse_another_run(checkpoints, run_id)


def _refuse_another_run(folder: Path, run_id: str) -> None:
    for step in listed_steps(folder):
        other = _run_of(folder / meta_name(step))
        if other != run_id:
            found = f"a checkpoint of the run {other!r}" if other else "a damaged meta"
            raise StartupRefused(
                "invalid_artifact_paths",
                f"{folder} holds {found} at step {step}, and this is the run {run_id!r}.",
                where="TRAINER_CHECKPOINTS_DIR",
                hint="Give each run a folder of its own.",
            )


def _run_of(meta: Path) -> str | None:
    try:
        value = read_json(meta).get("run_id")
    except (JsonError, OSError):
        return None
    return value if isinstance(value, str) else None


def _bytes_of(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _files_below(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in sorted(names):
            path = Path(place) / name
            if TEMP_MARK not in name and path.is_file() and not path.is_symlink():
                yield path


class _Changed(Exception):
    """It is not what its meta says: damaged, or made anew by now."""


def _copy(source: Path, name: str, target: Path, sha256: str | None = None) -> None:
    """Whole or absent. Raises _Changed where it has another `sha256`; StorageError, OSError."""
    with open_plain(source, name) as stream, atomic_file(target) as file:
        while chunk := stream.read(_CHUNK_BYTES):
            file.write(chunk)
        if sha256 is not None and file.sha256 != sha256:
            raise _Changed
