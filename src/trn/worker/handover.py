"""Training data decoded once, for the trainer's process to map: by a child that runs our code and nobody else's.

    parquet ──python -m trn.feed cache──> FOLDER/KEY.arrow, KEY.json ──path──> the contract's arrow_ipc_path

KEY stands for the data and the columns (docs/formats/cache.md), so the second time the file is there already. Where the
job names no columns all are decoded: which of them the trainer wants only its own code could say, and that does not run
here. The trainer's process takes the ones it wants.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from trn.errors import DataError, PlanRefused, Stopped, StorageError, TrnError, UsageError
from trn.launch.confined import without_token
from trn.records import JsonError, from_json

__all__ = ["decode"]

_LOOK_EVERY_S = 0.05
_TERM_S = 5.0
_LARGEST_BYTES = 1 << 20
_LINE = re.compile(r"\w+ error \[(\w+)\](?: at (.+?))?: (.+)", re.DOTALL)
_KINDS: dict[str, type[TrnError]] = {one.code: one for one in (DataError, StorageError, UsageError, PlanRefused)}


def decode(
    paths: Sequence[str], columns: Sequence[str], folder: Path, *, is_stopped: Callable[[], bool] = lambda: False
) -> Path:
    """The Arrow file of these data and columns in `folder`, made unless it is there; no columns: all of them.

    Raises what the decoder ends with, in its own words (DataError, StorageError); StorageError where it was killed;
    Stopped where that was asked for, and the decoder has ended by then.
    """
    arguments = ["cache", f"--out={folder}", "--json"]
    # the decoder splits its words at commas: of names with one in them, all columns hold them as well
    if columns and not any("," in name or not name for name in columns):
        arguments.append(f"--columns={','.join(columns)}")
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = _start([*arguments, "--", *paths], out, err)
        status = _mind(child, is_stopped)
        if status:
            raise _failure(status, _text(err))
        return _answer(_text(out))


def _start(arguments: Sequence[str], out: IO[bytes], err: IO[bytes]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "trn.feed", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
            env=without_token(os.environ),
        )
    except OSError as error:
        raise DataError(
            f"the decoder cannot be started: {error.strerror or error}.",
            where="dataset.parquet_paths",
            hint="Name a folder or a glob in place of many files.",
        ) from error


def _mind(child: subprocess.Popen[bytes], is_stopped: Callable[[], bool]) -> int:
    """The exit status of the child. Raises Stopped."""
    try:
        while not is_stopped():
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(_LOOK_EVERY_S)
        raise Stopped("preempted", "asked to stop while the data were decoded.")
    finally:
        _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    """What it has begun is thrown away by whoever decodes next."""
    if child.poll() is None:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_TERM_S)
        child.kill()
        child.wait()


def _failure(status: int, said: str) -> TrnError:
    """The decoder's last line, as the error that it was there."""
    if status < 0:
        name = signal.Signals(-status).name
        return StorageError(f"the decoder was killed by {name}.", where="dataset.parquet_paths")
    line = next((line for line in reversed(said.splitlines()) if line.strip()), "")
    found = _LINE.fullmatch(line.strip())
    if found is None or found[1] not in _KINDS:
        return StorageError(f"the decoder ended with exit status {status}: {line[:500]}", where="dataset.parquet_paths")
    return _KINDS[found[1]](found[3], where=found[2])


def _answer(said: str) -> Path:
    try:
        value: Any = from_json(said.encode())
        return Path(value["path"]).absolute()
    except (JsonError, TypeError, KeyError) as error:
        raise StorageError(
            f"the decoder did not say what it has made: {said[:200]!r}.", where="trn data cache"
        ) from error


def _text(stream: IO[bytes]) -> str:
    """The end of what was written."""
    stream.seek(max(0, os.fstat(stream.fileno()).st_size - _LARGEST_BYTES))
    return stream.read().decode(errors="replace")
