"""The heartbeat of a run: what it says while the main thread stands still, and of how a job came and went."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from support.forkserver import ForkServer
from support.job import command, write_job
from support.plans import plan_of
from trn.doors.alive import alive_line, last_beats
from trn.doors.cli import main
from trn.doors.schemas import schema_of
from trn.errors import TrainerError
from trn.loop.progress import Progress
from trn.loop.pulse import Pulse
from trn.ranks import World
from trn.records import Json, read_lines
from trn.runner.beating import Heartbeat

BEFORE = ["heartbeat_enabled", "setup", "configure", "train_begin", "first_batch", "first_step_begin", "first_step_end"]


def beats(run_dir: Path, rank: int = 0) -> list[Json]:
    found = list(read_lines(run_dir / f"reports/train_heartbeat.rank{rank}.jsonl"))
    check = Draft202012Validator(schema_of("heartbeat"), format_checker=Draft202012Validator.FORMAT_CHECKER)
    for one in found:
        assert [error.message for error in check.iter_errors(one)] == [], one
    return found


def test_a_main_thread_that_hangs_still_beats_and_says_since_when(tmp_path: Path) -> None:
    (tmp_path / "run/reports").mkdir(parents=True)
    pulse = Pulse(progress=Progress(step=7), doing="evaluate", ended_s=time.perf_counter(), waited_s=0.25)
    heartbeat = Heartbeat(plan_of(tmp_path / "run", heartbeat_s=0.05), pulse, World(), job_id="job-1")
    heartbeat.start()
    heartbeat.admit()
    time.sleep(0.4)  # the hang
    heartbeat.stop()
    first, *periodic = list(read_lines(tmp_path / "run/reports/train_heartbeat.rank0.jsonl"))
    assert (first["event"], first["rank"], first["step"]) == ("heartbeat_enabled", 0, 7)
    assert len(periodic) >= 4
    since = [one["since_step_s"] for one in periodic]
    assert since == sorted(since)
    assert since[-1] > 0.2
    for one in periodic:
        assert (one["event"], one["step"], one["epoch"], one["doing"]) == ("periodic", 7, 1, "evaluate")
        assert one["rss_bytes"] > 10_000_000
        assert one["threads"] >= 2
        assert (one["device_bytes"], one["data_wait_s"], one["data_wait_total_s"]) == (None, 0.25, 0.0)


def test_an_interval_of_zero_is_no_heartbeat_at_all(tmp_path: Path) -> None:
    pulse = Pulse()
    heartbeat = Heartbeat(plan_of(tmp_path / "run", heartbeat_s=0.0), pulse, World(), job_id="job-1")
    heartbeat.start()
    heartbeat.admit()
    pulse.begin("setup")
    heartbeat.stop()
    assert list(tmp_path.iterdir()) == []


def test_an_ending_is_said_once_and_an_error_of_the_trainer_by_its_own_name() -> None:
    marked: list[tuple[str, object]] = []
    pulse = Pulse(mark=lambda event, **fields: marked.append((event, fields)))
    error = TrainerError("ValueError: a bad day")
    error.__cause__ = ValueError("a bad day")
    pulse.failed(error)
    pulse.failed(RuntimeError())
    pulse.ended("trainer_raised")
    assert marked == [("failed", {"exc_type": "ValueError"})]


@pytest.mark.slow
def test_the_marks_of_a_run_of_its_resume_and_of_its_failure(
    server: ForkServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, log, run_dir = write_job(tmp_path / "job", max_steps=30), tmp_path / "log", tmp_path / "run"
    trainer = spec.parent / "noisy.py"
    good = trainer.read_text()
    trainer.write_text(
        good.replace("        x += 0.01", "        if ctx.step == 27: raise KeyError('x')\n        x += 0.01")
    )
    assert server.run(command(spec, tmp_path, "run"), log) == 70, log.read_text()
    first = beats(run_dir)
    assert [one["event"] for one in first[:7]] == BEFORE
    assert (first[-1]["event"], first[-1]["exc_type"], first[-1]["step"]) == ("failed", "KeyError", 26)
    trainer.write_text(good)
    mirrored = (run_dir / "logs/train.log").read_bytes()
    spec.write_text(spec.read_text() + "log: {enabled: false}\n")
    assert server.run(command(spec, tmp_path, "run", "--resume", "--allow-change", "code"), log) == 0, log.read_text()
    assert (run_dir / "logs/train.log").read_bytes() == mirrored
    found = beats(run_dir)
    second = found[len(first) :]
    assert found[: len(first)] == first
    assert len({one["job_id"] for one in first}) == len({one["job_id"] for one in second}) == 1
    assert first[0]["job_id"] != second[0]["job_id"]
    events = [one["event"] for one in second if one["event"] != "periodic"]
    assert events == [*BEFORE, "evaluate", "evaluated", "save", "train_end", "ended"]
    assert second[3]["step"] == 25
    assert second[-1]["outcome"] == "completed"
    (names,) = [one["metrics"] for one in second if one["event"] == "evaluated"]
    assert names == ["val_loss", "val_mae", "val_rows"]
    assert not any("metrics" in one for one in found if one["event"] != "evaluated")
    assert main(["status", "run", "--runs-dir", str(tmp_path)]) == 0
    assert "alive" not in capsys.readouterr().out  # the run is over


def test_every_key_of_a_line_is_explained_and_no_other_is() -> None:
    page = (Path(__file__).parents[2] / "docs/artifacts.md").read_text()
    table = page.split("## train_heartbeat.rankR.jsonl")[1].split("\n## ")[0]
    told = re.findall(r"^\| (`[^|]*`) \|", table, re.MULTILINE)
    explained = {key for cell in told for key in re.findall(r"`(\w+)`", cell)}
    assert explained == set(schema_of("heartbeat")["properties"])


def test_status_names_the_rank_that_is_behind(tmp_path: Path) -> None:
    for rank, ts in ((0, "2026-11-22T10:00:31.000000Z"), (1, "2026-11-22T10:00:01.000000Z")):
        line = f'{{"ts": "{ts}", "event": "periodic", "doing": "evaluate", "since_step_s": 34.25}}\n'
        (tmp_path / f"train_heartbeat.rank{rank}.jsonl").write_text(line)
    (tmp_path / "train_heartbeat.rank2.jsonl").write_text("torn")
    assert alive_line(last_beats(tmp_path)) == "2026-11-22 10:00:01 UTC, at evaluate, no step ended for 34.25 s, rank 1"
    assert alive_line({}) is None


def test_a_heartbeat_of_somebody_else_colours_no_terminal_and_ends_nothing(tmp_path: Path) -> None:
    odd = {"ts": "\x1b[2Jsoon", "doing": "nothing\n", "since_step_s": 10**400}
    (tmp_path / "train_heartbeat.rank0.jsonl").write_text(json.dumps(odd) + "\n")
    assert alive_line(last_beats(tmp_path)) == "soon UTC, at nothing , no step ended for beyond 1e308 s"


# who logs

LOGS = """
import logging, os, sys
from trn.ranks import read_world
from trn.runner.console import set_up_logging

set_up_logging(read_world(os.environ))
logging.getLogger("lib").info("info")
logging.getLogger("lib").warning("warning\\nin two lines")
logging.getLogger("lib").error("error")
"""


def logged(monkeypatch: pytest.MonkeyPatch, rank: int, verbose: str | None) -> list[str]:
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TRN_VERBOSE", raising=False)
    if verbose is not None:
        monkeypatch.setenv("TRN_VERBOSE", verbose)
    done = subprocess.run([sys.executable, "-c", LOGS], capture_output=True, text=True, check=True, timeout=60)
    return done.stderr.splitlines()


def test_rank_0_logs_and_the_others_only_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    assert logged(monkeypatch, 0, None) == ["warning", "in two lines", "error"]
    assert logged(monkeypatch, 1, None) == ["error"]
    assert logged(monkeypatch, 1, "0") == ["error"]


@pytest.mark.parametrize("rank", [0, 1])
def test_verbose_is_every_record_from_info_on_of_every_rank(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    assert logged(monkeypatch, rank, "1") == [
        f"rank {rank}: INFO lib: info",
        f"rank {rank}: WARNING lib: warning",
        f"rank {rank}: in two lines",
        f"rank {rank}: ERROR lib: error",
    ]
