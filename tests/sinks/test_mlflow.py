"""An MLflow store in a file of SQLite, read back by MLflow's own client."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

from support.sending import RelayThread, ToyRun, free_port, receiver, send_all, wait_for
from support.stand_in import outcome_of_job
from trn.files import Lock, write_atomic
from trn.records import pretty_json
from trn.sinks.mlflow import MLflowSink
from trn.sinks.sink import Refused, RunFacts, Unreachable
from trn.sinks.targets import open_sink, parse_target

pytestmark = pytest.mark.slow  # an import and the tables of a store: seconds, for whichever of them comes first


_NO_PROXY = ("NO_PROXY", "no_proxy")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One for all: its tables take a second to make. Each test has a run of its own in it."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def run(tmp_path: Path) -> ToyRun:
    return ToyRun(tmp_path / 'it\'s "here"' / "runs")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the sink sets is put back."""
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", *_NO_PROXY):
        monkeypatch.setenv(name, "before")
        monkeypatch.delenv(name)


def sink_of(store: str, run: RunFacts) -> MLflowSink:
    sink = open_sink(parse_target(f"mlflow:{store}"), run)
    assert isinstance(sink, MLflowSink)
    return sink


def runs_of(store: str, run: ToyRun, view: int = ViewType.ACTIVE_ONLY) -> list[Any]:
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("trn")
    found = client.search_runs([experiment.experiment_id], run_view_type=view)
    return [one for one in found if one.data.tags["trn.run_dir"] == str(run.dir)]


def the_run(store: str, run: ToyRun) -> Any:
    [found] = runs_of(store, run)
    return found


def curve(store: str, found: Any, name: str) -> list[tuple[int, float]]:
    history = MlflowClient(store).get_metric_history(found.info.run_id, name)
    return sorted((point.step, point.value) for point in history)


def lines(first: int, last: int, loss: float = 1.0) -> list[dict[str, Any]]:
    return [{"step": step, "train_loss": loss / step} for step in range(first, last + 1)]


def end(run: ToyRun, status: str) -> None:
    outcome = outcome_of_job(run.dir, run.facts.job_id, status, 3)
    write_atomic(run.reports / "outcome.json", pretty_json(outcome.to_json()))


def test_a_run_becomes_one_mlflow_run_with_its_plan_its_curves_and_its_end(store: str, run: ToyRun) -> None:
    plan = {"seed": 42, "fingerprint": "f" * 64, "optimizer": {"name": "adamw", "lr": 0.01}, "ddp": False}
    run.metrics(1, 400, lr=1e-3, mae=0.5, tokens_seen=None)  # 1,200 points: more than a batch holds
    run.metrics(200, 200, "val")
    end(run, "completed")
    assert send_all(f"mlflow:{store}", replace(run.facts, plan=plan)).is_delivered
    found = the_run(store, run)
    assert found.info.run_name == "exp01"
    assert found.info.status == "FINISHED"
    assert found.data.params == {"seed": "42", "optimizer.name": "adamw", "optimizer.lr": "0.01", "ddp": "False"}
    tags = {name: value for name, value in found.data.tags.items() if name.startswith("trn.")}
    assert tags == {
        "trn.run_id": "exp01",
        "trn.run_dir": str(run.dir),
        "trn.job_id": "job-1",
        "trn.fingerprint": "f" * 64,
        "trn.outcome": "completed",
    }
    assert curve(store, found, "train/loss") == [(step, 1 / step) for step in range(1, 401)]
    assert [step for step, _ in curve(store, found, "train/mae")] == list(range(1, 401))
    assert curve(store, found, "val/loss") == [(200, 1 / 200)]
    assert "train/tokens_seen" not in found.data.metrics


@pytest.mark.parametrize(
    ("status", "expected"),
    [("target_reached", "FINISHED"), ("preempted", "KILLED"), ("cancelled", "KILLED"), ("divergence", "FAILED")],
)
def test_the_outcome_is_its_status(store: str, run: ToyRun, status: str, expected: str) -> None:
    run.metrics(1, 2)
    end(run, status)
    send_all(f"mlflow:{store}", run.facts)
    assert the_run(store, run).info.status == expected


