"""The `.pt` of a checkpoint: how it is laid out, and written from where the copies lie.

An ordinary torch file, with two options of torch.save: every tensor begins at a whole page, so that a big one goes from
its copy to the disk and to the sha256 without being copied again; and its records have no CRC-32.
"""

from __future__ import annotations

import errno
import itertools
import mmap
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.serialization import config

from trn.checkpoint.snapshot import PAGE_BYTES
from trn.errors import StorageError
from trn.files import AtomicFile, atomic_file

__all__ = ["write_payload"]

_BLOCK_BYTES = 8 << 20
_LAYOUT = {
    "save.storage_alignment": PAGE_BYTES,
    # it costs as much as the sha256 of the whole file, says less, and no loader of torch asks for it
    "save.compute_crc32": False,
}


def write_payload(path: Path, payload: dict[str, Any], kept: Collection[int]) -> tuple[str, int]:
    """Write the `.pt`; returns (sha256, size in bytes). One I/O error is answered by a new file, never a retry.

    `kept` are the addresses of tensors in `payload` that begin at a page. Raises StorageError.
    """
    for is_last in (False, True):
        try:
            return _write(path, payload, kept)
        except StorageError as error:
            cause = error.__cause__
            if is_last or not (isinstance(cause, OSError) and cause.errno == errno.EIO):
                raise
    raise AssertionError("the loop above returns or raises")


def _write(path: Path, payload: dict[str, Any], kept: Collection[int]) -> tuple[str, int]:
    # before torch 2.12 the options are not this thread's own: what another one saves meanwhile may come out the same
    with atomic_file(path, is_big=True) as file, config.patch(_LAYOUT):  # type: ignore[attr-defined]  # added by torch
        sink = _Sink(file, kept)
        torch.save(payload, sink)  # type: ignore[arg-type]  # needs only write and flush
        sink.finish()
    return file.sha256, file.size_bytes


class _Sink:
    """A file object for torch.save: passes the tensors that are kept on as they lie, and gathers the rest in blocks.

    torch writes a dozen pieces for each tensor, most of a few bytes. An exception that leaves `write` inside its C++
    writer would end the process in a destructor: it is held back until `finish`.
    """

    def __init__(self, file: AtomicFile, kept: Collection[int]) -> None:
        self._file, self._kept = file, kept
        # mapped, since they must begin at a page; as many as may still be hashed, and the one that is filled
        blocks = [mmap.mmap(-1, _BLOCK_BYTES) for _ in range(file.LAG + 1)]
        self._blocks = itertools.cycle([np.frombuffer(block, np.uint8) for block in blocks])
        self._block = next(self._blocks)
        self._filled = 0
        self._error: Exception | None = None

    def write(self, data: bytes | memoryview) -> int:
        piece = np.frombuffer(data, np.uint8)
        size = piece.size
        if piece.ctypes.data in self._kept and self._filled % PAGE_BYTES == 0:
            whole = size - size % PAGE_BYTES
            self._flush()
            self._put(piece[:whole])
            piece = piece[whole:]
        while piece.size:
            some = piece[: _BLOCK_BYTES - self._filled]
            self._block[self._filled : self._filled + some.size] = some
            self._filled += some.size
            piece = piece[some.size :]
            if self._filled == _BLOCK_BYTES:
                self._flush()
        return size

    def flush(self) -> None:
        """Nothing: what is gathered is written by `finish`."""

    def finish(self) -> None:
        """Write what is gathered. Raises what a write before has raised."""
        self._flush()
        if self._error is not None:
            raise self._error

    def _flush(self) -> None:
        if self._filled:
            self._put(self._block[: self._filled])
            self._block, self._filled = next(self._blocks), 0

    def _put(self, piece: np.ndarray[Any, Any]) -> None:
        if self._error is None:
            try:
                self._file.write(piece.data)
            except Exception as error:  # noqa: BLE001 - raised by `finish`, on this side of the C++ code
                self._error = error
