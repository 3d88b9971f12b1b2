"""Targets of a whole run: in the plan, over a kill and a resume, and without a part in what the run computes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import redis

from support.job import write_job
from support.plans import plan_of
from support.sending import free_port, lines_of, redis_server, wait_for
from trn.runner.contract import revise
from trn.spec.plan_model import Plan


def test_targets_are_no_part_of_what_a_run_is_and_may_change_on_a_resume(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "run")
    wanted = plan.model_copy(update={"events": [f"file:{tmp_path}/out.jsonl"]}).sealed()
    assert wanted.fingerprint == plan.compute_fingerprint()
    revised, differences = revise(plan.sealed(), wanted, allowed=())
    assert differences == ()
    assert revised.events == wanted.events
    assert Plan.read(revised.to_bytes(), "here").events == wanted.events


def trn(told: Path, *arguments: str, **environ: str) -> subprocess.Popen[bytes]:
    with open(told, "wb") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "trn", *arguments],
            env={**os.environ, **environ},
            stdout=subprocess.DEVNULL,
            stderr=stream,
            start_new_session=True,
        )


def kill_runner(door: subprocess.Popen[bytes]) -> None:
    [runner] = [one for one in psutil.Process(door.pid).children() if "trn.runner" in one.cmdline()]
    runner.send_signal(signal.SIGKILL)


@pytest.mark.slow
def test_a_run_that_is_killed_and_resumed_is_in_each_target_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One target is never there, and costs nothing but a line at the end."""
    spec = write_job(tmp_path, max_steps=300)
    run_dir, out, told = tmp_path / "runs/run", tmp_path / "out.jsonl", tmp_path / "told"
    with redis_server(tmp_path, "--requirepass", "violet") as server:
        targets = [f"{server.url}?password_env=PW", "file:out.jsonl", f"redis://127.0.0.1:{free_port()}/0"]
        asked = [part for one in targets for part in ("--events", one)]
        arguments = ["run", "--config", str(spec), "--run-id", "run", "--runs-dir", str(tmp_path / "runs"), *asked]
        monkeypatch.chdir(tmp_path)
        door = trn(told, *arguments, PW="violet")
        wait_for(lambda: out.exists() and len(lines_of(out)) > 25, "some events")
        kill_runner(door)
        door.send_signal(signal.SIGTERM)  # not to wait long for the target that is not there
        assert door.wait(60) == 71
        door = trn(told, "resume", str(run_dir), PW="violet")
        events = run_dir / "reports/events.jsonl"
        wait_for(lambda: b'"completed"' in events.read_bytes(), "the end")
        wait_for(lambda: out.read_bytes() == events.read_bytes(), "the file")
        client = redis.Redis(port=server.port, password="violet")
        wait_for(lambda: client.xlen("trn:run") == len(lines_of(events)), "the stream")
        ids = [int(entry.decode().partition("-")[0]) for entry, _ in client.xrange("trn:run")]
        wait_for(lambda: b"Ctrl-C to leave" in told.read_bytes(), "the door to wait for the target that is not there")
        door.send_signal(signal.SIGINT)
        assert door.wait(60) == 0
    for one in psutil.process_iter(["cmdline"]):  # what sends goes on for 30 s
        if str(run_dir) in (one.info["cmdline"] or []):
            one.kill()
    assert ids == list(range(1, len(ids) + 1))
    assert f"{len(ids)} not delivered, of events (" in told.read_text().splitlines()[-1]
    kinds = [line["event"] for line in lines_of(out)]
    assert kinds.count("failed") == kinds.count("resumed") == kinds.count("completed") == 1
    written = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert not any(b"violet" in path.read_bytes() for path in written)
