"""The script for sbatch: what bash makes of it, and, in a real Slurm, trainings submitted, cancelled and requeued."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from support.door import until
from support.job import write_job
from support.processes import marked
from support.slurm import is_here, slurm
from trn.doors.at_engine import at_engine
from trn.errors import EngineError, UsageError
from trn.jobs import OPEN_STATES, observe, open_store
from trn.launch.engine import Request
from trn.launch.slurm import SlurmEngine

TRN = [sys.executable, "-u", "-P", "-m", "trn"]
HOSTILE = ["--config", '/a b/it\'s "$HOME" `id`;\n#SBATCH --uid=0', "$(id)", "", "%d"]

STAND_IN = """
import json, os, signal, sys, time
code = int(sys.argv[1])
mine = {name: value for name, value in os.environ.items() if name.startswith("TRN_")}
print(json.dumps([sys.argv[2:], mine]), flush=True)
if code == 0:
    signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b"heard\\n"), time.sleep(0.3), sys.exit(75)))
    print("waiting", flush=True)
    time.sleep(30)
sys.exit(code)
"""
RECORDING = '#!/bin/sh\necho "${0##*/} $*" >> "$RECORD"\n'


def request(*arguments: str, **changes: Any) -> Request:
    values: dict[str, Any] = {
        "job_id": "job-1",
        "run_id": "demo",
        "arguments": arguments,
        "cwd": "/",
        "grace_s": 30.0,
    }
    return Request(**{**values, **changes})


def directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


@pytest.fixture
def batch(tmp_path: Path) -> dict[str, str]:
    """The environment of a batch script, with programs of Slurm that only write down how they are called."""
    for name in ("scontrol", "scancel"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(RECORDING)
        program.chmod(0o755)
    (tmp_path / "record").touch()
    return {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "RECORD": str(tmp_path / "record"),
        "SLURM_JOB_ID": "7",
    }


def started(script: str, environ: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(["bash", "-c", script], env=dict(environ), stdout=subprocess.PIPE, text=True)


def rendered(code: int, *more: str, is_array: bool = False, **changes: Any) -> str:
    engine = SlurmEngine(is_array=is_array, program=(sys.executable, "-c", STAND_IN))
    return engine.prepare(request(str(code), *more, **changes)).text


# what bash makes of it


def test_bash_hands_on_exactly_what_was_given(batch: dict[str, str]) -> None:
    script = rendered(80, *HOSTILE)
    with started(script, batch) as process:
        out, _ = process.communicate(timeout=20)
    given, variables = json.loads(out)
    assert given == HOSTILE
    assert variables == {"TRN_LAUNCHER": "slurm", "TRN_JOB_ID": "job-1", "TRN_ENGINE_ID": "7"}
    assert process.returncode == 80


def test_a_signal_reaches_the_training_and_its_end_is_waited_for(batch: dict[str, str]) -> None:
    with started(rendered(0), batch) as process:
        assert process.stdout is not None
        assert "waiting\n" in iter(process.stdout.readline, "")
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
    assert (out, process.returncode) == ("heard\n", 75)


@pytest.mark.parametrize(
    ("code", "count", "asked"),
    [
        (75, None, "scontrol requeue 7\n"),
        (88, "1", "scontrol requeue 7\n"),
        (75, "2", ""),
        (80, None, ""),
        (92, None, ""),
    ],
)
def test_it_is_requeued_by_its_exit_code_and_so_many_times(
    batch: dict[str, str], code: int, count: str | None, asked: str
) -> None:
    environ = batch if count is None else {**batch, "SLURM_RESTART_COUNT": count}
    script = rendered(code, max_restarts=2)
    assert "--requeue" in directives(script)
    with started(script, environ) as process:
        process.communicate(timeout=20)
    assert (process.returncode, Path(batch["RECORD"]).read_text()) == (code, asked)


@pytest.mark.parametrize(("code", "asked"), [(93, ""), (2, "scancel --state=PENDING 5\n")])
def test_an_array_goes_on_by_the_exit_code(batch: dict[str, str], code: int, asked: str) -> None:
    script = rendered(code, is_array=True, max_restarts=2)
    assert {"--array=0-2%1", "--no-requeue"} <= set(directives(script))
    with started(script, {**batch, "SLURM_ARRAY_JOB_ID": "5"}) as process:
        out, _ = process.communicate(timeout=20)
    assert json.loads(out)[1]["TRN_ENGINE_ID"] == "5"
    assert (process.returncode, Path(batch["RECORD"]).read_text()) == (code, asked)


def test_without_restarts_nothing_is_asked_for_again() -> None:
    script = rendered(75)
    assert "--no-requeue" in directives(script)
    assert "scontrol requeue" not in script


# what sbatch is told


def test_the_directives_are_what_was_asked_for() -> None:
    engine = SlurmEngine({"partition": "gpu", "comment": 'a "b"'})
    script = engine.prepare(request(cpus=4, devices=2, nodes=2, grace_s=100.5, output="/runs/5%.log")).text
    assert directives(script) == [
        "--job-name=trn-demo",
        "--chdir=/",
        "--output=/runs/5%%.log",
        "--open-mode=append",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--cpus-per-task=4",
        "--gpus-per-node=2",
        "--signal=B:TERM@131",
        "--no-requeue",
        "--partition=gpu",
        '--comment="a \\"b\\""',
    ]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("output", "x", "beside the job's log"),
        ("requeue", "", "--max-restarts"),
        ("clusters", "other", "SLURM_CLUSTERS"),
        ("-J", "x", "long name"),
        ("comment", "a\n#SBATCH --uid=0", "in one line"),
    ],
)
def test_an_option_that_cannot_be_set_is_refused(key: str, value: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        SlurmEngine({key: value}).prepare(request())


def test_a_path_that_slurm_cannot_write_to_is_refused() -> None:
    with pytest.raises(UsageError, match="backslash"):
        SlurmEngine().prepare(request(output="/a\\b.log"))


def test_an_engine_that_is_not_here_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="expected the program scontrol on PATH") as caught:
        SlurmEngine().poll("1")
    assert "\n" not in str(caught.value)
    with pytest.raises(EngineError, match="expected the number of a job"):
        SlurmEngine().cancel("1 --user=root")


def answering(tmp_path: Path, name: str, text: str) -> dict[str, str]:
    """An environment in which a program of Slurm is this shell script."""
    program = tmp_path / name
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}"}


def test_no_variable_goes_before_the_script(tmp_path: Path) -> None:
    environ = answering(tmp_path, "sbatch", f"cat > /dev/null; env > '{tmp_path}/seen'; echo 7")
    ours = dict.fromkeys(("SBATCH_WAIT", "SBATCH_REQUEUE", "SBATCH_ARRAY_INX", "SBATCH_JOB_NAME"), "1")
    engine = SlurmEngine(environ={**environ, **ours, "SBATCH_PARTITION": "gpu"})
    assert engine.submit(engine.prepare(request())) == "7"
    seen = (tmp_path / "seen").read_text().splitlines()
    assert [line for line in seen if line.startswith("SBATCH_")] == ["SBATCH_PARTITION=gpu"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo hello", "expected the number of a job from sbatch, found 'hello'"),
        ("echo 'sbatch: error: no such partition' >&2; echo failed >&2; exit 1", "no such partition; failed"),
        ("exit 3", "exit 3"),
        ("sleep 20", "did not answer within 0.2 s. It may have done"),
    ],
)
def test_what_sbatch_says_wrong_or_not_at_all_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    if "sleep" in text:
        monkeypatch.setattr("trn.launch.engine._ASKED_S", 0.2)
    engine = SlurmEngine(environ=answering(tmp_path, "sbatch", text.replace("sleep", "exec sleep")))
    with pytest.raises(EngineError) as caught:
        engine.submit(engine.prepare(request()))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


LINE = "JobId=7 JobName=trn-demo JobState={} Reason=None ExitCode=0:15"


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (LINE.format("RUNNING"), "running"),
        (LINE.format("PREEMPTED"), "ended"),
        (LINE.format("PENDING").replace("trn-demo", "another"), "gone"),
        (LINE.format("NEVER_HEARD_OF"), None),
        ("slurm is being looked after, come back", None),
        ("JobId=7", None),
    ],
)
def test_what_scontrol_says_is_understood_or_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, state: str | None
) -> None:
    monkeypatch.setenv("PATH", answering(tmp_path, "scontrol", f"echo '{answer}'")["PATH"])
    engine = SlurmEngine(run_id="demo")
    if state is not None:
        assert engine.poll("7").state == state
        return
    with pytest.raises(EngineError, match="expected the state of a job") as caught:
        engine.poll("7")
    assert "\n" not in str(caught.value)


# a real one


real = pytest.mark.skipif(not is_here(), reason="needs root, slurm-wlm and munge")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    with slurm(tmp_path_factory.mktemp("slurm")) as environ:
        yield {**environ, "TRN_TEST_MARK": f"slurm-engine-{os.getpid()}"}


@pytest.fixture
def environ(cluster: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    found = {**cluster, "TRN_RUNS_DIR": str(tmp_path / "the runs")}
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    return found


def run(environ: Mapping[str, str], *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*TRN, *arguments], env=dict(environ), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == status, done.stderr
    return done


def submit(environ: Mapping[str, str], folder: Path, *more: str, max_steps: int = 40) -> dict[str, Any]:
    spec = write_job(folder / "it's a job", max_steps=max_steps)
    told = ["--run-id", "demo", "--launcher", "slurm", "--json", *more]
    done = run(environ, "run", "--config", str(spec), *told)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def states(environ: Mapping[str, str], run_id: str = "demo") -> list[str]:
    """Of the run's jobs, as the disk has them."""
    runs_dir = Path(environ["TRN_RUNS_DIR"])
    with open_store(runs_dir) as store:
        return [observe(row, runs_dir).state for row in store.of_run(run_id)]


