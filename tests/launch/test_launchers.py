"""Launchers, with real programs: captured output, signals to the child alone, and the program in this process."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from support.door import until
from trn.errors import StorageError
from trn.launch import InlineLauncher, LocalLauncher


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-u", "-c", textwrap.dedent(code), *arguments]


def test_both_outputs_go_to_the_log_in_order(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "deep" / "job.log"
    child = LocalLauncher().start(
        python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"), log=log
    )
    assert child.wait(20) == child.poll() == 3
    assert log.read_text() == "out\nerr\n"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_a_child_reads_nothing_and_leads_its_own_session(tmp_path: Path) -> None:
    code = "import os, sys; print(repr(sys.stdin.read()), os.getsid(0) == os.getpid())"
    child = LocalLauncher().start(python(code), log=tmp_path / "job.log")
    assert child.wait(20) == 0
    assert (tmp_path / "job.log").read_text() == "'' True\n"


def test_waiting_returns_none_while_the_child_runs_and_signals_end_it(tmp_path: Path) -> None:
    child = LocalLauncher().start(python("import signal; print('up'); signal.pause()"), log=tmp_path / "job.log")
    until(lambda: (tmp_path / "job.log").read_text() == "up\n")
    assert child.poll() is None
    assert child.wait(0.01) is None
    child.signal(signal.SIGTERM)
    assert child.wait(20) == -signal.SIGTERM
    child.signal(signal.SIGTERM)  # it has ended: nothing happens


def test_a_signal_reaches_the_child_but_not_its_children(tmp_path: Path) -> None:
    code = """
        import signal, subprocess, sys
        signal.signal(signal.SIGUSR1, lambda *_: (print("inner runs:", inner.poll() is None), inner.kill(), exit(0)))
        inner = subprocess.Popen([sys.executable, "-c", "import signal; print('inner', flush=True); signal.pause()"])
        while True:
            signal.pause()
    """
    log = tmp_path / "job.log"
    child = LocalLauncher().start(python(code), log=log)
    until(lambda: log.read_text() == "inner\n")
    child.signal(signal.SIGUSR1)
    assert child.wait(20) == 0
    assert log.read_text() == "inner\ninner runs: True\n"


def test_a_child_prints_on_when_its_starter_is_killed(tmp_path: Path) -> None:
    go, log = tmp_path / "go", tmp_path / "job.log"
    os.mkfifo(go)
    starter = f"""
        import os, signal, sys
        from pathlib import Path
        from trn.launch import LocalLauncher
        inner = "print('before'); open({str(go)!r}).read(); print('after')"
        LocalLauncher().start([sys.executable, "-u", "-c", inner], log=Path({str(log)!r}))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert subprocess.run(python(starter), check=False).returncode == -signal.SIGKILL
    with open(go, "w"):
        pass
    until(lambda: log.read_text() == "before\nafter\n")


def test_a_log_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "job.log").mkdir()
    with pytest.raises(StorageError, match=r"job\.log: cannot open the job's log: Is a directory\."):
        LocalLauncher().start(python("pass"), log=tmp_path / "job.log")


@pytest.mark.parametrize(
    ("code", "expected"),
    [("pass", 0), ("raise SystemExit(78)", 78), ("raise SystemExit", 0), ("raise SystemExit('one line')", 1)],
)
def test_inline_runs_a_module_in_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: str, expected: int
) -> None:
    (tmp_path / "inline_child.py").write_text(f"import os, sys\nprint(os.getpid(), __name__, sys.argv[1:])\n{code}\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = list(sys.argv)
    handle = InlineLauncher().start(["python", "-u", "-m", "inline_child", "--job-id", "J"], log=tmp_path / "job.log")
    assert handle.poll() == handle.wait(0) == expected
    assert sys.argv == before
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"{os.getpid()} __main__ ['--job-id', 'J']\n")
    assert not (tmp_path / "job.log").exists()


def test_inline_lets_an_exception_through_to_the_debugger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inline_failing.py").write_text("raise LookupError('seen')\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = list(sys.argv)
    with pytest.raises(LookupError, match="seen"):
        InlineLauncher().start(["python", "-m", "inline_failing"], log=tmp_path / "job.log")
    assert sys.argv == before
