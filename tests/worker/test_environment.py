"""What the environment of a worker may say, and what is refused of it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from trn.errors import UsageError
from trn.records import read_lines
from trn.worker.cancelling import asks_to_cancel
from trn.worker.environment import read_settings
from trn.worker.refusal import STARTUP_CODES, StartupRefused
from trn.worker.run import leave_refusal


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "job.json").write_text("{}")
    return {"WORKER_MODE": "trainer", "TRAINER_JOB_SPEC_PATH": str(tmp_path / "job.json")}


def test_what_is_not_said_has_its_usual_value(environ: dict[str, str]) -> None:
    settings = read_settings(environ | {"TRAINER_PLUGIN": "", "TRAINER_ARTIFACTS_DIR": " ", "TRAINER_CANCELLED": ""})
    assert (settings.plugin, settings.runs_dir, settings.events_path) == (None, None, None)
    assert (settings.max_runtime_s, settings.is_cancelled, settings.upload_s) == (None, False, 600.0)


def test_the_artifacts_folder_has_the_usual_places_and_each_can_be_elsewhere(
    environ: dict[str, str], tmp_path: Path
) -> None:
    environ["TRAINER_ARTIFACTS_DIR"] = str(tmp_path / "out")
    settings = read_settings(environ | {"TRAINER_SAMPLES_DIR": str(tmp_path / "elsewhere")})
    assert settings.runs_dir == tmp_path / "out/runs"
    assert settings.checkpoints_dir == tmp_path / "out/checkpoints"
    assert settings.samples_dir == tmp_path / "elsewhere"
    assert settings.events_path == tmp_path / "out/metrics/events.jsonl"


@pytest.mark.parametrize(
    ("name", "value", "code", "exit_code"),
    [
        ("TRAINER_JOB_SPEC_PATH", "/nowhere/job.json", "startup.missing_job_spec_path", 2),
        ("TRAINER_MAX_RUNTIME_SECONDS", "-1", "startup.invalid_timeout", 2),
        ("TRAINER_MAX_RUNTIME_SECONDS", "soon", "startup.invalid_timeout", 2),
        ("TRAINER_MAX_RUNTIME_SECONDS", "nan", "startup.invalid_timeout", 2),
        ("TRAINER_MAX_RUNTIME_SECONDS", "inf", "startup.invalid_timeout", 2),
        ("TRAINER_CHECKPOINTS_DIR", "a\0b", "startup.invalid_artifact_paths", 78),
    ],
)
def test_a_slip_is_refused_with_its_code(
    environ: dict[str, str], name: str, value: str, code: str, exit_code: int
) -> None:
    with pytest.raises(StartupRefused) as caught:
        read_settings(environ | {name: value})
    assert (caught.value.startup_code, caught.value.exit_status) == (code, exit_code)
    assert code in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["TRAINER_ORCHESTRATOR_URL", "TRAINER_UPLOAD_TERMINAL_URL"])
@pytest.mark.parametrize(
    "url", ["http://[bad", "ftp://host/x", "host/x", "https://me:secret@host/", "https://h/?token=secret"]
)
def test_a_url_to_which_nothing_could_be_sent_is_refused_at_once(environ: dict[str, str], name: str, url: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_settings(environ | {name: url})
    assert name in str(caught.value)
    assert "secret@" not in str(caught.value)
    assert "=secret" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        *("TRAINER_ARTIFACTS_DIR", "TRN_RUNS_DIR", "TRAINER_CHECKPOINTS_DIR", "TRAINER_SAMPLES_DIR"),
        *("TRAINER_METRICS_DIR", "TRAINER_CACHE_DIR", "TRAINER_EVENTS_PATH"),
    ],
)
def test_a_folder_that_is_a_file_or_below_one_is_refused_by_its_name(
    environ: dict[str, str], tmp_path: Path, name: str
) -> None:
    for place in ("job.json/events.jsonl", "job.json/a/b", *(() if name.endswith("_PATH") else ("job.json",))):
        with pytest.raises(StartupRefused) as caught:
            read_settings(environ | {name: str(tmp_path / place)})
        assert str(caught.value) == (
            f"worker refused [startup.invalid_artifact_paths] at {name}: expected a folder, and"
            f" {tmp_path / 'job.json'} is none. Name another one."
        )


def test_a_limit_of_zero_is_no_limit(environ: dict[str, str]) -> None:
    assert read_settings(environ | {"TRAINER_MAX_RUNTIME_SECONDS": "0"}).max_runtime_s == 0.0


def test_a_limit_says_what_zero_means_for_it(environ: dict[str, str]) -> None:
    for name, zero in (("STOP", "no limit"), ("UPLOAD", "no time"), ("LEASE_WAIT", "no waiting")):
        with pytest.raises(StartupRefused, match=f"0 means {zero}"):
            read_settings(environ | {f"TRAINER_{name}_SECONDS": "soon"})


def test_a_word_that_is_no_switch_neither_cancels_nor_trains(environ: dict[str, str]) -> None:
    assert read_settings(environ | {"TRAINER_CANCELLED": "Yes"}).is_cancelled
    assert not read_settings(environ | {"TRAINER_CANCELLED": "0"}).is_cancelled
    with pytest.raises(UsageError, match="TRAINER_CANCELLED: expected true or false, found 'on'"):
        read_settings(environ | {"TRAINER_CANCELLED": "on"})


@pytest.mark.parametrize("mode", ["", "train", "both"])
def test_another_mode_is_refused(environ: dict[str, str], mode: str) -> None:
    with pytest.raises(UsageError, match="expected trainer"):
        read_settings(environ | {"WORKER_MODE": mode})


def test_inference_says_what_it_is_not(environ: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="inference is not built"):
        read_settings(environ | {"WORKER_MODE": "Inference"})


def test_each_startup_code_has_its_exit_status() -> None:
    assert {name: StartupRefused(name, "").exit_status for name in STARTUP_CODES} == {
        "missing_job_spec_path": 2,
        "missing_trainer_import": 2,
        "invalid_artifact_paths": 78,
        "invalid_timeout": 2,
        "missing_capability_token": 77,
    }


@pytest.mark.parametrize(
    ("text", "asked"), [("", True), ("1\n", True), ("Cancelled", True), ("0", False), ("no", False), ("later", False)]
)
def test_a_cancel_file_asks_when_it_is_empty_or_says_yes(tmp_path: Path, text: str, asked: bool) -> None:
    assert not asks_to_cancel(tmp_path / "cancel")
    (tmp_path / "cancel").write_text(text)
    assert asks_to_cancel(tmp_path / "cancel") is asked


def test_a_cancel_file_that_cannot_be_read_asks(tmp_path: Path) -> None:
    (tmp_path / "cancel").mkdir()
    assert asks_to_cancel(tmp_path / "cancel")


def test_the_program_refuses_in_one_line_and_leaves_an_event(tmp_path: Path) -> None:
    environ = {
        "PATH": os.environ["PATH"],
        "WORKER_MODE": "trainer",
        "TRAINER_JOB_SPEC_PATH": str(tmp_path / "none.json"),
        "TRAINER_EVENTS_PATH": str(tmp_path / "events.jsonl"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "trn.worker"], env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("worker refused [startup.missing_job_spec_path] at TRAINER_JOB_SPEC_PATH:")
    (event,) = (tmp_path / "events.jsonl").read_text().splitlines()
    assert '"event":"failed"' in event
    assert '"code":"startup.missing_job_spec_path"' in event
    assert '"exit_code":2' in event
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["events.jsonl"]


def test_a_refusal_leaves_the_journal_of_a_run_as_it_is(tmp_path: Path) -> None:
    reports = tmp_path / "runs/exp/reports"
    reports.mkdir(parents=True)
    (reports / "resolved_config.json").write_text("{}")
    (reports / "events.jsonl").write_text('{"event":"job_started","seq":1}\n{"torn')
    leave_refusal(reports / "events.jsonl", "job-1", UsageError("no"))
    assert (reports / "events.jsonl").read_text().endswith('{"torn')
    assert len(list(reports.iterdir())) == 2
    leave_refusal(tmp_path / "events.jsonl", "job-1", OSError(28, "No space left on device", "there"))
    (event,) = read_lines(tmp_path / "events.jsonl")
    assert (event["event"], event["outcome"], event["exit_code"]) == ("failed", "io_error", 74)
    leave_refusal(None, "job-1", UsageError("no"))


def test_a_signal_that_comes_while_the_worker_is_loaded_or_sends_is_heard() -> None:
    code = """
        import os, signal, threading
        from trn.worker.stopping import hold_signals, stopping_on_signals

        hold_signals()
        os.kill(os.getpid(), signal.SIGTERM)
        with stopping_on_signals() as stopping:
            print(stopping.outcome, stopping.reason)
        is_called = threading.Event()
        with stopping_on_signals() as stopping:
            with stopping.then(is_called.set):
                assert not is_called.wait(0.3)
                os.kill(os.getpid(), signal.SIGINT)
                print(is_called.wait(30), stopping.outcome)
    """
    argv = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.stdout == "preempted SIGTERM was received\nTrue cancelled\n", done.stderr
