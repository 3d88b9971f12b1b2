"""The `trn` command as a program: what it loads, how it answers mistakes, and whole runs through it."""

from __future__ import annotations

import json
import os
import resource
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.door import open_door, row_of, until
from support.stand_in import argv
from trn.doors import cli
from trn.doors.cli import main
from trn.jobs import open_store
from trn.records import read_lines

Capture = pytest.CaptureFixture[str]

HEAVY = ("torch", "numpy", "pyarrow", "pydantic", "ruamel", "yaml", "rich")


def trn(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trn.doors.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **options)


@pytest.fixture
def runs_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRN_RUNS_DIR", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def demo(runs_dir: Path) -> Path:
    """The folder of a finished run."""
    with open_store(runs_dir) as store:
        open_door(store, row_of(runs_dir, "demo"), argv("--then", "complete"))
    return runs_dir / "demo"


# starting quickly


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["list"],
        ["list", "--json"],
        ["status", "demo"],
        ["logs", "demo"],
        ["logs", "-f", "demo"],
    ],
)
def test_reading_verbs_load_nothing_heavy(demo: Path, arguments: list[str]) -> None:
    code = (
        "import sys; from trn.doors.cli import main; status = main(sys.argv[1:]);"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]; print(status, loaded, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr == "0 []\n"


@pytest.mark.parametrize("arguments", [["--help"], ["list"]])
def test_what_digests_nothing_does_not_load_openssl(demo: Path, arguments: list[str]) -> None:
    code = (
        "import sys; from trn.doors.cli import main; status = main(sys.argv[1:]);"
        "print(status, '_hashlib' in sys.modules, 'trn.doors.stream' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr == "0 False False\n"


def test_the_collector_rests_while_a_verb_is_imported_and_works_while_it_runs(demo: Path) -> None:
    code = (
        "import gc, sys; from trn.doors import cli; loads, states = cli.importlib.import_module, [gc.isenabled()]\n"
        "def load(name):\n"
        "    states.append(gc.isenabled()); module = loads(name)\n"
        "    module.newest_jobs = lambda *_: states.append(gc.isenabled()) or []\n"
        "    return module\n"
        "cli.importlib.import_module = load; cli.main(['list']); print(states)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[True, False, True]\n"


@pytest.mark.parametrize("verb", [["data", "--help"], ["resume", "nothing"], ["run", "--help"]])
def test_working_verbs_load_the_spec_only_when_they_read_one(runs_dir: Path, verb: list[str]) -> None:
    code = (
        "import atexit, os, sys; os.execv = lambda *_: sys.exit(0);"
        "from trn.doors.cli import main; status = main(sys.argv[1:]);"
    )
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code, *verb], capture_output=True, text=True, check=False
    )
    imported = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "click" in imported
    assert imported.isdisjoint({"torch", "pyarrow", "pydantic", "ruamel"})


def _cpu_s(command: list[str], environment: dict[str, str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.slow
def test_help_and_a_list_of_a_thousand_jobs_stay_near_the_bare_interpreter(
    runs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trn.jobs.database._REST_S", 0.0)  # nobody else writes
    with open_store(runs_dir) as store:
        for n in range(1000):
            row = row_of(runs_dir, f"run-{n}")
            store.add(row)
            store.advance(row.job_id, "completed", exit_code=0)
    # as installed: compiled once; the environment of a test run may forbid that
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment["PYTHONPYCACHEPREFIX"] = str(tmp_path / "compiled")
    verb = [sys.executable, "-m", "trn.doors.cli"]
    commands = {"bare": [sys.executable, "-c", "pass"], "--help": [*verb, "--help"], "list": [*verb, "list"]}
    for command in commands.values():
        _cpu_s(command, environment)
    # in turn: whatever else the machine does slows all of a round, and the median forgets the odd one
    rounds = [{name: _cpu_s(command, environment) for name, command in commands.items()} for _ in range(11)]
    # 4.0 and 5.1 when measured, with 0.2 between repetitions, idle or busy; click alone is 3.8. The goal is 6; another
    # interpreter or file system is given one more
    for name, most in (("--help", 6), ("list", 7)):
        assert statistics.median(one[name] / one["bare"] for one in rounds) < most, name


# mistakes


def test_help_names_every_verb_and_each_verb_has_help(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for verb in cli._VERBS:
        assert f"\n  {verb} " in text
        if verb != "data":  # its help is its child's
            assert main([verb, "--help"]) == 0
            assert capsys.readouterr().out.startswith(f"Usage: trn {verb}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Usage: trn"),
        (["fly"], "no such verb: 'fly'"),
        (["run"], "Missing option '--config'"),
        (["list", "--limit", "0"], "0 is not in the range"),
        (["list", "--nonsense"], "No such option"),
        (["logs"], "Missing argument"),
        (["run", "--config", "x", "--resume", "--dry-run"], "exclude each other"),
        (["resume", "nothing"], "there are no runs here"),
        (["verify", "nothing"], "there are no runs here"),
    ],
)
def test_a_wrong_command_line_is_explained_and_exits_with_2(
    runs_dir: Path, capsys: Capture, arguments: list[str], said: str
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert not runs_dir.exists()


def test_a_damaged_store_is_one_line_and_74(demo: Path, capsys: Capture) -> None:
    capsys.readouterr()
    (demo.parent / ".trn" / "jobs.db").write_bytes(b"damaged" * 1000)
    assert main(["list"]) == 74
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("storage error [io_error] at ")
    assert captured.err.count("\n") == 1


def test_a_folder_that_cannot_be_read_is_one_line_and_74(demo: Path, capsys: Capture) -> None:
    (demo / "reports" / "events.jsonl").unlink()
    (demo / "reports" / "events.jsonl").mkdir()
    capsys.readouterr()
    assert main(["logs", "demo"]) == 74
    assert capsys.readouterr().err == "storage error [io_error]: Is a directory.\n"


def test_a_name_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    folder = os.fsencode(tmp_path / "runs") + b"/\xff"
    command: list[str | bytes] = [sys.executable, "-m", "trn.doors.cli", "status", folder, "--json"]
    for part in ("reports/resolved_config.json", ".lock"):
        path = Path(os.fsdecode(folder)) / part
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 2
    assert b"is not UTF-8 text" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("buffering", ["-u", "-b"])
def test_a_reader_that_goes_away_is_no_error(demo: Path, buffering: str) -> None:
    command = [sys.executable, buffering, "-m", "trn.doors.cli", "logs", "demo"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen(command, **pipes) as reader:
        assert reader.stdout is not None
        assert reader.stderr is not None
        reader.stdout.close()
        assert reader.stderr.read() == ""
    assert reader.returncode == 141


def test_an_interrupted_look_is_quiet(runs_dir: Path) -> None:
    row = row_of(runs_dir, "demo")
    with open_store(runs_dir) as store:
        store.add(row)
        store.advance(row.job_id, "running")
    holder = subprocess.Popen(
        [part.replace("{job}", row.job_id).replace("{run_dir}", row.run_dir) for part in argv("--then", "lock")],
        stdout=subprocess.DEVNULL,
    )
    until((runs_dir / "demo" / "samples" / "step-00000003-text.txt").exists)
    command = [sys.executable, "-u", "-m", "trn.doors.cli", "logs", "-f", "demo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stderr is not None
        while "sample at step 3" not in reader.stdout.readline():
            pass
        reader.send_signal(signal.SIGINT)
        assert "Traceback" not in reader.stderr.read()
    holder.kill()
    holder.wait()
    assert reader.returncode == 130


# run, resume, verify, data, schema: through their children


def test_a_refused_spec_names_its_problems_and_creates_nothing(runs_dir: Path, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("config_version: 1\ntrianer: lm\nseed: 1\n")
    done = trn("run", "--config", str(spec))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("spec error [spec_refused] ")
    assert "trianer" in done.stderr
    assert "Traceback" not in done.stderr
    missing = trn("run", "--config", str(tmp_path / "none.yaml"))
    assert missing.returncode == 2
    assert "none.yaml" in missing.stderr
    assert not runs_dir.exists()


@pytest.mark.parametrize("run_id", ["../x", "jobs", "LOGS", ".hidden", "a/b", "a" * 65, ""])
def test_a_run_id_never_becomes_a_path_unchecked(runs_dir: Path, job: Path, run_id: str) -> None:
    done = trn("run", "--config", str(job), "--run-id", run_id)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not runs_dir.exists()


@pytest.mark.parametrize("verb", [["list"], ["doctor"], ["gc"], ["status", "run"]])
def test_a_url_is_no_folder_of_runs(
    verb: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRN_RUNS_DIR", "s3://bucket/runs")
    assert main(verb) == 2
    assert "TRN_RUNS_DIR: expected a folder on this machine, found 's3://bucket/runs'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_resuming_without_a_name_is_refused(runs_dir: Path, job: Path) -> None:
    for flag in ("--resume", "--auto-resume"):
        done = trn("run", "--config", str(job), flag)
        assert done.returncode == 2
        assert "there is no run id to look for. Give --run-id, or run_id in the spec." in done.stderr
    assert not runs_dir.exists()


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A real job of a second or two."""
    from support.job import write_job

    return write_job(tmp_path / "job", max_steps=60)


@pytest.mark.slow
def test_a_run_through_the_command_line(runs_dir: Path, job: Path) -> None:
    done = trn("run", "--config", str(job), "--run-id", "demo", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["run_id"], document["state"], document["exit_code"]) == ("demo", "completed", 0)
    assert document["run_dir"] == str(runs_dir / "demo")
    assert document["outcome"]["step"] == 60
    assert f"     folder {runs_dir / 'demo'}" in done.stderr.splitlines()
    assert trn("verify", "demo").returncode == 0

    again = trn("resume", "demo", "--json")
    assert again.returncode == 0
    assert json.loads(again.stdout)["outcome"] == document["outcome"]

    taken = trn("run", "--config", str(job), "--run-id", "demo")
    assert taken.returncode == 78
    assert "Traceback" not in taken.stderr
    rows = json.loads(trn("list", "--json").stdout)
    assert [row["state"] for row in rows] == ["rejected", "completed", "completed"]


@pytest.mark.slow
def test_a_killed_runner_and_its_resume_through_the_command_line(runs_dir: Path, job: Path) -> None:
    command = [sys.executable, "-m", "trn.doors.cli", "run", "--config", str(job), "--run-id", "demo"]
    longer = ["--set", "max_steps=100000", "--set", "schedule.warmup_steps=2"]
    door = subprocess.Popen([*command, *longer], stderr=subprocess.PIPE, text=True)
    events = runs_dir / "demo" / "reports" / "events.jsonl"
    until(lambda: any(event["event"] == "checkpoint" for event in read_lines(events)), timeout_s=60)
    with open_store(runs_dir) as store:
        (row,) = store.list()
    assert row.pid is not None
    os.kill(row.pid, signal.SIGKILL)
    _, said = door.communicate(timeout=60)
    assert door.returncode == 71
    assert "crashed" in said

    resumed = subprocess.Popen(
        [sys.executable, "-m", "trn.doors.cli", "resume", row.job_id], stderr=subprocess.PIPE, text=True
    )
    until(lambda: any(event["event"] == "resumed" for event in read_lines(events)), timeout_s=60)
    until(lambda: len([one for one in read_lines(events) if one["event"] == "started"]) == 2, timeout_s=60)
    resumed.send_signal(signal.SIGTERM)
    _, said = resumed.communicate(timeout=60)
    assert resumed.returncode == 75, said
    assert trn("verify", "demo").returncode == 0
    rows = json.loads(trn("list", "--json").stdout)
    assert [row["state"] for row in rows] == ["preempted", "crashed"]


@pytest.mark.slow
def test_a_dry_run_prints_the_plan_and_writes_nothing(runs_dir: Path, job: Path) -> None:
    (job.parent / "noisy.py").write_text(f"print('imported')\n{(job.parent / 'noisy.py').read_text()}")
    before = sorted(path.name for path in job.parent.iterdir())
    flags = ("--max-steps", "30", "--lr", "0.02", "--val-every-steps", "7", "--no-shuffle")
    done = trn(
        "run",
        "--config",
        str(job),
        "--run-id",
        "demo",
        "--dry-run",
        *flags,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert set(document) == {"plan", "forecast"}
    plan = document["plan"]
    assert (plan["run_id"], plan["budget"]["max_steps"], plan["schedule"]["lr_max"]) == ("demo", 30, 0.02)
    assert (plan["validation"]["every_steps"], plan["dataset"]["shuffle"]) == (7, False)
    # 8 x 16 + 16, a batch norm of 16 + 16, 16 + 1
    assert document["forecast"]["parameters"] == {"total": 193, "trainable": 193}
    said = done.stderr.splitlines()
    assert said[:3] == [
        "imported",
        "what run demo will take; nothing was started and nothing written",
        "  model   193 parameters",
    ]
    assert not runs_dir.exists()
    assert sorted(path.name for path in job.parent.iterdir()) == before


@pytest.mark.slow
def test_the_inline_launcher_gives_the_same_ending(runs_dir: Path, job: Path) -> None:
    done = trn("run", "--config", str(job), "--run-id", "demo", "--launcher", "inline", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outcome"]["step"] == 60
    assert trn("verify", "demo").returncode == 0


def test_data_is_its_childs_verb() -> None:
    done = trn("data", "index", "--help")
    assert done.returncode == 0
    assert "--out" in done.stdout
    assert trn("data").returncode == 0
    assert trn("data", "nonsense").returncode == 2


def test_a_file_in_the_current_folder_does_not_stand_in_for_a_module(tmp_path: Path) -> None:
    (tmp_path / "pyarrow.py").write_text("raise SystemExit('the wrong one')\n")
    done = trn("data", "index", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