def eventually(condition: Callable[[], object]) -> None:
    """As `until`, for what costs a program to ask."""
    until(lambda: condition() or time.sleep(0.2), timeout_s=90)


def status(environ: Mapping[str, str], name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(environ, "status", name, "--json").stdout)
    return found


@real
@pytest.mark.slow
def test_two_machines_train_one_model_as_the_job_that_was_submitted(environ: dict[str, str], tmp_path: Path) -> None:
    secret = {"MY_API_KEY": "not-for-slurm-0000"}
    told = submit({**environ, **secret}, tmp_path, "--ddp", "--nnodes=2", "--nproc=1", max_steps=20)
    assert (told["state"], told["launcher"]) == ("queued", "slurm")
    at_once = status(environ, told["job_id"])
    assert at_once["engine"]["state"] in ("queued", "running")
    assert at_once["engine"]["engine_id"] == told["engine_id"]
    eventually(lambda: not OPEN_STATES.intersection(states(environ)))
    runs = Path(environ["TRN_RUNS_DIR"])
    logs = "\n".join(path.read_text() for path in runs.glob("logs/**/*.slurm.log"))
    assert states(environ) == ["completed"], logs
    found = status(environ, "demo")
    assert (found["job_id"], found["outcome"]["step"], found["engine"]) == (told["job_id"], 20, None)
    (job,) = found["jobs"]
    config = str(tmp_path / "it's a job" / "spec.yaml")
    assert (job["launcher"], job["engine_id"], job["config_path"]) == ("slurm", told["engine_id"], config)
    plan = json.loads((runs / "demo" / "reports" / "resolved_config.json").read_text())
    assert plan["world_size"] == 2
    eventually(lambda: SlurmEngine().poll(told["engine_id"]).is_over)
    seen = SlurmEngine().poll(told["engine_id"])
    assert (seen.state, seen.exit_code) == ("ended", 0)
    for path in runs.rglob("*"):
        assert not path.is_file() or b"not-for-slurm" not in path.read_bytes(), path
    until(lambda: not marked(environ["TRN_TEST_MARK"]))


