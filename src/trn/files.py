"""Bytes that survive a crash: publish whole files, append lines, digest, lock, link, sweep.

Every durable operation of the house goes through here, so that one page decides what "written" means and one switch
can make any of it fail:

    atomic_file / write_atomic   temporary in the same folder -> write -> flush -> fsync -> rename -> fsync folder
    AppendLog                    one write(2) a line, so that a SIGKILL loses nothing that was logged
    publish_folder               a folder that was filled aside becomes visible by one rename
    link_atomic                  a second name for a file, replaced atomically; a copy where links fail
    Lock                         an exclusive lock that dies with its holder and is closed in forked children

Files are 0600 and folders 0700. What a crash leaves behind are names that `sweep` recognises (`.NAME.tmp-*`): they
are removed by whoever holds the lock of that folder, and read by nobody.

Failpoints: `TRN_FAULT="op=fsync,n=7,do=kill"` makes the seventh fsync of this process kill it. `op` is one of
open, write, fsync, rename, link, unlink, truncate, mkdir, or any; `do` is kill, enospc, eio, short (a write that
writes half and returns), tear (half, then kill). `path=TEXT` counts only operations on paths that contain TEXT.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import os
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from trn.errors import StorageError, UsageError

__all__ = [
    "AppendLog",
    "AtomicFile",
    "Lock",
    "append_line",
    "atomic_file",
    "free_bytes",
    "is_locked",
    "last_line",
    "link_atomic",
    "make_folder",
    "move",
    "publish_folder",
    "remove",
    "remove_tree",
    "sha256_file",
    "sha256_prefix",
    "sweep",
    "sync_folder",
    "write_atomic",
]

_FILE_MODE = 0o600
_FOLDER_MODE = 0o700
_CHUNK_BYTES = 1 << 20
_TEMP_MARK = ".tmp-"
_counter = itertools.count()


@dataclass
class _Fault:
    op: str
    n: int
    do: str
    path: str = ""
    seen: int = 0

    _OPS = ("open", "write", "fsync", "rename", "link", "unlink", "truncate", "mkdir", "any")
    _DOS = ("kill", "enospc", "eio", "short", "tear")

    @classmethod
    def parse(cls, text: str) -> _Fault:
        fields = {key: value for key, _, value in (part.partition("=") for part in text.split(","))}
        if fields.get("op") not in cls._OPS or fields.get("do") not in cls._DOS or not fields.get("n", "").isdigit():
            raise UsageError(
                f"cannot read {text!r}; expected op={'|'.join(cls._OPS)},n=NUMBER,do={'|'.join(cls._DOS)}.",
                where="TRN_FAULT",
            )
        return cls(op=fields["op"], n=int(fields["n"]), do=fields["do"], path=fields.get("path", ""))

    def due(self, op: str, path: str) -> bool:
        if self.op not in (op, "any") or self.path not in path:
            return False
        self.seen += 1
        return self.seen == self.n


_fault = _Fault.parse(os.environ["TRN_FAULT"]) if os.environ.get("TRN_FAULT") else None
_fault_guard = threading.Lock()


def set_fault(text: str | None) -> None:
    """Arm a failpoint in this process, or disarm with None; counts start anew. For tests that fork."""
    global _fault
    _fault = _Fault.parse(text) if text else None


def fault_count() -> int:
    """How many operations the armed failpoint has counted; 0 when none is armed."""
    return _fault.seen if _fault else 0


def _trip(op: str, path: str) -> str | None:
    """Fail here if a failpoint says so; returns "short" or "tear" for the caller of a write to act on."""
    if _fault is None:
        return None
    with _fault_guard:
        due = _fault.due(op, path)
    if not due:
        return None
    if _fault.do == "kill" or (_fault.do == "tear" and op != "write"):
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # the signal is on its way; nothing after this line may happen
    if _fault.do == "enospc":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    if _fault.do == "eio":
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)
    return _fault.do


def _open(path: Path, flags: int) -> int:
    _trip("open", str(path))
    return os.open(path, flags | os.O_CLOEXEC, _FILE_MODE)


def _write_all(fd: int, data: bytes | memoryview, path: Path) -> None:
    """Write all of `data`; one write(2) unless the system, or a failpoint, takes fewer bytes."""
    view = memoryview(data)
    while view:
        act = _trip("write", str(path))
        if act is not None:
            written = os.write(fd, view[: max(1, len(view) // 2)])
            if act == "tear":
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)
        else:
            written = os.write(fd, view)
        view = view[written:]


def _fsync(fd: int, path: Path) -> None:
    _trip("fsync", str(path))
    os.fsync(fd)


def _rename(source: Path, target: Path) -> None:
    _trip("rename", str(target))
    os.rename(source, target)


@contextlib.contextmanager
def _storage(doing: str, path: Path) -> Iterator[None]:
    """Turn an OSError into a StorageError that names the path and the remedy."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StorageError(
            f"cannot {doing}: {error.strerror or error}.",
            where=str(path),
            hint="Free some space and resume." if full else None,
        ) from error


