"""The note in a run's lock, who is still its holder, and the guard of a folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from trn.errors import StorageError
from trn.files import (
    Holder,
    Lock,
    boot_id,
    guarding,
    holder_note,
    link_atomic,
    process_start,
    remove,
    write_atomic,
)


def test_a_note_reads_back_as_it_was_and_any_text_is_some_note() -> None:
    whole = Holder("job-1", 4711, "5a0c-1", 812345, 3)
    assert str(whole) == "pid=4711 job=job-1 boot=5a0c-1 started=812345 generation=3"
    assert Holder.read(str(whole)) == whole
    assert Holder.read("pid=7 job=j") == Holder("j", 7)  # of an earlier version
    for text in ("", "\0\ud800", "pid= job", "generation=-1", "generation=²", "xpid=4", "pid=" + "9" * 4000):
        assert Holder.read(text) == Holder()


def test_each_holder_is_one_generation_later_and_says_which_process_it_is(tmp_path: Path) -> None:
    for generation in (1, 2, 3):
        lock = Lock(tmp_path / ".lock")
        assert lock.acquire(holder_note(f"job-{generation}"))
        found = Holder.read((tmp_path / ".lock").read_text())
        assert found == Holder(
            f"job-{generation}", os.getpid(), boot_id(), process_start(os.getpid()), generation=generation
        )
        lock.release()
    assert Path("/proc/1/stat").exists() == (process_start(1) is not None)
    assert process_start(2**22 + 1) is None  # there is none


def test_a_lock_is_ours_until_another_file_stands_there_or_it_was_let_go(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "a/.lock")
    lock.path.parent.mkdir()
    assert lock.acquire("mine")
    assert lock.is_ours()
    os.rename(tmp_path / "a", tmp_path / "b")
    assert lock.is_ours()  # nobody is where it was
    shutil.copytree(tmp_path / "b", tmp_path / "a")
    assert not lock.is_ours()
    lock.path = tmp_path / "b/.lock"
    assert lock.is_ours()
    lock.path.write_text("pid=1 job=j generation=9")
    assert not lock.is_ours()
    lock.release()
    assert not lock.is_ours()


def test_a_guard_refuses_names_and_removals_below_its_folder_and_nothing_else(tmp_path: Path) -> None:
    def refuse() -> None:
        raise StorageError("it is another one's.")

    for name in ("run", "run-2"):
        (tmp_path / name).mkdir()
        write_atomic(tmp_path / name / "file", b"old")
    with guarding(tmp_path / "run", refuse):
        for write in (
            lambda: write_atomic(tmp_path / "run/file", b"new"),
            lambda: link_atomic(tmp_path / "run-2/file", tmp_path / "run/file"),
            lambda: remove(tmp_path / "run/file"),
        ):
            with pytest.raises(StorageError, match="another one's"):
                write()
        write_atomic(tmp_path / "run-2/file", b"new")
        pid = os.fork()
        if pid == 0:  # its parent's guard is not its own
            write_atomic(tmp_path / "run/child", b"x")
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["child", "file"]
    assert (tmp_path / "run/file").read_bytes() == b"old"
    write_atomic(tmp_path / "run/file", b"new")