def test_a_run_that_is_going_on_stays_running_and_the_next_relay_goes_on_with_it(store: str, run: ToyRun) -> None:
    lock = Lock(run.dir / ".lock")
    assert lock.acquire(note="pid=1 job=job-1")
    run.metrics(1, 10)
    send_all(f"mlflow:{store}", run.facts)
    first = the_run(store, run)
    assert first.info.status == "RUNNING"
    lock.release()
    end(run, "completed")
    run.metrics(11, 15)
    send_all(f"mlflow:{store}", replace(run.facts, job_id="job-2"))
    found = the_run(store, run)
    assert (found.info.run_id, found.info.status) == (first.info.run_id, "FINISHED")
    assert found.data.tags["trn.job_id"] == "job-2"
    assert [step for step, _ in curve(store, found, "train/loss")] == list(range(1, 16))


def test_a_run_that_went_back_leaves_one_point_a_step_and_those_are_the_new_ones(store: str, run: ToyRun) -> None:
    run.metrics(1, 30)
    run.metrics(10, 10, "val")
    run.metrics(20, 20, "val")
    thread = RelayThread(f"mlflow:{store}", run.facts)
    wait_for(lambda: thread.relay.standing.sent == 32, "all lines")
    run.cut(12)
    run.cut(12, "val")
    run.emit(1, "resumed", from_step=12, checkpoint="step-00000012.pt", named=False)
    run.metrics(13, 25, train_loss=7.0)
    run.metrics(25, 25, "val", val_loss=8.0)
    assert thread.finish().is_delivered
    found = the_run(store, run)
    assert curve(store, found, "train/loss") == [(s, 1 / s) for s in range(1, 13)] + [(s, 7.0) for s in range(13, 26)]
    assert curve(store, found, "val/loss") == [(10, 0.1), (25, 8.0)]
    assert len(runs_of(store, run, ViewType.DELETED_ONLY)) == 1


def test_points_that_a_killed_relay_did_not_remember_are_not_doubled(store: str, run: ToyRun) -> None:
    run.metrics(1, 20)
    killed = sink_of(store, run.facts)
    killed.begin(0)
    killed.write("train", lines(1, 15))
    sink = sink_of(store, run.facts)
    sink.begin(10)
    sink.write("train", lines(11, 20))
    sink.close()
    assert curve(store, the_run(store, run), "train/loss") == [(step, 1 / step) for step in range(1, 21)]


def test_what_the_store_lost_is_filled_in_from_the_files(store: str, run: ToyRun) -> None:
    run.metrics(1, 20)
    run.metrics(5, 5, "val")
    first = sink_of(store, run.facts)
    first.begin(0)
    first.write("train", lines(1, 8))
    sink = sink_of(store, run.facts)
    sink.begin(12)
    sink.close()
    found = the_run(store, run)
    assert curve(store, found, "train/loss") == [(step, 1 / step) for step in range(1, 13)]
    assert curve(store, found, "val/loss") == [(5, 1 / 5)]


def test_a_rebuild_leaves_one_clean_run(store: str, run: ToyRun) -> None:
    run.metrics(1, 20)
    for _ in range(3):
        assert send_all(f"mlflow:{store}", run.facts, from_start=True).is_delivered
    assert [step for step, _ in curve(store, the_run(store, run), "train/loss")] == list(range(1, 21))


def test_settings_that_a_resume_changed_stand_in_tags(store: str, run: ToyRun) -> None:
    run.metrics(1, 3)
    send_all(f"mlflow:{store}", replace(run.facts, plan={"budget": {"max_steps": 10}, "seed": 1}))
    run.metrics(4, 5)
    plan = {"budget": {"max_steps": 20}, "seed": 1, "clip_grad_norm": 2.0}
    send_all(f"mlflow:{store}", replace(run.facts, plan=plan))
    found = the_run(store, run)
    assert found.data.params == {"budget.max_steps": "10", "seed": "1", "clip_grad_norm": "2.0"}
    assert found.data.tags["trn.changed.budget.max_steps"] == "20"
    assert not [name for name in found.data.tags if name.startswith("trn.changed.seed")]


def test_names_and_settings_that_mlflow_does_not_take_are_made_to_fit(store: str, run: ToyRun) -> None:
    run.metrics(1, 2, **{"acc@5 (top)": 0.5, "../up": 1.0, "a//b/": 2.0, "é": 3.0, "x" * 300: 4.0})
    params = {f"k{number}": number for number in range(250)}
    facts = replace(run.facts, plan={"trainer": {"params": {"note": "x" * 9000, "odd=name": 1}}, "many": params})
    assert send_all(f"mlflow:{store}", facts).standing.dropped == 0
    found = the_run(store, run)
    names = {name for name in found.data.metrics if name.startswith("train/")}
    assert names == {
        *("train/loss", "train/step", "train/acc_5 _top_", "train/up", "train/a/b", "train/é"),
        ("train/" + "x" * 300)[:250],
    }
    assert len(found.data.params) == 252
    assert len(found.data.params["trainer.params.note"]) == 6000


