"""The worker as a platform sees it: a process with an environment, artifacts, one ending, and kills at any time."""

from __future__ import annotations

import functools
import http.server
import json
import os
import random
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.compare import assert_identical, differences, final_payload, lines, outcome
from support.orchestrator import Orchestrator
from support.processes import alive
from support.sending import wait_for
from support.tus import tus_server
from support.worker import PlatformJob
from trn.doors.cli import main
from trn.files import Holder, sha256_file
from trn.records import read_json

pytestmark = pytest.mark.slow

Json = dict[str, Any]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> PlatformJob:
    """The job that nobody interrupted."""
    job = PlatformJob(tmp_path_factory.mktemp("oracle"))
    status, said = job.do()
    assert status == 0, said
    return job


def trainer_of(job: PlatformJob) -> int:
    """The pid of the trainer's process."""
    note = (job.run_dir / ".lock").read_text() if (job.run_dir / ".lock").exists() else ""
    return Holder.read(note).pid if note else 0


def until_step(job: PlatformJob, step: int) -> None:
    wait_for(lambda: job.steps() >= step, f"step {step}")


def test_a_job_ends_with_everything_where_the_environment_says(oracle: PlatformJob) -> None:
    assert outcome(oracle.run_dir)["status"] == "completed"
    assert oracle.endings() == [("completed", "completed", 0)]
    (started,) = oracle.told("worker_started")
    assert started["defaulted"] == {}
    numbers = [one["seq"] for one in oracle.told()]
    assert numbers == list(range(1, len(numbers) + 1))
    committed = sorted(path.name for path in (oracle.run_dir / "checkpoints").glob("step-*"))
    assert committed == sorted(path.name for path in (oracle.out / "checkpoints").iterdir())
    for name in committed:
        assert sha256_file(oracle.run_dir / "checkpoints" / name) == sha256_file(oracle.out / "checkpoints" / name)
    assert sorted(path.name for path in (oracle.out / "samples").iterdir()) == [
        path.name for path in sorted((oracle.run_dir / "samples").iterdir())
    ]
    plan = read_json(oracle.run_dir / "reports/resolved_config.json")
    assert plan["dataset"]["cache"] == str(oracle.out / "runs/.trn/arrow")


def test_the_next_start_tells_the_same_end_and_trains_nothing(oracle: PlatformJob) -> None:
    before = (oracle.run_dir / "reports/events.jsonl").read_bytes()
    told = len(oracle.endings())
    worker = oracle.start()
    for stream in (worker.stdout, worker.stderr):
        assert stream is not None
        stream.close()  # nobody reads what it says
    assert worker.wait(60) == 0
    assert oracle.endings()[told:] == [("completed", "completed", 0)]
    assert (oracle.run_dir / "reports/events.jsonl").read_bytes() == before


@pytest.fixture(scope="module")
def long_oracle(tmp_path_factory: pytest.TempPathFactory) -> PlatformJob:
    """One that takes about as long to train as to start."""
    job = PlatformJob(tmp_path_factory.mktemp("long"), max_steps=400, checkpoint_every=20)
    status, said = job.do()
    assert status == 0, said
    return job


@pytest.mark.parametrize("trial", range(int(os.environ.get("TRN_WORKER_TRIALS", "1"))))
def test_worker_or_trainer_killed_at_any_moment_ends_as_if_nothing_was(
    tmp_path: Path, long_oracle: PlatformJob, trial: int
) -> None:
    chance = random.Random(trial)
    job = PlatformJob(tmp_path, max_steps=400, checkpoint_every=20)
    for _ in range(3):
        worker = job.start()
        try:
            worker.wait(chance.uniform(0.3, 6.0))
        except subprocess.TimeoutExpired:
            trainer = trainer_of(job)
            victim = trainer if trainer and alive(trainer) and chance.random() < 0.5 else worker.pid
            os.kill(victim, signal.SIGKILL)
        said = worker.communicate(timeout=120)[1]
        assert worker.returncode in (0, -signal.SIGKILL, 71), said
    status, said = job.do()
    assert status == 0, said
    assert_identical(job.run_dir, long_oracle.run_dir)
    assert job.endings()[-1] == ("completed", "completed", 0)
    of_jobs = [one["job_id"] for one in job.told("completed", "preempted", "cancelled", "failed")]
    assert len(of_jobs) == len(set(of_jobs))
    numbers = [one["run_seq"] for one in job.told() if "run_seq" in one]
    assert numbers == sorted(set(numbers))


