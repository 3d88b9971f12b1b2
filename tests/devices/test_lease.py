"""Leases: exclusive among processes, all or nothing, and over when the last who holds them is gone."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import drivers
from support.door import until
from support.drivers import gpu
from trn.devices import Busy, Holder, Lease, NotThere, Want, adopt_lease, folder, holders, lease, require_there
from trn.devices.folder import LeasesFolder
from trn.errors import StorageError
from trn.launch import LocalLauncher
from trn.launch.local import running_on

CORE = min(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def leases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "leases"
    monkeypatch.setenv("TRN_LEASES_DIR", str(path))
    return path


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Three accelerators, the last with the most free memory and the first with the least."""
    return drivers.install(monkeypatch, tmp_path, [gpu(number, free=10 + number) for number in range(3)])


def take(*accelerators: str, count: int = 0, cpus: int = 0) -> Lease:
    return lease(Want(accelerators, count, cpus), note="job=j-1 run=r-1", environ=os.environ)


def is_free(*accelerators: str, cpus: int = 0) -> bool:
    try:
        take(*accelerators, cpus=cpus).release()
    except Busy:
        return False
    return True


def test_what_one_holds_another_does_not_get_and_is_told_who_has_it(three: Path) -> None:
    with take("cuda:1") as held:
        assert held.devices == ("cuda:1",)
        with pytest.raises(Busy) as busy:
            take("cuda:0", "cuda:1")
        assert f"cuda:1 is held by job j-1 of run r-1 (pid {os.getpid()}, since 20" in str(busy.value)
        assert (busy.value.exit_status, "\n" in str(busy.value)) == (90, False)
        assert is_free("cuda:0", "cuda:2")  # the refusal kept nothing
        (holder,) = holders(os.environ).values()
        assert (holder.job_id, holder.run_id, holder.pid) == ("j-1", "r-1", os.getpid())
    assert holders(os.environ) == {}
    assert is_free("cuda:0", "cuda:1")


