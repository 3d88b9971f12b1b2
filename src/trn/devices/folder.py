"""The folder of leases: one file for each device of this machine, locked by whoever holds it.

    TRN_LEASES_DIR, else /tmp/trn-leases-UID        0700, ours alone
        cuda-0000-01-00.0.lock                      job=.. run=.. since=.. pid=..    of its holder, or of the last one
        cpu-3.lock

A lease is a lock (flock(2)), never the file: files are left where they are, and one that nobody locks means nothing.
Everything is opened below the folder's own descriptor, follows no link, and is refused where it is no plain file with
one name, so that nobody who can write to /tmp can make us lock, or write to, something else.

A folder that several users share is made by the administrator, for a group (2770) or for all (1777); files in it get
the same readers and writers. Who can write to a shared folder can hold a device for ever, and rewrite the notes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

from trn.errors import StorageError

__all__ = ["VARIABLE", "LeasesFolder", "leases_path", "lock_at_once"]

VARIABLE = "TRN_LEASES_DIR"
_CHOOSING = "choosing.lock"
_CHOOSING_S = 5.0
_POLL_S = 0.005
_PLAIN = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_MOST_NOTE_BYTES = 4096


def leases_path(environ: Mapping[str, str], *, root: Path = Path("/tmp")) -> Path:
    """Where the folder is, or will be. Not by TMPDIR: all jobs of a machine must mean the same."""
    given = environ.get(VARIABLE)
    return Path(given).absolute() if given else root / f"trn-leases-{os.geteuid()}"


class LeasesFolder:
    """The folder, opened and checked; a context manager. Raises StorageError where it cannot be trusted or used."""

    def __init__(self, environ: Mapping[str, str], *, root: Path = Path("/tmp")) -> None:
        given = environ.get(VARIABLE)
        self.path = leases_path(environ, root=root)
        with _refused(self.path):
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.path, 0o700)
            no_link = 0 if given else os.O_NOFOLLOW  # who names a folder may name it by a link
            self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | no_link)
        try:
            self._is_ours = not given
            self._file_mode = self._checked(os.fstat(self._fd))
        except BaseException:
            os.close(self._fd)
            raise

    def open(self, name: str, *, may_create: bool = True) -> int:
        """The descriptor of a lock file. Raises StorageError; FileNotFoundError unless it `may_create` it."""
        while True:
            fd = self._opened(name, may_create=may_create)
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_uid in self._owners(status):
                return fd
            os.close(fd)
            if status.st_nlink:  # else somebody removed it in this very moment
                raise self._untrusted(f"{name} is not a plain file of ours")

    def names(self) -> list[str]:
        """Of the devices that ever had a holder."""
        names = (name.removesuffix(".lock") for name in os.listdir(self._fd) if name.endswith(".lock"))
        return sorted(name for name in names if f"{name}.lock" != _CHOOSING)

    @contextlib.contextmanager
    def choosing(self) -> Iterator[None]:
        """While nobody else takes or looks: what is taken half is seen by nobody, and nobody waits for a device.

        Raises StorageError where another process is at it for five seconds, which means that it stands still.
        """
        fd = self.open(_CHOOSING)
        try:
            end_s = time.monotonic() + _CHOOSING_S
            while not lock_at_once(fd):
                if time.monotonic() > end_s:
                    raise StorageError(
                        f"another process has been choosing devices for {_CHOOSING_S:g} s.",
                        where=str(self.path / _CHOOSING),
                        hint="It may be stopped: wake it up, or end it.",
                    )
                time.sleep(_POLL_S)
            yield
        finally:
            os.close(fd)

    def note(self, name: str) -> str | None:
        """What the holder of a device left; None where nobody holds it. While choosing only."""
        try:
            fd = self.open(f"{name}.lock", may_create=False)
        except FileNotFoundError:
            return None
        try:
            return None if lock_at_once(fd) else os.pread(fd, _MOST_NOTE_BYTES, 0).decode(errors="replace")
        finally:
            os.close(fd)

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> LeasesFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _checked(self, status: os.stat_result) -> int:
        """The mode of files in it."""
        mode = stat.S_IMODE(status.st_mode)
        if self._is_ours:
            if status.st_uid != os.geteuid():
                raise self._untrusted(f"it belongs to the user {status.st_uid}")
            if mode & 0o077:
                raise self._untrusted(f"others may use it (mode {mode:04o}, expected 0700)")
        elif mode & 0o002 and not mode & stat.S_ISVTX:
            raise self._untrusted(f"anybody may remove its files (mode {mode:04o}, expected 1777 or less)")
        return 0o600 | (0o060 if mode & 0o020 else 0) | (0o066 if mode & 0o002 else 0)

    def _untrusted(self, why: str) -> StorageError:
        return StorageError(
            f"the folder of leases cannot be trusted: {why}.",
            where=str(self.path),
            hint=f"Put that right, or name another folder in {VARIABLE}.",
        )

    def _owners(self, status: os.stat_result) -> tuple[int, ...]:
        return (os.geteuid(),) if self._is_ours else (status.st_uid,)

    def _opened(self, name: str, *, may_create: bool) -> int:
        where = self.path / name
        while True:
            # first without O_CREAT: in a folder like /tmp the kernel refuses it for the file of somebody else
            # (fs.protected_regular)
            try:
                with _refused(where, but=FileNotFoundError):
                    return os.open(name, os.O_RDWR | _PLAIN, dir_fd=self._fd)
            except FileNotFoundError:
                if not may_create:
                    raise
            with contextlib.suppress(FileExistsError), _refused(where, but=FileExistsError):
                fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _PLAIN, 0o600, dir_fd=self._fd)
                os.fchmod(fd, self._file_mode)
                return fd


def lock_at_once(fd: int) -> bool:
    """Lock the file for this descriptor, or return False where another one has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _refused(where: Path, but: type[OSError] | tuple[()] = ()) -> Iterator[None]:
    """What the system refuses, in one line; `but` this, which the caller can mend."""
    try:
        yield
    except but:
        raise
    except OSError as error:
        is_link = error.errno in (errno.ELOOP, errno.ENOTDIR) and where.is_symlink()
        why = "it is a symbolic link" if is_link else error.strerror
        raise StorageError(
            f"no device can be leased: {why}.",
            where=str(where),
            hint=f"Look at its permissions, or name another folder in {VARIABLE}.",
        ) from error
