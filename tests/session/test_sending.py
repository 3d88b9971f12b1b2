"""A loop of one's own whose spec names targets: they get its journal, and cost it nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from support.own_loop import open_and, train
from support.sending import ToyRun, wait_for


def test_the_journal_of_an_own_loop_is_sent_to_its_end(spec: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run = open_and({**spec, "events": [f"file:{out}"]}, tmp_path, train)
    assert run.exit_code == 0
    journal = (tmp_path / "run/reports/events.jsonl").read_bytes()
    wait_for(lambda: out.exists() and out.read_bytes() == journal, "the events")


FORKS = """
import os, sys, time
from types import SimpleNamespace
from trn.session.sending import sending

with sending(SimpleNamespace(events=[sys.argv[1]], run_dir=sys.argv[2]), "job-1"):
    child = os.fork()
    if child == 0:
        os.closerange(0, 3)
        time.sleep(120)
        os._exit(0)
print(child)
"""


def is_sent(run_dir: Path) -> bool:
    lines = (one.info["cmdline"] or [] for one in psutil.process_iter(["cmdline"]))
    return any("trn.sinks" in line and str(run_dir) in line for line in lines)


def test_a_child_that_the_loop_forks_and_leaves_keeps_no_sender(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run = ToyRun(tmp_path / "runs", events=[f"file:{out}"])
    run.emit(5)
    argv = [sys.executable, "-c", FORKS, f"file:{out}", str(run.dir)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, timeout=60, check=True)
    child = int(done.stdout)
    try:
        wait_for(lambda: not is_sent(run.dir), "the sender to end")
        assert out.read_bytes() == run.events_file.read_bytes()
        assert psutil.pid_exists(child)
    finally:
        os.kill(child, signal.SIGKILL)
