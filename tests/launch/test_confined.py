"""The confined launcher, with real programs: what they see of their starter, and how their limits end them."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from support.door import row_of, until
from support.processes import alive
from support.stand_in import publish
from trn.devices import Lease
from trn.errors import exit_code as exit_code_of
from trn.jobs import outcome_of
from trn.jobs.ending import settle
from trn.launch.confined import ConfinedLauncher, Confinement, allow_listed, without_token
from trn.launch.oom_kills import OomKills
from trn.records import read_lines

pytestmark = pytest.mark.slow

TOKEN = "header.payload.signature"
MIB = 1 << 20


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-u", "-c", textwrap.dedent(code), *arguments]


def run(tmp_path: Path, code: str, **limits: Any) -> tuple[int, str, tuple[int, str] | None]:
    """Status, output and failure of a child within these limits."""
    child = ConfinedLauncher(Confinement(**limits), os.environ).start(python(code), log=tmp_path / "job.log")
    status = child.wait(30)
    assert status is not None, "it did not end"
    return status, (tmp_path / "job.log").read_text(), child.failure()


def test_only_variables_of_the_list_come_through() -> None:
    kept = {
        **{"PATH": "/bin", "HOME": "/root", "LC_ALL": "C", "PYTHONPATH": "/app", "OMP_NUM_THREADS": "1"},
        **{"CUDA_VISIBLE_DEVICES": "0", "NCCL_DEBUG": "INFO", "TRN_RUNS_DIR": "/runs", "HF_HUB_OFFLINE": "1"},
    }
    others = {
        **{"AWS_SECRET_ACCESS_KEY": "x", "HF_TOKEN": "x", "DATABASE_URL": "x", "TRAINER_UPLOAD_METRICS_URL": "x"},
        **{"TRAINER_CAPABILITY_TOKEN": TOKEN, "TRAINER_CAPABILITY_TOKEN_FILE": "/t", "LD_PRELOAD": "x", "TRN": "x"},
        **{"PATHS": "x", "SSH_AUTH_SOCK": "/s", "BASH_FUNC_x%%": "() { :; }"},
    }
    assert allow_listed(kept | others) == kept


def test_further_variables_are_named_by_the_operator_but_never_the_token() -> None:
    environ = {
        **{"TRAINER_PASS_ENV": "CORPUS, S3_ENDPOINT,TRAINER_CAPABILITY_TOKEN,,TRAINER_CAPABILITY_TOKEN_FILE"},
        **{"CORPUS": "en", "S3_ENDPOINT": "here", "OTHER": "x"},
        **{"TRAINER_CAPABILITY_TOKEN": TOKEN, "TRAINER_CAPABILITY_TOKEN_FILE": "/t"},
    }
    assert allow_listed(environ) == {"CORPUS": "en", "S3_ENDPOINT": "here"}
    assert set(without_token(environ)) == {"TRAINER_PASS_ENV", "CORPUS", "S3_ENDPOINT", "OTHER"}


def test_a_child_gets_no_secret_no_descriptor_and_private_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINER_CAPABILITY_TOKEN", TOKEN)
    monkeypatch.setenv("TRN_RUNS_DIR", "/runs")
    leaked = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(leaked, True)
    held = os.open(tmp_path, os.O_RDONLY)
    code = """
        import json, os, resource, sys
        open(sys.argv[1], "w").close()
        fds = [int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")]
        print(json.dumps({
            "environ": dict(os.environ), "fds": sorted(fds), "core": resource.getrlimit(resource.RLIMIT_CORE),
            "mode": os.stat(sys.argv[1]).st_mode & 0o777, "leads": os.getsid(0) == os.getpid(),
            "stdin": sys.stdin.read(),
        }))
    """
    launcher = ConfinedLauncher(Confinement(), os.environ, lease=Lease(["cpu:0"], [held]))
    child = launcher.start(python(code, str(tmp_path / "made")), log=tmp_path / "job.log")
    os.close(leaked)
    assert child.wait(20) == 0, (tmp_path / "job.log").read_text()
    assert child.failure() is None
    found = json.loads((tmp_path / "job.log").read_text())
    assert TOKEN not in json.dumps(found)
    assert found["environ"]["TRN_RUNS_DIR"] == "/runs"
    assert found["environ"]["PYTHONHASHSEED"] == "0"
    assert found["environ"]["TRN_LEASE_FDS"].startswith(f"{held}:")
    assert set(found["fds"]) - {0, 1, 2} == {held}
    assert (found["core"], found["mode"], found["leads"], found["stdin"]) == ([0, 0], 0o600, True, "")
    os.close(held)


def test_memory_beyond_the_limit_is_a_memory_error_there_and_in_its_children(tmp_path: Path) -> None:
    code = f"""
        import subprocess, sys, time
        time.sleep(0.1)
        inner = "bytearray({300 * MIB})"
        print(subprocess.run([sys.executable, "-c", inner], capture_output=True, text=True).stderr[-12:].strip())
        small = bytearray({20 * MIB})
        large = bytearray({300 * MIB})
    """
    status, said, failure = run(tmp_path, code, memory_bytes=200 * MIB)
    limit = f"{200 * MIB:,} bytes"
    assert (status, failure) == (
        1,
        (89, f"it was refused memory: its limit is {limit}"),
    )  # a runner's outcome goes first
    assert said.splitlines()[0] == "MemoryError"
    assert said.splitlines()[-1] == "MemoryError"


def test_what_is_mapped_from_a_file_does_not_count(tmp_path: Path) -> None:
    large = tmp_path / "large"
    with open(large, "wb") as stream:
        stream.truncate(300 * MIB)
    code = f"""
        import mmap
        with open({str(large)!r}, "rb") as stream:
            view = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        print(len(view), sum(view[at] for at in range(0, len(view), 1 << 20)))
    """
    assert run(tmp_path, code, memory_bytes=100 * MIB) == (0, f"{300 * MIB} 0\n", None)


def test_an_abort_for_want_of_memory_is_named(tmp_path: Path) -> None:
    # as C++ ends where nobody catches it; without a limit an abort is an abort
    code = """
        import os
        os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\\n")
        os.abort()
    """
    status, _, failure = run(tmp_path, code, memory_bytes=400 * MIB)
    assert status == -signal.SIGABRT
    assert failure == (89, f"it was refused memory, and aborted: its limit is {400 * MIB:,} bytes")
    (tmp_path / "job.log").unlink()
    assert run(tmp_path, code)[2] is None
    (tmp_path / "job.log").unlink()
    assert run(tmp_path, "import os; os.abort()", memory_bytes=400 * MIB)[2] is None


@pytest.mark.parametrize(
    "line",
    [
        "MemoryError",
        "MemoryError: std::bad_alloc",
        "ImportError: libarrow.so: cannot map zero-fill pages",
        "OpenBLAS error: Memory allocation still failed after 10 retries, giving up.",
        "OSError: [Errno 12] Cannot allocate memory",
    ],
)
def test_a_limit_that_the_libraries_alone_exceed_is_named(tmp_path: Path, line: str) -> None:
    def end(*said: str, **limits: Any) -> tuple[int, str] | None:
        text = "".join(f"{one}\n" for one in said)
        status, _, failure = run(tmp_path, f"import os; os.write(2, {text.encode()!r}); os._exit(1)", **limits)
        assert status == 1
        (tmp_path / "job.log").unlink()
        return failure

    limit = 400 * MIB
    assert end("Traceback", line, memory_bytes=limit) == (89, f"it was refused memory: its limit is {limit:,} bytes")
    assert end("Traceback", line) is None, "without a limit it says nothing of ours"
    assert end(line, "ValueError: and then", memory_bytes=limit) is None, "it ended with something else"


def test_time_that_is_over_is_asked_for_and_then_taken(tmp_path: Path) -> None:
    obedient = """
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: (print("asked"), sys.exit(75)))
        time.sleep(60)
    """
    status, said, failure = run(tmp_path, obedient, time_s=0.4, grace_s=20)
    assert (status, said) == (75, "asked\n")
    assert failure is not None
    assert failure[0] == 93
    (tmp_path / "job.log").unlink()
    began_s = time.monotonic()
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    status, _, failure = run(tmp_path, deaf, time_s=0.3, grace_s=0.3)
    assert 0.6 <= time.monotonic() - began_s < 10
    assert status == -signal.SIGKILL
    assert failure == (93, "it did not end by itself, and was ended from outside: 0.3 s and 0.3 s of grace were over")


def test_a_child_that_ends_in_time_has_no_failure(tmp_path: Path) -> None:
    assert run(tmp_path, "print('done')", time_s=30) == (0, "done\n", None)
    (tmp_path / "job.log").unlink()
    assert run(tmp_path, "raise SystemExit(70)", time_s=30)[::2] == (70, None)


def test_a_signal_reaches_the_child_and_a_kill_is_no_failure_of_its_limits(tmp_path: Path) -> None:
    child = ConfinedLauncher(Confinement(time_s=60), os.environ).start(
        python("import signal; print('up'); signal.pause()"), log=tmp_path / "job.log"
    )
    until(lambda: (tmp_path / "job.log").read_text() == "up\n")
    assert child.poll() is None
    assert child.wait(0.01) is None
    assert child.failure() is None
    child.signal(signal.SIGKILL)
    assert child.wait(20) == -signal.SIGKILL
    assert child.failure() is None
    child.signal(signal.SIGTERM)  # it has ended: nothing happens


@pytest.mark.parametrize(("number", "word"), [(signal.SIGTERM, "preempted"), (signal.SIGINT, "cancelled")])
def test_a_child_that_does_not_end_when_it_is_asked_to_is_killed_and_has_ended_as_asked(
    tmp_path: Path, number: int, word: str
) -> None:
    deaf = """
        import signal, time
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, signal.SIG_IGN)
        print("up")
        time.sleep(60)
    """
    child = ConfinedLauncher(Confinement(stop_s=0.3), os.environ).start(python(deaf), log=tmp_path / "job.log")
    until(lambda: (tmp_path / "job.log").read_text() == "up\n")
    assert child.wait(0.4) is None  # nobody has asked
    child.signal(number)
    assert child.wait(20) == -signal.SIGKILL
    name = signal.Signals(number).name
    assert child.failure() == (
        exit_code_of(word),
        f"{name} was received, and it was killed 0.3 s later, since it had not ended",
    )


@pytest.mark.parametrize("how", ["raise SystemExit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_what_a_child_started_in_its_group_ends_with_it(tmp_path: Path, how: str) -> None:
    code = f"""
        import os, signal, subprocess, sys
        inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        print(inner.pid)
        {how}
    """
    child = ConfinedLauncher(Confinement(), os.environ).start(python(code), log=tmp_path / "job.log")
    assert child.wait(20) is not None
    inner = int((tmp_path / "job.log").read_text())
    until(lambda: not alive(inner))


def counters(tmp_path: Path, version: int) -> tuple[Path, Path]:
    """A /proc and a /sys/fs/cgroup with one process in one group, as the kernel lays them out."""
    proc, root = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "7").mkdir(parents=True)
    group = root / "box/one" if version == 2 else root / "memory/box/one"
    group.mkdir(parents=True)
    if version == 2:
        (proc / "7/cgroup").write_text("0::/box/one\n")
        (group / "memory.events").write_text("low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\noom_group_kill 0\n")
        return proc, group / "memory.events"
    (proc / "7/cgroup").write_text("5:devices:/\n4:cpu,memory:/box/one\n0::/\n")
    (group / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    return proc, group / "memory.oom_control"


@pytest.mark.parametrize("version", [1, 2])
def test_the_kernel_s_counter_is_read_where_the_group_has_it(tmp_path: Path, version: int) -> None:
    proc, file = counters(tmp_path, version)
    kills = OomKills(7, proc=proc, root=tmp_path / "cgroup")
    assert not kills.have_risen()
    file.write_text(file.read_text().replace("oom_kill 1", "oom_kill 2"))
    assert kills.have_risen()
    file.unlink()
    assert not kills.have_risen()


def test_without_a_counter_nothing_is_known(tmp_path: Path) -> None:
    assert not OomKills(7, proc=tmp_path, root=tmp_path).have_risen()
    (tmp_path / "7").mkdir()
    (tmp_path / "7/cgroup").write_text("0::/gone\nnonsense\n")
    assert not OomKills(7, proc=tmp_path, root=tmp_path).have_risen()


def test_a_kill_by_the_kernel_is_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter of the machine itself cannot be raised here: a file that the child counts up stands in for it."""
    _, file = counters(tmp_path, 2)
    monkeypatch.setattr("trn.launch.oom_kills._candidates", lambda of_process, root: [file])
    code = f"""
        import os, pathlib, signal
        file = pathlib.Path({str(file)!r})
        file.write_text(file.read_text().replace("oom_kill 1", "oom_kill 2"))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    status, _, failure = run(tmp_path, code)
    assert status == -signal.SIGKILL
    assert failure is not None
    assert failure[0] == 89
    assert "ran out of memory" in failure[1]


def test_the_kernel_takes_the_child_before_its_starter(tmp_path: Path) -> None:
    code = "import time; time.sleep(0.2); print(open('/proc/self/oom_score_adj').read().strip())"
    assert run(tmp_path, code)[1] == "500\n"


@pytest.mark.parametrize(("exit_code", "word"), [(89, "out_of_memory"), (93, "time_limit")])
def test_a_run_that_was_ended_by_its_limits_says_so(tmp_path: Path, exit_code: int, word: str) -> None:
    row = row_of(tmp_path, "demo", state="running")
    publish(Path(row.run_dir), row.job_id).release()
    ending = settle(row, -signal.SIGKILL, failure=(exit_code, "told by its launcher"))
    assert (ending.state, ending.exit_code, ending.reason) == (word, exit_code, "told by its launcher")
    assert not ending.is_lost
    outcome = outcome_of(Path(row.run_dir), row.job_id)
    assert outcome is not None
    assert (outcome.status, outcome.resumable) == (word, True)
    (last,) = [e for e in read_lines(Path(row.run_dir) / "reports/events.jsonl") if "outcome" in e]
    assert (last["event"], last["outcome"], last["exit_code"]) == ("failed", word, exit_code)


def test_nobody_of_this_user_reads_the_memory_and_variables_of_the_starter() -> None:
    """As an ordinary user, which root has to become first: with all its rights it reads everything."""
    code = """
        import ctypes, os
        from trn.launch.confined import keep_to_itself

        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # which the change of users took away

        def look():
            child = os.fork()
            if child == 0:
                try:
                    os._exit(0 if b"TRAINER" in open(f"/proc/{os.getppid()}/environ", "rb").read() else 1)
                except PermissionError:
                    os._exit(13)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

        before = look()
        keep_to_itself()
        print(before, look())
    """
    environ = {**os.environ, "TRAINER_CAPABILITY_TOKEN": TOKEN}
    found = subprocess.run(python(code), capture_output=True, text=True, timeout=60, env=environ)
    assert found.stdout == "0 13\n", found.stderr


def test_the_token_is_where_the_program_looks_and_no_longer_where_the_system_shows_it() -> None:
    code = """
        import os
        from trn.launch.confined import keep_to_itself

        keep_to_itself()
        shown = open("/proc/self/environ", "rb").read()
        print(os.environ["TRAINER_CAPABILITY_TOKEN"].encode() in shown, b"BESIDE=it" in shown)
        print(os.environ["TRAINER_CAPABILITY_TOKEN"])
    """
    environ = {**os.environ, "TRAINER_CAPABILITY_TOKEN": TOKEN, "BESIDE": "it"}
    found = subprocess.run(python(code), capture_output=True, text=True, timeout=60, env=environ)
    assert found.stdout == f"False True\n{TOKEN}\n", found.stderr


def test_limits_are_set_before_the_first_line_of_the_program(tmp_path: Path) -> None:
    code = "import resource; print(resource.getrlimit(resource.RLIMIT_DATA)[0])"
    for number in range(5):
        child = ConfinedLauncher(Confinement(memory_bytes=1 << 30), os.environ).start(
            python(code), log=tmp_path / f"{number}.log"
        )
        assert child.wait(20) == 0
        assert (tmp_path / f"{number}.log").read_text() == f"{1 << 30}\n"
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY  # this process's own are as they were