def test_a_line_of_more_points_than_a_batch_holds_is_written_whole(store: str, run: ToyRun) -> None:
    run.metrics(1, 2, **{f"m{number}": 1.0 for number in range(2500)})
    assert send_all(f"mlflow:{store}", run.facts).standing.dropped == 0
    found = the_run(store, run)
    assert Counter(name.partition("/")[0] for name in found.data.metrics) == {"train": 2502}
    assert curve(store, found, "train/m2499") == [(1, 1.0), (2, 1.0)]


def test_a_deleted_experiment_is_refused_with_what_to_do(store: str, run: ToyRun) -> None:
    client = MlflowClient(store)
    client.delete_experiment(client.create_experiment("gone"))
    target = f"mlflow:{store}?experiment=gone"
    sink = open_sink(parse_target(target), run.facts)
    assert isinstance(sink, MLflowSink)
    with pytest.raises(Refused, match="'gone' is deleted: restore it") as refused:
        sink.begin(0)
    assert refused.value.of_target
    sink.close()


@pytest.mark.parametrize("place", ["server", "database"])
def test_a_store_that_is_not_there_is_asked_again_soon(run: ToyRun, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("in the way")
    port = free_port()
    uri = f"http://127.0.0.1:{port}" if place == "server" else f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}"
    sink = sink_of(uri, run.facts)
    with pytest.raises(Unreachable):
        sink.begin(0)
    sink.close()


def test_a_secret_is_taken_from_where_the_target_says(run: ToyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that keeps what it is asked: the credentials are in the head of the request, and nowhere else."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        port = server.getsockname()[1]
        text = f"mlflow:http://127.0.0.1:{port}?username=me&password_env=OUR_PASSWORD"
        code = (
            "import sys; from pathlib import Path; from trn.sinks.sink import RunFacts;"
            "from trn.sinks.targets import open_sink, parse_target;"
            "import os; run = RunFacts('exp01', Path(sys.argv[2]), 'job-1', {}, dict(os.environ));"
            "open_sink(parse_target(sys.argv[1]), run).begin(0)"
        )
        monkeypatch.setenv("OUR_PASSWORD", "hunter2-hunter2")
        with subprocess.Popen([sys.executable, "-c", code, text, str(run.dir)], stderr=subprocess.PIPE) as asking:
            connection, _ = server.accept()
            connection.settimeout(20)
            asked = connection.recv(65536).decode()
            connection.close()
            asking.kill()
    assert "Authorization: Basic bWU6aHVudGVyMi1odW50ZXIy" in asked
    missing = sink_of("http://127.0.0.1:1?username=me&password_env=NOT_THERE", run.facts)
    with pytest.raises(Refused, match="NOT_THERE") as refused:
        missing.begin(0)
    assert refused.value.of_target
    missing.close()


def test_a_proxy_of_the_environment_is_not_asked_for_what_is_on_this_machine(
    run: ToyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiver() as proxy, receiver() as place:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        sink = sink_of(f"{place.url.removesuffix('/events')}?token_env=T", run.with_environ(T="violet"))
        with contextlib.suppress(Unreachable, Refused):
            sink.begin(0)  # it is no such store
        sink.close()
    assert proxy.requests == []
    assert {headers["authorization"] for headers, _ in place.requests} == {"Bearer violet"}


AUDITED = """
import json, sys

asked = []
WATCHED = ("socket.connect", "socket.getaddrinfo")
sys.addaudithook(lambda event, of: asked.append(str(of[-1])) if event in WATCHED else None)
from trn.sinks.__main__ import main

code = main(sys.argv[1:])
print(json.dumps(asked))
sys.exit(code)
"""


def test_a_relay_to_mlflow_opens_no_connection(store: str, run: ToyRun) -> None:
    run.metrics(1, 5)
    command = [sys.executable, "-c", AUDITED, "--run-dir", str(run.dir), "--to", f"mlflow:{store}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == []
    assert ended.stderr == f"trn: mlflow:{store} has everything of run exp01\n"
    assert len(curve(store, the_run(store, run), "train/loss")) == 5