def test_a_signal_saves_and_ends_and_the_next_start_goes_on(tmp_path: Path, long_oracle: PlatformJob) -> None:
    job = PlatformJob(tmp_path, max_steps=400, checkpoint_every=20)
    endings = [("preempted", "preempted", 75), ("cancelled", "cancelled", 92)]
    for number, step, ending in zip((signal.SIGTERM, signal.SIGINT), (15, 120), endings, strict=True):
        worker = job.start()
        until_step(job, step)
        worker.send_signal(number)
        said = worker.communicate(timeout=60)[1]
        assert worker.returncode == ending[2], said
        assert outcome(job.run_dir)["status"] == ending[1]
    assert job.do()[0] == 0
    assert job.endings() == [*endings, ("completed", "completed", 0)]
    assert_identical(job.run_dir, long_oracle.run_dir)


HANGS = """
from noisy import Noisy, Params

def loss(self, model, batch, before=Noisy.loss):
    import os, time
    while os.path.exists("hang"):
        time.sleep(0.05)
    if self.steps == 24 and not os.path.exists("hung"):  # two of them are a step of the run
        open("hung", "w").close()
        open("hang", "w").close()
    self.steps += 1
    return before(self, model, batch)

class Hanging(Noisy):
    steps = 0
    loss = loss
"""


def test_a_trainer_that_hangs_is_killed_when_it_is_asked_to_end_and_its_run_can_be_resumed(tmp_path: Path) -> None:
    job = PlatformJob(tmp_path, max_steps=30, checkpoint_every=5, trainer="hanging:Hanging")
    (tmp_path / "hanging.py").write_text(HANGS)
    worker = job.start(TRAINER_STOP_SECONDS="1")
    wait_for((tmp_path / "hang").exists, "the step that hangs")
    worker.send_signal(signal.SIGTERM)
    said = worker.communicate(timeout=60)[1]
    assert worker.returncode == 75, said
    assert job.endings() == [("preempted", "preempted", 75)]
    told = outcome(job.run_dir)
    assert (told["status"], told["resumable"]) == ("preempted", True)
    assert told["checkpoint"]["step"] in (5, 10)  # the newer one may not have been on disk yet
    assert "it was killed 1 s later" in told["reason"]
    assert not alive(trainer_of(job))


def test_a_trainer_that_hangs_does_not_outlive_its_killed_worker_for_long(tmp_path: Path) -> None:
    job = PlatformJob(tmp_path, max_steps=30, checkpoint_every=5, trainer="hanging:Hanging")
    (tmp_path / "hanging.py").write_text(HANGS)
    worker = job.start(TRAINER_STOP_SECONDS="1")
    wait_for((tmp_path / "hang").exists, "the step that hangs")
    trainer = trainer_of(job)
    worker.kill()
    worker.communicate(timeout=60)
    wait_for(lambda: not alive(trainer), "the end of the trainer")
    (tmp_path / "hang").unlink()
    assert job.do()[0] == 0
    said = "".join(path.read_text() for path in (job.run_dir.parent / "logs").rglob("*.log"))
    assert "killed: 1 s after the process that started this run was gone, it had not ended" in said
    assert job.endings() == [("completed", "completed", 0)]


SLOW = """
import time

from noisy import Noisy, Params


class Slow(Noisy):
    def transform(self, raw_batch, ctx):
        time.sleep(0.01)
        return super().transform(raw_batch, ctx)
"""


def slow_job(folder: Path, **changes: Any) -> PlatformJob:
    """One that is still training when it is to be ended, and takes little of the machine until then."""
    job = PlatformJob(folder, max_steps=100_000, checkpoint_every=1000, trainer="slow:Slow", **changes)
    (folder / "slow.py").write_text(SLOW)
    return job


def test_a_cancel_file_cancels_and_one_that_is_there_keeps_it_from_starting(tmp_path: Path) -> None:
    job = slow_job(tmp_path, cancel_file_path="cancel")
    worker = job.start()
    until_step(job, 5)
    (tmp_path / "cancel").write_text("yes")
    said = worker.communicate(timeout=60)[1]
    assert worker.returncode == 92, said
    assert outcome(job.run_dir)["status"] == "cancelled"
    assert "cancel" in outcome(job.run_dir)["reason"]
    steps = job.steps()
    status, said = job.do()
    assert (status, job.steps()) == (92, steps), said
    assert job.endings() == [("cancelled", "cancelled", 92)] * 2
    (tmp_path / "cancel").unlink()
    assert job.do(TRAINER_CANCELLED="1")[0] == 92
    assert job.steps() == steps