class AtomicFile:
    """A file being written aside: `write` bytes to it, read `size_bytes` and `sha256` of what was written so far."""

    closed = False
    """Asked by pyarrow before each write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.parent / f".{path.name}{_TEMP_MARK}{os.getpid()}-{next(_counter)}"
        self.size_bytes = 0
        self._hash = hashlib.sha256()
        self._fd = _open(self.temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)

    def write(self, data: bytes | memoryview) -> int:
        """Append `data`; returns its length in bytes."""
        size = memoryview(data).nbytes
        _write_all(self._fd, data, self.path)
        self._hash.update(data)
        self.size_bytes += size
        return size

    def flush(self) -> None:
        """Present because writers of files call it; every `write` has already reached the system."""

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def _sync(self) -> None:
        _fsync(self._fd, self.path)

    def _close(self) -> None:
        self.closed = True
        os.close(self._fd)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[AtomicFile]:
    """Give a file to write to that becomes `path` when the block ends, whole and durable, or never.

    Raises StorageError when the system refuses. On any exception the temporary is gone and `path` is as it was.
    A failed fsync is never retried on the same descriptor: the file is thrown away.
    """
    with _storage("write", path):
        file = AtomicFile(path)
        try:
            try:
                yield file
                file._sync()
            finally:
                file._close()
            _rename(file.temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(file.temporary)
            raise
        sync_folder(path.parent)


def write_atomic(path: Path, data: bytes) -> str:
    """Publish `data` as the whole content of `path`; returns its sha256. Raises StorageError."""
    with atomic_file(path) as file:
        file.write(data)
    return file.sha256


def sync_folder(folder: Path) -> None:
    """Make renames, links and removals in `folder` durable. Raises StorageError."""
    with _storage("sync", folder):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _fsync(fd, folder)
        finally:
            os.close(fd)


def link_atomic(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, replacing what was there in one step; a copy where links fail."""
    temporary = target.parent / f".{target.name}{_TEMP_MARK}{os.getpid()}-{next(_counter)}"
    with _storage("link", target):
        try:
            _trip("link", str(target))
            os.link(source, temporary)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV):
                raise
            _copy(source, target)
            return
        try:
            _rename(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        # rename(2) between two names of one file does nothing, and leaves the temporary name behind
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        sync_folder(target.parent)


def _copy(source: Path, target: Path) -> None:
    with open(source, "rb") as stream, atomic_file(target) as file:
        while chunk := stream.read(_CHUNK_BYTES):
            file.write(chunk)


def make_folder(path: Path) -> Path:
    """Create `path` and its parents, 0700; an existing folder is fine. Raises StorageError."""
    with _storage("create the folder", path):
        for folder in [*reversed(path.parents), path]:
            if not folder.is_dir():
                _trip("mkdir", str(folder))
                with contextlib.suppress(FileExistsError):
                    os.mkdir(folder, _FOLDER_MODE)
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    return path


def publish_folder(staged: Path, target: Path) -> bool:
    """Make the folder `staged` visible as `target` by one rename; False if `target` is already there and not empty.

    The files in it are synced first, so that what is visible is also durable. Raises StorageError.
    """
    with _storage("publish", target):
        for folder, _, _ in os.walk(staged):
            sync_folder(Path(folder))
        try:
            _rename(staged, target)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                return False
            raise
        sync_folder(target.parent)
    return True


def move(source: Path, target: Path) -> None:
    """Rename `source` to `target` on the same file system and make it durable. Raises StorageError."""
    with _storage("move", source):
        _rename(source, target)
        sync_folder(target.parent)
        if source.parent != target.parent:
            sync_folder(source.parent)


def remove(path: Path) -> None:
    """Remove a file; one that is already gone is fine. Raises StorageError."""
    with _storage("remove", path), contextlib.suppress(FileNotFoundError):
        _trip("unlink", str(path))
        os.unlink(path)


def remove_tree(path: Path) -> None:
    """Remove a folder and all in it; symbolic links are removed, never followed. Raises StorageError."""
    import shutil  # brings three compression libraries: not for those who only read

    with _storage("remove", path), contextlib.suppress(FileNotFoundError):
        _trip("unlink", str(path))
        shutil.rmtree(path)


def sweep(folder: Path) -> list[str]:
    """Remove what crashed writers left in `folder` (not below it); returns the names. The caller holds its lock."""
    if not folder.is_dir():
        return []
    left = [name for name in sorted(os.listdir(folder)) if name.startswith(".") and _TEMP_MARK in name]
    for name in left:
        remove(folder / name)
    return left


def free_bytes(folder: Path) -> int:
    """Bytes that an unprivileged writer may still use on the file system of `folder`."""
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize


def sha256_file(path: Path) -> str:
    """Hex sha256 of a whole file. Raises OSError."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_prefix(path: Path, size_bytes: int) -> str | None:
    """Hex sha256 of the first `size_bytes` of a file, or None where the file is missing or shorter."""
    digest = hashlib.sha256()
    left = size_bytes
    try:
        with open(path, "rb") as stream:
            while left and (chunk := stream.read(min(left, _CHUNK_BYTES))):
                digest.update(chunk)
                left -= len(chunk)
    except FileNotFoundError:
        return None
    return None if left else digest.hexdigest()


class AppendLog:
    """A file of lines that only grows: one write(2) a line, synced when told. Not thread-safe; one writer at a time.

    Opening cuts a torn last line (bytes after the last newline), since no reader may trust it. `offset` and `sha256`
    describe the content after the last append, so that a checkpoint can say exactly how far the log belongs to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _storage("open", path):
            self._fd = _open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            self._hash = hashlib.sha256()
            self.offset = self._take_whole_lines()
            self._dirty = False

    def _take_whole_lines(self) -> int:
        whole = 0
        tail = b""
        with open(self._fd, "rb", closefd=False) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                lines, newline, rest = chunk.rpartition(b"\n")
                if newline:
                    self._hash.update(tail + lines + newline)
                    whole += len(tail) + len(lines) + 1
                    tail = rest
                else:
                    tail += chunk
        if tail:
            _trip("truncate", str(self.path))
            os.ftruncate(self._fd, whole)
        return whole

    @property
    def sha256(self) -> str:
        """Hex sha256 of the first `offset` bytes."""
        return self._hash.copy().hexdigest()

    def append(self, line: bytes) -> None:
        """Add `line`, which ends with its only newline. Raises StorageError."""
        try:
            _write_all(self._fd, line, self.path)
        except OSError as error:
            self._undo_partial_append()
            with _storage("append", self.path):
                raise error
        self._hash.update(line)
        self.offset += len(line)
        self._dirty = True

    def _undo_partial_append(self) -> None:
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self.offset)

    def sync(self) -> None:
        """Make all appended lines durable; may be called from another thread than `append`. Raises StorageError."""
        if self._dirty:
            self._dirty = False  # before the fsync: a line appended meanwhile marks it again
            try:
                with _storage("sync", self.path):
                    _fsync(self._fd, self.path)
            except StorageError:
                self._dirty = True
                raise

    def cut(self, offset: int) -> None:
        """Drop all bytes from `offset` on, durably. Raises StorageError; ValueError beyond the end."""
        digest = sha256_prefix(self.path, offset)
        if digest is None:
            raise ValueError(f"{self.path} is shorter than {offset} bytes")
        with _storage("cut", self.path):
            _trip("truncate", str(self.path))
            os.ftruncate(self._fd, offset)
            _fsync(self._fd, self.path)
        self._hash = hashlib.sha256()
        with open(self.path, "rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                self._hash.update(chunk)
        self.offset = offset

    def close(self) -> None:
        os.close(self._fd)


def append_line(path: Path, line: bytes) -> None:
    """Add `line`, which ends with its only newline, to a log that several processes share; the caller holds its lock.

    A torn last line is cut first. Costs the same however long the file is, unlike opening an `AppendLog`; not
    synced. Raises StorageError, and the file is then as it was.
    """
    with _storage("append", path):
        fd = _open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            end = _end_of_lines(fd)
            if end < os.fstat(fd).st_size:
                _trip("truncate", str(path))
                os.ftruncate(fd, end)
            try:
                _write_all(fd, line, path)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, end)
                raise
        finally:
            os.close(fd)


