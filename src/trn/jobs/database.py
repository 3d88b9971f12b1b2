"""The SQLite file of the job store: opened when first needed, made, brought up, and made again when it was lost.

    there, of this version     used as it is
    there, of an earlier one   read as it is; brought up by the first change
    missing, or empty          read from what is left (rebuild), in memory; made from it by the first change
    damaged, or of a later     refused, with what to do

A file that was moved away while it was open is left alone from then on. Not here: what is asked and changed (store).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from trn.errors import StorageError
from trn.files import Lock, make_folder
from trn.jobs.table import VERSION, make_table, migrate, put, version_of_table

if TYPE_CHECKING:
    from trn.jobs.rebuild import Rebuilt

__all__ = ["Database", "damaged"]

_BUSY_S = 30.0
_REST_S = 0.005
_DAMAGE = frozenset({sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})


class Database:
    """One connection to `<runs_dir>/.trn/jobs.db`; not for threads, nor to be carried over a fork."""

    def __init__(self, runs_dir: Path) -> None:
        self.runs_dir = runs_dir
        self.path = runs_dir / ".trn" / "jobs.db"
        self.rebuilt: Rebuilt | None = None
        """What was read in the place of a file that is lost."""
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._released_s = 0.0
        self._memory: sqlite3.Connection | None = None

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection to read from, whose table may be of an earlier version."""
        with self._plainly():
            connection = self._opened()
            if connection is None or version_of_table(connection, str(self.path)) == 0:
                connection = self._in_memory()
            yield connection

    @contextlib.contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """One short transaction, alone among all processes; rolled back on any exception."""
        if not self.path.parent.is_dir():
            make_folder(self.path.parent)
        with self._plainly(), self._alone():
            connection = self._made()
            connection.execute("BEGIN IMMEDIATE")
            try:
                self._bring_up(connection)
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # a failed COMMIT may have ended it
                    connection.execute("ROLLBACK")
                raise
        self._forget_memory()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the store's lock.

        Whoever had just let go rests before the next change: it would else mostly be the next to have it, since others
        look for it only so often. Of 50 writers that never rest, one change in 100 waited 0.33 s, and one 2 s.
        """
        if time.monotonic() - self._released_s < _REST_S:
            time.sleep(_REST_S)
        with Lock(self.path.with_name("jobs.lock")):
            yield
        self._released_s = time.monotonic()

    def close(self) -> None:
        """Close the connection; the next use opens it again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        self._forget_memory()

    def _forget_memory(self) -> None:
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.close()

    def _opened(self) -> sqlite3.Connection | None:
        """The connection to the file that has the name now; None where there is none."""
        file = self._file_there()
        if self._connection is not None and file != self._file:
            # SQLite leaves the -wal of another file of this name alone when it closes one that was moved
            self._connection.close()
            self._connection = None
        if self._connection is None and file is not None:
            self._connection, self._file = self._connect(), file
        return self._connection

    def _file_there(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_dev, found.st_ino

    def _connect(self) -> sqlite3.Connection:
        # never mode=ro: a read-only connection to a WAL file leaves its -shm and -wal behind (seen with 3.40), and
        # cannot be opened where the folder is not writable: nobody writes there, so the file is as good as immutable
        mode = "mode=rw" if os.access(self.path.parent, os.W_OK) else "immutable=1"
        uri = f"file:{quote(str(self.path))}?{mode}"
        connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_S, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = NORMAL")
            version_of_table(connection, str(self.path))
        except BaseException:
            connection.close()
            raise
        return connection

    def _made(self) -> sqlite3.Connection:
        """The connection, after making the file where it is missing; the caller holds the lock."""
        connection = self._opened()
        if connection is None:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            connection = self._opened()
            assert connection is not None, "the file was just made, under the lock"
        if version_of_table(connection, str(self.path)) == 0:
            connection.execute("PRAGMA journal_mode = WAL")
        return connection

    def _bring_up(self, connection: sqlite3.Connection) -> None:
        """Make or migrate the table, in the caller's transaction."""
        version = version_of_table(connection, str(self.path))
        if version == 0:
            make_table(connection)
            put(connection, self._rebuild().rows)
        elif version < VERSION:
            migrate(connection)

    def _in_memory(self) -> sqlite3.Connection:
        """The table as a change would make it, kept until there is a file."""
        if self._memory is None:
            memory = sqlite3.connect(":memory:", isolation_level=None)
            make_table(memory)
            memory.execute("BEGIN")
            put(memory, self._rebuild().rows)
            memory.execute("COMMIT")
            self._memory = memory
        return self._memory

    def _rebuild(self) -> Rebuilt:
        from trn.jobs.rebuild import rebuild  # only after a loss: verbs that read are to start quickly

        try:
            self.rebuilt = rebuild(self.runs_dir)
        except OSError as error:
            raise StorageError(
                f"the job store is gone, and cannot be made again: {error.strerror}.", where=str(error.filename)
            ) from error
        return self.rebuilt

    @contextlib.contextmanager
    def _plainly(self) -> Iterator[None]:
        """Turn an error of SQLite into a StorageError that says what to do."""
        try:
            yield
        except sqlite3.IntegrityError as error:
            raise StorageError(f"the job is there already ({error}).", where=str(self.path)) from error
        except (sqlite3.Error, UnicodeDecodeError) as error:
            # the low byte is the primary code; what never came from SQLite is text that is none
            if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in _DAMAGE:
                raise damaged(self.path, str(error)) from error
            raise StorageError(f"cannot use the job store: {error}.", where=str(self.path)) from error


def damaged(path: Path, found: str) -> StorageError:
    """What is said of a store that cannot be read."""
    return StorageError(
        f"the job store is damaged: {found}.",
        where=str(path),
        hint="Move jobs.db, jobs.db-wal and jobs.db-shm away: the store is made again from jobs/index.jsonl.",
    )