def test_the_time_that_the_environment_allows_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    job = slow_job(tmp_path)
    status, said = job.do(TRAINER_MAX_RUNTIME_SECONDS="2")
    assert status == 93, said
    told = outcome(job.run_dir)
    assert (told["status"], told["checkpoint"]["step"]) == ("time_limit", told["step"])
    assert job.endings() == [("failed", "time_limit", 93)]


def test_the_data_may_come_over_the_network_by_digest_and_a_wrong_one_starts_nothing(tmp_path: Path) -> None:
    job = PlatformJob(tmp_path, max_steps=5, dataset=None)
    data = tmp_path / "train-0.parquet"
    rest = {"batch_size": 8, "end": "cycle", "columns": ["x", "y"]}
    job.job |= {"dataset": rest, "validation": None}
    job.job["inputs"] = {"dataset_parquet_refs": [{"ref": str(data), "sha256": "0" * 64}]}
    job.write()
    status, said = job.do()
    assert status == 65, said
    assert not job.run_dir.exists()
    assert job.endings() == [("failed", "data_error", 65)]
    job.job["inputs"] = {"dataset_parquet_refs": [{"ref": str(data), "sha256": sha256_file(data)}]}
    job.write()
    assert job.do()[0] == 0
    data.unlink()  # what is done needs it no more
    assert job.do()[0] == 0
    assert job.endings()[-1] == ("completed", "completed", 0)


@pytest.fixture
def web(oracle: PlatformJob) -> Iterator[str]:
    """The folder of the run that nobody interrupted, over HTTP."""
    handler = functools.partial(_Quiet, directory=str(oracle.run_dir))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def test_a_run_begins_at_a_checkpoint_that_lies_elsewhere_and_ends_with_the_same_bits(
    tmp_path: Path, oracle: PlatformJob, web: str
) -> None:
    step = sorted(path.name for path in (oracle.run_dir / "checkpoints").glob("step-*.pt"))[0]
    job = PlatformJob(tmp_path, run_id="next", dataset=oracle.job["dataset"], validation=oracle.job["validation"])
    job.job["inputs"] = {"resume_checkpoint_url": f"{web}/checkpoints/{step}"}
    job.write()
    status, said = job.do()
    assert status == 0, said
    assert differences("", final_payload(job.run_dir), final_payload(oracle.run_dir)) == []
    name = "train_metrics.jsonl"
    assert lines(job.run_dir, name) == lines(oracle.run_dir, name)
    assert read_json(job.run_dir / "reports/forked_from.json")["run_id"] == oracle.run_id
    assert job.do()[0] == 0  # it is there now: nothing is fetched, and it goes on with itself


@pytest.mark.parametrize(
    ("tail", "status", "told"),
    [
        ("checkpoints/step-00009999.pt", 65, "resume_checkpoint"),
        ("model.pt", 65, "in the folder of a run"),
        ("checkpoints/last.pt", 65, "in the folder of a run"),
    ],
)
def test_a_checkpoint_that_is_not_there_or_is_none_starts_nothing(
    tmp_path: Path, web: str, tail: str, status: int, told: str
) -> None:
    job = PlatformJob(tmp_path, run_id="next", inputs={"resume_checkpoint_url": f"{web}/{tail}"})
    found, said = job.do()
    assert (found, told in said) == (status, True), said
    assert not job.run_dir.exists()