def last_line(path: Path) -> bytes | None:
    """The last whole line of a file, with its newline, read from the end; None where there is none. Raises OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        end = _end_of_lines(fd)
        start = _end_of_lines(fd, end - 1)
        return os.pread(fd, end - start, start) if end else None
    finally:
        os.close(fd)


def _end_of_lines(fd: int, before: int | None = None) -> int:
    """The offset just after the last newline in the first `before` bytes, or in the whole file; 0 without one."""
    end = os.fstat(fd).st_size if before is None else before
    while end > 0:
        start = max(0, end - 4096)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


class Lock:
    """An exclusive lock on a file, held from `acquire` until `release` or the death of this process.

    It is an flock(2): it survives a rename of the file or of its folder, is released by the system however the
    holder dies, and is closed in forked children, so that no child can keep it. The file is never removed: whoever
    unlinks a lock file lets two holders in. Not for network file systems without flock support.
    """

    _POLL_S = 0.005

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def acquire(self, note: str = "", wait_s: float = 0.1) -> bool:
        """Take the lock within `wait_s` seconds, or return False; `note` is left in the file for whoever asks.

        The short default wait only covers somebody else's `is_locked`.
        """
        deadline = time.monotonic() + wait_s
        with _storage("lock", self.path):
            fd = _open(self.path, os.O_RDWR | os.O_CREAT)
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(fd)
                    return False
                time.sleep(self._POLL_S)
        self._fd = fd
        _held.add(self)
        os.ftruncate(fd, 0)
        os.pwrite(fd, note.encode(), 0)
        return True

    def release(self) -> None:
        self._close()

    def _close(self) -> None:
        _held.discard(self)
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def __enter__(self) -> Lock:
        if not self.acquire(wait_s=30.0):
            raise StorageError("another process has held this lock for 30 s.", where=str(self.path))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


_held: weakref.WeakSet[Lock] = weakref.WeakSet()


def _close_in_child() -> None:
    for lock in list(_held):
        lock._close()


os.register_at_fork(after_in_child=_close_in_child)


def is_locked(path: Path) -> str | None:
    """The note of whoever holds the lock on `path` ("" if it left none), or None when nobody does."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(fd, 4096, 0).decode(errors="replace")
    finally:
        os.close(fd)
    return None