def test_a_device_is_the_same_whatever_number_it_has(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with take("cuda:2"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
        assert not is_free("cuda:0")
        assert is_free("cuda:1")
        with pytest.raises(NotThere, match="there is no cuda:2"):
            take("cuda:2")


def test_a_count_takes_those_with_the_most_free_memory(three: Path) -> None:
    with take(count=1) as held:
        assert held.devices == ("cuda:2",)
        with take(count=2) as others:
            assert others.devices == ("cuda:0", "cuda:1")
            assert others.environ()["CUDA_VISIBLE_DEVICES"] == "GPU-00aa-0000-1111,GPU-11aa-0000-1111"
        with pytest.raises(Busy, match="2 of them free: cuda:2 is held by"):
            take(count=3)
    with pytest.raises(NotThere, match="expected 4 of cuda, and there are 3"):
        take(count=4)


def test_named_devices_are_seen_in_the_order_of_their_names(three: Path) -> None:
    with take("cuda:2", "cuda:0") as held:
        assert held.environ()["CUDA_VISIBLE_DEVICES"] == "GPU-22aa-0000-1111,GPU-00aa-0000-1111"
        assert held.environ()["TRN_LEASE_DEVICES"] == "cuda:2,cuda:0"
        assert held.environ()["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_what_is_let_go_at_this_very_moment_is_taken(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["trn.devices.lease"]
    tries: list[int] = []

    def held_at_first(fd: int) -> bool:
        tries.append(fd)
        return len(tries) > 1 and folder.lock_at_once(fd)

    monkeypatch.setattr(module, "lock_at_once", held_at_first)
    with take("cuda:0", "cuda:1") as held:
        assert held.devices == ("cuda:0", "cuda:1")
        assert held.environ()["CUDA_VISIBLE_DEVICES"] == "GPU-00aa-0000-1111,GPU-11aa-0000-1111"
    assert len(tries) == 3


def test_what_is_not_there_is_refused_with_what_is(three: Path) -> None:
    with pytest.raises(NotThere) as refused:
        take("cuda:7")
    assert "there is no cuda:7; what is here: cuda:0 (Test GPU), cuda:1 (Test GPU), cuda:2 (Test GPU)." in str(
        refused.value
    )
    with pytest.raises(NotThere, match=r"there is no mps .this is no Mac"):
        take("mps")
    cores = len(os.sched_getaffinity(0))
    with pytest.raises(NotThere, match=f"there are {cores}"):
        take(cpus=cores + 1)


def test_what_could_be_waited_for_is_told_without_taking_it(three: Path, leases: Path) -> None:
    with take("cuda:0", "cuda:1", "cuda:2"):
        require_there(Want(("cuda:0",)), os.environ)
        require_there(Want(count=3, cpus=1), os.environ)
    with pytest.raises(NotThere, match="there are 3"):
        require_there(Want(count=4), os.environ)
    require_there(Want(cpus=1), os.environ)
    assert not (leases / f"cpu-{CORE}.lock").exists()
    leases.chmod(0o777)
    with pytest.raises(StorageError, match="anybody may remove its files"):
        require_there(Want(cpus=1), os.environ)


def test_nothing_wanted_is_nothing_asked(leases: Path) -> None:
    with take() as held:
        assert (held.devices, held.fds, held.cpus, held.environ()) == ((), (), (), {})
    assert not leases.exists()


def test_accelerators_and_cores_are_taken_together_or_not_at_all(three: Path) -> None:
    everything = len(os.sched_getaffinity(0))
    with take(cpus=everything), pytest.raises(Busy, match="0 of them free"):
        take(count=1, cpus=1)
    with take("cuda:0", cpus=1) as held:
        assert held.devices == ("cuda:0", f"cpu:{CORE}")
        assert held.cpus == (CORE,)


CHILD = """
import os, sys, time
from trn.devices import adopt_lease
held = adopt_lease(os.environ)
print(held and held.devices, sorted(os.sched_getaffinity(0)), os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
if sys.argv[1] == "nested":
    import subprocess
    code = "import os; from trn.devices import adopt_lease; print(adopt_lease(os.environ))"
    subprocess.run([sys.executable, "-c", code], check=True, close_fds=False)
if sys.argv[1] == "fork" and os.fork() == 0:
    print("forked", flush=True)
    time.sleep(60)
time.sleep(0 if sys.argv[1] == "nested" else 60)
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "child.log"


def test_a_child_holds_the_lease_after_its_door_and_runs_on_its_cores(three: Path, log: Path) -> None:
    held = take("cuda:1", cpus=1)
    child = LocalLauncher(lease=held).start([sys.executable, "-c", CHILD, "wait"], log=log)
    try:
        until(lambda: log.read_text().endswith("\n"))
        assert log.read_text() == f"('cuda:1', 'cpu:{CORE}') [{CORE}] GPU-11aa-0000-1111\n"
        held.release()
        assert not is_free("cuda:1")
        assert [one.pid for one in holders(os.environ).values()] == [child.pid] * 2
    finally:
        child.signal(signal.SIGKILL)
        child.wait(20)
    assert is_free("cuda:1", cpus=len(os.sched_getaffinity(0)))
    assert len(os.sched_getaffinity(0)) > 0


def test_what_a_child_forks_holds_nothing(three: Path, log: Path) -> None:
    with take("cuda:1") as held:
        child = LocalLauncher(lease=held).start([sys.executable, "-c", CHILD, "fork"], log=log)
    try:
        until(lambda: "forked" in log.read_text())
        assert not is_free("cuda:1")
        os.kill(child.pid, signal.SIGKILL)
        child.wait(20)
        assert is_free("cuda:1")
    finally:
        os.killpg(child.pid, signal.SIGKILL)


def test_a_program_that_a_child_starts_only_finds_the_words(three: Path, log: Path) -> None:
    with take("cuda:1") as held:
        child = LocalLauncher(lease=held).start([sys.executable, "-c", CHILD, "nested"], log=log)
        assert child.wait(30) == 0
        assert log.read_text().splitlines()[1] == "None"
        assert adopt_lease({"TRN_LEASE_DEVICES": "cuda:1", "TRN_LEASE_FDS": "0:1"}) is None
        assert adopt_lease({"TRN_LEASE_DEVICES": "cuda:1", "TRN_LEASE_FDS": "x"}) is None
        assert adopt_lease({}) is None
        assert adopt_lease(held.environ()) is held


def test_a_start_leaves_this_process_on_its_own_cores() -> None:
    before = os.sched_getaffinity(0)
    with running_on([CORE]):
        assert os.sched_getaffinity(0) == {CORE}
    assert os.sched_getaffinity(0) == before
    with running_on([]):
        assert os.sched_getaffinity(0) == before
    with pytest.raises(KeyboardInterrupt), running_on([CORE]):
        raise KeyboardInterrupt
    assert os.sched_getaffinity(0) == before


RACER = """
import os, sys, time
from trn.devices import Busy, Want, lease
want = Want(tuple(sys.argv[2].split(","))) if ":" in sys.argv[2] else Want(count=int(sys.argv[2]))
time.sleep(max(0.0, float(sys.argv[1]) - time.time()))
try:
    held = lease(want, note="job=j run=r", environ=os.environ)
except Busy:
    print("busy", flush=True)
else:
    print(",".join(held.devices), flush=True)
    sys.stdin.read()
"""


def race(*wanted: str) -> Iterator[subprocess.Popen[str]]:
    start_s = str(time.time() + 1.0)
    for want in wanted:
        command = [sys.executable, "-c", RACER, start_s, want]
        yield subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def results(racers: list[subprocess.Popen[str]]) -> list[str]:
    """What each got, all of them holding what they have until the last has told."""
    told = [racer.stdout.readline().strip() for racer in racers if racer.stdout]
    for racer in racers:
        racer.communicate(timeout=30)
    return told


def test_of_many_at_once_as_many_win_as_there_are_devices(three: Path) -> None:
    told = results([*race(*["1"] * 6)])
    assert sorted(told) == ["busy", "busy", "busy", "cuda:0", "cuda:1", "cuda:2"]


def test_where_wishes_overlap_one_of_them_is_granted(three: Path) -> None:
    # each two share a device: taken one by one, all three could stand in each other's way
    told = results([*race("cuda:0,cuda:1", "cuda:1,cuda:2", "cuda:2,cuda:0")])
    assert told.count("busy") == 2
    assert is_free("cuda:0", "cuda:1", "cuda:2")


# the folder


def test_files_that_are_left_mean_nothing(three: Path, leases: Path) -> None:
    leases.mkdir(0o700)
    (leases / "cuda-0000-01-00.0.lock").write_text("job=old run=old pid=1 since=2020")
    (leases / "strange.lock").write_bytes(b"\xff\x00 pid=x job")
    assert holders(os.environ) == {}
    with take("cuda:0"):
        assert [one.job_id for one in holders(os.environ).values()] == ["j-1"]


def test_a_note_is_read_as_far_as_it_can_be() -> None:
    assert Holder.of_note("pid=x job since=") == Holder(since="")
    assert str(Holder()) == "somebody"
    assert str(Holder(pid=7)) == "somebody (pid 7)"


def private(tmp_path: Path) -> Path:
    return tmp_path / f"trn-leases-{os.geteuid()}"


def test_the_folder_of_a_user_is_made_for_that_user_alone(tmp_path: Path) -> None:
    with LeasesFolder({}, root=tmp_path) as made:
        os.close(made.open("cpu-0.lock"))
    assert stat.S_IMODE(private(tmp_path).stat().st_mode) == 0o700
    assert stat.S_IMODE((private(tmp_path) / "cpu-0.lock").stat().st_mode) == 0o600


@pytest.mark.parametrize("attack", ["link", "open to others", "of another user", "a file"])
def test_a_folder_that_somebody_else_has_prepared_is_refused(
    tmp_path: Path, attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = private(tmp_path)
    if attack == "link":
        (tmp_path / "theirs").mkdir(0o700)
        path.symlink_to(tmp_path / "theirs")
    elif attack == "a file":
        path.touch()
    else:
        path.mkdir(0o700)
    if attack == "open to others":
        path.chmod(0o770)
    if attack == "of another user":
        somebody = os.geteuid() + 1
        monkeypatch.setattr(folder.os, "geteuid", lambda: somebody)
        path.rename(private(tmp_path))
    with pytest.raises(StorageError) as refused:
        LeasesFolder({}, root=tmp_path)
    assert "\n" not in str(refused.value)
    assert "TRN_LEASES_DIR" in str(refused.value)


@pytest.mark.parametrize("attack", ["link", "second name", "pipe", "folder"])
def test_a_lock_file_that_is_no_plain_file_is_refused_and_left_as_it_is(tmp_path: Path, attack: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = private(tmp_path) / "cpu-0.lock"
    path.parent.mkdir(0o700)
    if attack == "link":
        path.symlink_to(victim)
    elif attack == "second name":
        path.hardlink_to(victim)
    elif attack == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with LeasesFolder({}, root=tmp_path) as opened, pytest.raises(StorageError):
        opened.open("cpu-0.lock")
    assert victim.read_text() == "precious"


@pytest.mark.parametrize(("mode", "expected"), [(0o1777, 0o666), (0o2770, 0o660), (0o700, 0o600), (0o0777, None)])
def test_in_a_shared_folder_files_are_shared_as_it_is(leases: Path, mode: int, expected: int | None) -> None:
    leases.mkdir()
    leases.chmod(mode)
    if expected is None:
        with pytest.raises(StorageError, match="anybody may remove its files"):
            take(cpus=1)
        return
    with take(cpus=1):
        found = {stat.S_IMODE(path.stat().st_mode) for path in leases.iterdir()}
    assert found == {expected}


def test_a_folder_that_cannot_be_is_refused_in_one_line(leases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (leases / "above" / "below", leases.parent / "dangling"):
        (leases.parent / "dangling").unlink(missing_ok=True)
        (leases.parent / "dangling").symlink_to("/not/there")
        monkeypatch.setenv("TRN_LEASES_DIR", str(path))
        with pytest.raises(StorageError, match="no device can be leased"):
            take(cpus=1)


def test_somebody_who_stands_still_while_choosing_is_not_waited_for_long(
    leases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "_CHOOSING_S", 0.1)
    with LeasesFolder(os.environ) as opened, opened.choosing(), pytest.raises(StorageError, match="has been choosing"):
        take(cpus=1)
    assert is_free(cpus=1)


def test_a_want_survives_being_written_down() -> None:
    want = Want(("cuda:0", "mps"), 0, 2)
    assert Want.from_json(want.to_json()) == want
    assert want.kinds == {"cuda", "mps", "cpu"}
    assert (str(want), str(Want(count=2)), Want().is_empty) == ("cuda:0 and mps and 2 cores", "2 of cuda", True)