@real
@pytest.mark.slow
def test_a_preempted_training_is_requeued_and_a_cancelled_one_is_not(environ: dict[str, str], tmp_path: Path) -> None:
    told = submit(environ, tmp_path, "--max-restarts=2", max_steps=100_000)
    engine, engine_id = SlurmEngine(run_id="demo"), told["engine_id"]
    eventually(lambda: states(environ) == ["running"])
    engine.signal(engine_id, signal.SIGTERM)
    eventually(lambda: "BeginTime" in engine.poll(engine_id).reason)
    found = status(environ, "demo")
    assert (found["state"], found["engine"]["state"]) == ("preempted", "queued")
    # it would wait for two minutes
    subprocess.run(["scontrol", "update", f"JobId={engine_id}", "StartTime=now"], env=environ, check=True)
    eventually(lambda: states(environ) == ["preempted", "running"])
    (ended,) = json.loads(run(environ, "cancel", "demo", "--json").stdout)
    assert (ended["state"], ended["exit_code"], ended["engine_id"]) == ("cancelled", 92, engine_id)
    assert ended["job_id"] != told["job_id"]
    eventually(lambda: engine.poll(engine_id).is_over)  # nobody starts it a third time
    assert engine.poll(engine_id).exit_code == 92
    until(lambda: not marked(environ["TRN_TEST_MARK"]))


@real
@pytest.mark.slow
def test_a_waiting_job_is_cancelled_and_one_that_never_began_gets_its_end(
    environ: dict[str, str], tmp_path: Path
) -> None:
    held = submit(environ, tmp_path, "--slurm", "hold=")
    other = SlurmEngine(run_id="other")  # whose job had this number before
    assert other.poll(held["engine_id"]).state == "gone"
    with contextlib.suppress(EngineError):
        other.cancel(held["engine_id"])
    assert SlurmEngine(run_id="demo").poll(held["engine_id"]).state == "queued"
    run(environ, "cancel", held["job_id"])
    assert SlurmEngine().poll(held["engine_id"]).state == "cancelled"
    with open_store(Path(environ["TRN_RUNS_DIR"])) as store:
        waiting = store.get(held["job_id"])
        assert waiting is not None
        assert (waiting.state, waiting.exit_code) == ("cancelled", 92)
        # one that Slurm has ended behind our back
        second = submit(environ, tmp_path, "--slurm", "hold=", "--slurm-array", "--max-restarts=2")
        SlurmEngine(run_id="demo").cancel(second["engine_id"])
        gone = store.get(second["job_id"])
        assert gone is not None
        row, told = at_engine(store, gone)
        assert (row.state, told.state if told else None) == ("cancelled", "cancelled")
        assert "slurm says: CANCELLED" in str(row.reason)