REFUSED: dict[str, tuple[Callable[[PlatformJob], object], int, str]] = {
    "v99": (lambda job: job.job.update(trainer_api_version="v99"), 2, "trainer_api_version"),
    "unknown key": (lambda job: job.job.update(max_stepz=3), 2, "max_steps"),
    "no trainer": (lambda job: job.job.update(trainer=None), 2, "startup.missing_trainer_import"),
    "a function": (lambda job: job.job.update(trainer="noisy:zlib.crc32"), 78, "lacks the hooks"),
    "no data": (lambda job: (job.folder / "train-1.parquet").unlink(), 65, "train-1.parquet"),
    "too few": (lambda job: job.job["dataset"].update(end="stop"), 78, "end: cycle"),
    "no checkpoint": (
        lambda job: job.job.update(resume_checkpoint_path="none/checkpoints/step-00000001.pt"),
        2,
        "none",
    ),
    "a secret": (
        lambda job: job.job.update(events=["https://127.0.0.1:9/x?token_env=TRAINER_CAPABILITY_TOKEN"]),
        78,
        "token_env",
    ),
    "token": (lambda job: job.job.update(capability_token="x" * 20), 2, "capability_token"),
    "several processes": (lambda job: job.job.update(ddp=True), 78, "one process trains in a worker"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_done_is_refused_with_one_ending_and_leaves_no_run(tmp_path: Path, what: str) -> None:
    change, status, told = REFUSED[what]
    job = PlatformJob(tmp_path)
    change(job)
    job.write()
    found, said = job.do()
    assert found == status, said
    assert told in said
    assert "Traceback" not in said
    assert not job.run_dir.exists()
    (ending,) = job.endings()
    assert (ending[0], ending[2]) == ("failed", status)


def test_what_a_worker_left_beside_the_runs_goes_with_its_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = PlatformJob(tmp_path, max_steps=2)
    runs_dir, data = job.run_dir.parent, tmp_path / "train-0.parquet"
    job.job["inputs"] = {"base_model_ref": {"ref": data.as_uri(), "sha256": sha256_file(data)}}
    job.write()

    def freed() -> list[str]:
        capsys.readouterr()
        assert main(["gc", "--yes", "--json", "--runs-dir", str(runs_dir)]) == 0
        return sorted(row["kind"] for row in json.loads(capsys.readouterr().out)["beside"])

    assert job.do()[0] == 0
    assert freed() == []
    assert job.do()[0] == 0, "nothing is missing"
    shutil.rmtree(job.run_dir)
    assert freed() == ["decoded", "worker"]
    assert job.do()[0] == 0, "all is made again"


# With an orchestrator


@pytest.mark.parametrize("trial", range(int(os.environ.get("TRN_UPLOAD_RUNS", "1"))))
def test_an_orchestrated_job_is_leased_and_told_and_an_endpoint_that_fails_and_dies_has_every_artifact_once(
    tmp_path: Path, oracle: PlatformJob, trial: int
) -> None:
    """Three of ten requests fail, and it is dead for some seconds in the middle; with TRN_UPLOAD_RUNS for 20."""
    job = PlatformJob(tmp_path, orchestrated=True)
    dead_s = 20.0 if "TRN_UPLOAD_RUNS" in os.environ else 3.0
    with Orchestrator(
        tmp_path, ttl_s=120.0, fail_rate=0.3, seed=trial, dead_after_s=2.5, dead_s=dead_s
    ) as orchestrator:
        orchestrator.submit(job.job)
        status, said = job.do(TRAINER_ALLOW_PLUGINS="noisy:Noisy", **orchestrator.environ())
        assert status == 0, said
        state = orchestrator.state(job.run_id)
    assert_identical(job.run_dir, oracle.run_dir)
    assert state["state"] == "completed"
    (terminal,) = state["terminals"].values()
    assert (terminal["status"], terminal["exit_code"]) == ("completed", 0)
    assert terminal["final_checkpoint"]["sha256"] == outcome(job.run_dir)["checkpoint"]["sha256"]
    names = [(one["kind"], one["name"]) for one in state["artifacts"]]
    assert len(set(names)) == len(names)
    kept = {path.name: sha256_file(path) for path in (job.run_dir / "checkpoints").glob("step-*.*")}
    there = {one["name"]: one["sha256"] for one in state["artifacts"]}
    assert kept.items() <= there.items()
    assert [line["step"] for line in state["lines"]] == list(range(1, 61))
    token = orchestrator.token_file.read_text().strip()
    for path in (one for one in tmp_path.rglob("*") if one.is_file() and "keys" not in one.parts):
        assert token.encode() not in path.read_bytes(), path
    assert token not in said


def test_a_run_whose_uploads_failed_is_finished_by_the_next_start_without_training(
    tmp_path: Path, oracle: PlatformJob
) -> None:
    job = PlatformJob(tmp_path)
    with tus_server(tmp_path) as server:
        places = {
            f"TRAINER_UPLOAD_{name.upper()}_URL": getattr(server.endpoints, name)
            for name in ("metrics", "checkpoint", "sample", "terminal")
        }
        server.die()
        status, said = job.do(TRAINER_UPLOAD_SECONDS="2", **places)
        assert status == 94, said
        assert outcome(job.run_dir)["status"] == "completed"
        before = (job.run_dir / "reports/events.jsonl").read_bytes()
        server.start()
        status, said = job.do(**places)
        assert status == 0, said
        assert (job.run_dir / "reports/events.jsonl").read_bytes() == before
        (end,) = server.ends.values()
        sent = server.whole()
        assert len(sent) == len(set(sent)) == len(server.uploads)
    assert end["final_checkpoint"]["sha256"] == outcome(job.run_dir)["checkpoint"]["sha256"]
    assert job.endings() == [("failed", "upload_failed", 94), ("completed", "completed", 0)]
    assert_identical(job.run_dir, oracle.run_dir)


def test_a_signal_while_a_complete_run_uploads_is_told_as_what_it_is_and_the_next_start_sends_the_rest(
    tmp_path: Path,
) -> None:
    job = PlatformJob(tmp_path, max_steps=5)
    with tus_server(tmp_path) as server:
        places = {
            f"TRAINER_UPLOAD_{name.upper()}_URL": getattr(server.endpoints, name)
            for name in ("metrics", "checkpoint", "sample", "terminal")
        }
        server.answer("POST", "checkpoint", 503, times=1000)
        worker = job.start(**places)
        assert worker.stderr is not None, "it is a pipe"
        assert any("the run has ended (completed); uploads have up to" in line for line in worker.stderr)
        worker.send_signal(signal.SIGTERM)
        said = worker.communicate(timeout=60)[1]
        assert worker.returncode == 94, said
        (end,) = server.ends.values()
        assert (end["status"], end["exit_code"], end["final_checkpoint"]) == ("upload_failed", 94, None)
        server.answers.clear()
        assert job.do(**places)[0] == 0
        assert [one["status"] for one in server.ends.values()] == ["upload_failed", "completed"]
    assert job.endings() == [("failed", "upload_failed", 94), ("completed", "completed", 0)]


def test_a_lost_lease_saves_and_ends_and_sends_nothing_more(tmp_path: Path) -> None:
    job = slow_job(tmp_path, orchestrated=True)
    with Orchestrator(tmp_path, ttl_s=2.0) as orchestrator:
        orchestrator.submit(job.job)
        worker = job.start(TRAINER_PLUGIN="slow:Slow", **orchestrator.environ())
        until_step(job, 10)
        orchestrator.kill()
        said = worker.communicate(timeout=60)[1]
        assert worker.returncode == 75, said
        assert outcome(job.run_dir)["status"] == "preempted"
        assert job.endings() == [("preempted", "preempted", 75)]
        orchestrator.start()
        assert orchestrator.state(job.run_id)["terminals"] == {}


def test_an_orchestrator_that_cancels_is_obeyed(tmp_path: Path) -> None:
    job = slow_job(tmp_path, orchestrated=True)
    with Orchestrator(tmp_path, ttl_s=3.0) as orchestrator:
        orchestrator.submit(job.job)
        worker = job.start(TRAINER_PLUGIN="slow:Slow", **orchestrator.environ())
        until_step(job, 10)
        orchestrator.cancel(job.run_id)
        said = worker.communicate(timeout=60)[1]
        assert worker.returncode == 92, said
        (terminal,) = orchestrator.state(job.run_id)["terminals"].values()
        assert terminal["status"] == "cancelled"


def test_without_a_right_nothing_is_fetched_or_begun(tmp_path: Path) -> None:
    job = PlatformJob(tmp_path, orchestrated=True)
    with Orchestrator(tmp_path) as orchestrator:
        orchestrator.submit(job.job)
        environ = {"TRAINER_PLUGIN": "noisy:Noisy", **orchestrator.environ()}
        for missing in ("TRAINER_CAPABILITY_TOKEN_FILE", "TRAINER_PUBLIC_KEY_FILE", "owner"):
            if missing == "owner":
                job.job["owner"] = "somebody-else"
                job.write()
            status, said = job.do(**{name: text for name, text in environ.items() if name != missing})
            assert status == 77, said
        state = orchestrator.state(job.run_id)
    assert not (job.out / "runs/.trn/arrow").exists()
    assert job.endings() == [("failed", "unauthorized", 77)] * 3
    assert state["terminals"] == {}
