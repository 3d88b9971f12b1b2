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

Failpoints (`faults`) make any of these operations fail, for tests.
"""

from __future__ import annotations

from trn.files.digests import new_sha256, sha256_file, sha256_prefix
from trn.files.faults import fault_count, set_fault
from trn.files.folders import foreign, free_bytes, make_folder, move, publish_folder, remove, remove_tree, sweep
from trn.files.guards import guarding
from trn.files.holders import Holder, boot_id, holder_note, process_start
from trn.files.locks import Lock, Note, is_locked
from trn.files.logs import AppendLog, append_line, last_line, last_lines
from trn.files.whole import TEMP_MARK, AtomicFile, atomic_file, link_atomic, sync_folder, write_atomic

__all__ = [
    "TEMP_MARK",
    "AppendLog",
    "AtomicFile",
    "Holder",
    "Lock",
    "Note",
    "append_line",
    "atomic_file",
    "boot_id",
    "fault_count",
    "foreign",
    "free_bytes",
    "guarding",
    "holder_note",
    "is_locked",
    "last_line",
    "last_lines",
    "link_atomic",
    "make_folder",
    "move",
    "new_sha256",
    "process_start",
    "publish_folder",
    "remove",
    "remove_tree",
    "set_fault",
    "sha256_file",
    "sha256_prefix",
    "sweep",
    "sync_folder",
    "write_atomic",
]
