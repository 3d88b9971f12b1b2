"""The `.pt`: an ordinary torch file, written from where the copies lie, hashed while it is written."""

from __future__ import annotations

import errno
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.serialization import config

from trn import files
from trn.checkpoint.payload import write_payload
from trn.checkpoint.snapshot import PAGE_BYTES, Snapshots
from trn.errors import StorageError
from trn.files import sha256_file

BIG = 600 * 1000  # float32: more than two megabytes, and no whole number of pages


@pytest.fixture(autouse=True)
def _disarmed() -> Any:
    yield
    files.set_fault(None)


def hostile_state() -> dict[str, Any]:
    """Big and small, in every layout that a copy may have."""
    torch.manual_seed(3)
    tied = torch.randn(BIG)
    return {
        "big": torch.randn(BIG),
        "odd": torch.randn(3),
        "transposed": torch.randn(700, 900).t(),
        "strided": torch.randn(2, BIG)[:, ::2],
        "expanded": torch.randn(1, 1000).expand(1000, 1000),
        "channels last": torch.randn(2, 3, 300, 300).to(memory_format=torch.channels_last),
        "half": torch.randn(1500, 1500).to(torch.bfloat16),
        "mask": torch.rand(2000, 1000) < 0.5,
        "complex": torch.randn(500, 500, dtype=torch.complex64),
        "tied": [tied, tied],
        "empty": torch.empty(0),
        "scalar": torch.tensor(7),
        "many": [torch.full((17,), float(i)) for i in range(300)],
        "plain": {"lr": 0.1, 3: "x"},
    }


def assert_same(found: Any, wanted: Any) -> None:
    if isinstance(wanted, torch.Tensor):
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted)
    elif isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for key in wanted:
            assert_same(found[key], wanted[key])
    elif isinstance(wanted, list):
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other)
    else:
        assert found == wanted


def write(path: Path, state: dict[str, Any], snapshots: Snapshots | None = None) -> tuple[str, int]:
    snapshots = snapshots or Snapshots()
    return write_payload(path, {"trainer": snapshots.take(state)}, snapshots.at_pages())


def offsets(path: Path) -> list[int]:
    """Where the bytes of each tensor begin in the file."""
    reader = torch._C.PyTorchFileReader(str(path))
    return [reader.get_record_offset(name) for name in reader.get_all_records() if name.startswith("data/")]


@pytest.mark.parametrize("mmap", [True, False])
def test_what_is_written_is_an_ordinary_torch_file_with_this_sha256(tmp_path: Path, mmap: bool) -> None:
    path = tmp_path / "a.pt"
    sha256, size_bytes = write(path, hostile_state())
    assert (sha256, size_bytes) == (sha256_file(path), path.stat().st_size)
    loaded = torch.load(path, weights_only=True, mmap=mmap)["trainer"]
    assert_same(loaded, hostile_state())
    assert loaded["tied"][0].data_ptr() == loaded["tied"][1].data_ptr()


def test_every_tensor_begins_at_a_page_and_big_ones_are_written_from_where_they_lie(tmp_path: Path) -> None:
    snapshots = Snapshots()
    copy = snapshots.take(hostile_state())
    big = [copy["big"], copy["transposed"], copy["expanded"], copy["half"], copy["mask"], copy["tied"][0]]
    assert {one.data_ptr() for one in big} <= snapshots.at_pages()
    path = tmp_path / "a.pt"
    write_payload(path, copy, snapshots.at_pages())
    assert len(offsets(path)) > 300
    assert [offset % PAGE_BYTES for offset in offsets(path)] == [0] * len(offsets(path))


def test_where_nothing_lies_at_pages_the_file_is_the_same(tmp_path: Path) -> None:
    copy = Snapshots().take(hostile_state())
    snapshots = Snapshots()
    again = snapshots.take(hostile_state())
    assert write_payload(tmp_path / "a.pt", copy, ()) == write_payload(tmp_path / "b.pt", again, snapshots.at_pages())


def test_the_next_copy_goes_into_the_same_memory(tmp_path: Path) -> None:
    snapshots = Snapshots()
    first, second = (snapshots.take({"w": torch.full((BIG,), value)})["w"] for value in (0.0, 1.0))
    assert first.data_ptr() == second.data_ptr()
    assert bool((second == 1.0).all())


def test_torchs_own_options_are_as_they_were_also_in_another_thread(tmp_path: Path) -> None:
    before = config.save.compute_crc32, config.save.storage_alignment
    thread = threading.Thread(target=write, args=(tmp_path / "a.pt", hostile_state()))
    thread.start()
    thread.join()
    write(tmp_path / "b.pt", hostile_state())
    assert (config.save.compute_crc32, config.save.storage_alignment) == before


@pytest.mark.parametrize("do", ["enospc", "eio", "short"])
def test_a_refused_write_of_any_piece_is_reported_or_mended(tmp_path: Path, do: str) -> None:
    state = {"a": torch.randn(BIG), "small": [torch.randn(30)] * 3, "b": torch.randn(BIG), "c": torch.randn(BIG)}
    files.set_fault("op=write,n=1000000,do=eio")
    expected = write(tmp_path / "a.pt", state)
    pieces = files.fault_count()
    assert pieces >= 7, "the big ones, what lies between them, and the tail"
    for n in range(1, pieces + 1):
        path = tmp_path / f"{n}.pt"
        files.set_fault(f"op=write,n={n},do={do}")
        if do == "enospc":
            with pytest.raises(StorageError, match=r"[Nn]o space"):
                write(path, state)
            assert not path.exists()
        else:
            assert write(path, state) == expected
            assert sha256_file(path) == expected[0]


def test_two_input_errors_in_a_row_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.write", refuse)
    with pytest.raises(StorageError, match="Input/output error"):
        write(tmp_path / "a.pt", hostile_state())
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_a_failure_that_is_no_input_error_leaves_torchs_writer_as_an_exception(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("trn.files.digests.threading.Thread.start", refuse)
    with pytest.raises(RuntimeError, match="new thread"):
        write(tmp_path / "a.pt", hostile_state())
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


MEMORY = """
    import pathlib, sys, torch
    from trn.checkpoint.payload import write_payload
    from trn.checkpoint.snapshot import Snapshots

    def resident(field):
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

    state = {str(i): torch.randn(5_000_000) for i in range(10)}
    state["small"] = [torch.randn(50_000) for _ in range(200)]
    warm = Snapshots()
    write_payload(pathlib.Path(sys.argv[1]), warm.take({"w": torch.randn(1000)}), warm.at_pages())
    snapshots, sizes = Snapshots(), []
    for _ in range(2):
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        write_payload(pathlib.Path(sys.argv[1]), snapshots.take(state), snapshots.at_pages())
        sizes.append(resident("VmHWM") - before)
    print(*sizes)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_one_copy_of_the_state_and_less_than_64_mib(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(MEMORY), str(tmp_path / "a.pt")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    first, second = (int(size) for size in printed.split())
    state_bytes = 4 * (10 * 5_000_000 + 200 * 50_000)
    assert state_bytes <= first < state_bytes + (64 << 20)
    assert second < 64 << 20
