"""Manifests against schemas written by hand, and kubectl played by a program that writes down what it is asked.

No cluster runs here: what Kubernetes makes of a manifest is not tested, only that it has the form it takes.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from support.door import row_of
from support.job import write_job
from support.kubernetes_schema import JOB, JOB_SET
from trn.doors.at_engine import at_engine, cancel_at_engine
from trn.doors.cli import main
from trn.doors.schemas_of_events import job_log_schema
from trn.errors import STATUS, EngineError, UsageError
from trn.files import Lock
from trn.jobs import job_log, open_store
from trn.jobs.log import job_log_lines
from trn.launch.engine import AGAIN, AGAIN_UNCOUNTED, COUNTED, FINAL, Request
from trn.launch.kubernetes import KEYS, KubernetesEngine
from trn.records import new_job_id

IMAGE = "registry.example/trn@sha256:0123"
HOSTILE = ["run", "--config", "/a b/it's $(HOME) $HOME", "$$", "$(TRN_JOB_ID)"]


def request(*arguments: str, **changes: Any) -> Request:
    values: dict[str, Any] = {
        "job_id": new_job_id(),
        "run_id": "demo",
        "arguments": arguments,
        "cwd": "/job",
        "grace_s": 30.0,
    }
    return Request(**{**values, **changes})


def manifest(engine: KubernetesEngine | None = None, *arguments: str, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((engine or KubernetesEngine(IMAGE)).prepare(request(*arguments, **changes)).text)
    Draft202012Validator(JOB_SET if found["kind"] == "JobSet" else JOB).validate(found)
    return found


def pod_of(found: dict[str, Any]) -> Any:
    job = found if found["kind"] == "Job" else found["spec"]["replicatedJobs"][0]["template"]
    return job["spec"]["template"]["spec"]


def expanded(words: list[str], variables: dict[str, str]) -> list[str]:
    """As the kubelet fills in a command: $(NAME) of what is known, and $$ is a dollar sign."""

    def fill(found: re.Match[str]) -> str:
        return "$" if found[0] == "$$" else variables.get(found[1], found[0])

    return [re.sub(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_]*)\)", fill, word) for word in words]


# the manifests


def test_the_schemas_refuse_what_is_not_in_them() -> None:
    found = manifest()
    validator = Draft202012Validator(JOB)
    for change in ({"backoffLimits": 1}, {"backoffLimit": -1}, {"podFailurePolicy": {"rules": []}}):
        assert not validator.is_valid({**found, "spec": {**found["spec"], **change}})


def test_one_machine_is_a_job_with_everything_that_was_asked_for() -> None:
    options = dict.fromkeys(KEYS, "ml") | {"gpu": "amd.com/gpu", "memory": "16Gi", "user": "1000"}
    secrets = {"HF_TOKEN": "hub/token", "KEY": "my.secret/a_key"}
    engine = KubernetesEngine(IMAGE, options, volumes=["runs:/runs", "data:/data set"], secrets=secrets)
    found = manifest(engine, *HOSTILE, cpus=8, devices=2, nproc=2, max_restarts=3, grace_s=90)
    assert (found["kind"], found["metadata"]["namespace"], found["spec"]["backoffLimit"]) == ("Job", "ml", 3)
    pod = pod_of(found)
    (container,) = pod["containers"]
    assert expanded(container["command"], {"HOME": "/root", "TRN_JOB_ID": "x"})[5:] == [*HOSTILE, "--nproc", "2"]
    assert container["resources"]["limits"] == {"cpu": "8", "memory": "16Gi", "amd.com/gpu": "2"}
    assert [one["mountPath"] for one in container["volumeMounts"]] == ["/dev/shm", "/runs", "/data set"]
    assert pod["terminationGracePeriodSeconds"] == 120
    assert pod["securityContext"]["runAsUser"] == 1000
    environ = {one["name"]: one for one in container["env"]}
    assert environ["HF_TOKEN"]["valueFrom"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert environ["TRN_LAUNCHER"]["value"] == "kubernetes"


def test_several_machines_are_a_set_that_meets_at_its_first_pod() -> None:
    found = manifest(None, "run", nodes=3, nproc=8, max_restarts=2)
    name = found["metadata"]["name"]
    (replicated,) = found["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert (job["completions"], job["parallelism"], job["completionMode"]) == (3, 3, "Indexed")
    # the set starts again, not one pod of it
    assert (job["backoffLimit"], found["spec"]["failurePolicy"]["maxRestarts"]) == (0, 2)
    command = expanded(pod_of(found)["containers"][0]["command"], {"TRN_NODE_RANK": "1"})
    assert command[5:] == [
        *("run", "--nproc", "8", "--nnodes", "3", "--node-rank", "1"),
        *("--rdzv-endpoint", f"{name}-{replicated['name']}-0-0.{name}:29500"),
    ]
    assert len(f"{name}-{replicated['name']}-0-0-abcde") <= 63


def test_every_exit_code_has_one_consequence() -> None:
    codes = {one.exit for one in STATUS.values()} - {0}
    assert set(AGAIN_UNCOUNTED) | set(COUNTED) | set(FINAL) == codes
    assert len(AGAIN_UNCOUNTED) + len(COUNTED) + len(FINAL) == len(codes)
    assert set(AGAIN) <= set(AGAIN_UNCOUNTED) | set(COUNTED)
    disruption, uncounted, final = manifest(max_restarts=1)["spec"]["podFailurePolicy"]["rules"]
    assert disruption["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert (disruption["action"], uncounted["action"], final["action"]) == ("Ignore", "Ignore", "FailJob")
    for rule, expected in ((uncounted, AGAIN_UNCOUNTED), (final, FINAL)):
        # Kubernetes refuses values that are not in order
        assert rule["onExitCodes"]["values"] == sorted(expected)


@pytest.mark.parametrize(
    ("engine", "where"),
    [
        (KubernetesEngine(""), "--image"),
        (KubernetesEngine("a b"), "--image"),
        (KubernetesEngine(IMAGE, volumes=["runs"]), "--volume"),
        (KubernetesEngine(IMAGE, volumes=["runs:/a:/b"]), "--volume"),
        (KubernetesEngine(IMAGE, {"user": "0"}), "--kubernetes user"),
        (KubernetesEngine(IMAGE, secrets={"HF_TOKEN": "hf_notasecretbutlookslike"}), "--secret"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_no_secret_is_repeated(engine: KubernetesEngine, where: str) -> None:
    with pytest.raises(UsageError, match=where) as caught:
        engine.prepare(request("run"))
    assert "hf_" not in str(caught.value)


# kubectl

KUBECTL = """
import json, os, sys
from pathlib import Path
home = Path(os.environ["KUBECTL_HOME"])
arguments = sys.argv[1:]
options = [one for one in arguments if one.startswith("-") and one != "-"]
words = [one for one in arguments if not one.startswith("-")]
with open(home / "asked.jsonl", "a") as asked:
    asked.write(json.dumps(arguments) + "\\n")
if os.environ.get("KUBECTL_MODE") in ("refuse", "refuse " + words[0]):
    sys.exit("E1122 12:00:00.000000 1 memcache.go:265] tried\\nError from server (Forbidden): jobs.batch is forbidden")
if os.environ.get("KUBECTL_MODE") == "nonsense" and words[0] == "get":
    print((home / "nonsense").read_text())
elif words[0] == "create":
    found = json.load(sys.stdin)
    (home / (found["metadata"]["name"] + ".json")).write_text(json.dumps(found))
    print("created")
elif words[0] == "get" and "pods" in words:
    path = home / "pods.json"
    print(path.read_text() if path.exists() else json.dumps({"items": []}))
elif words[0] == "get":
    path = home / (words[-1] + ".json")
    print(path.read_text() if path.exists() else "", end="")
elif words[0] == "delete":
    (home / (words[-1] + ".json")).unlink(missing_ok=True)
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a stand-in for kubectl, which is first on PATH."""
    home, program = tmp_path / "cluster", tmp_path / "bin" / "kubectl"
    home.mkdir()
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable} -IS\n{KUBECTL}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("KUBECTL_HOME", str(home))
    return home


def asked(cluster: Path) -> list[list[str]]:
    return [json.loads(line) for line in (cluster / "asked.jsonl").read_text().splitlines()]


def set_status(cluster: Path, name: str, status: dict[str, Any], *pods: dict[str, Any]) -> None:
    path = cluster / f"{name}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "status": status}))
    (cluster / "pods.json").write_text(json.dumps({"items": [{"status": pod} for pod in pods]}))


def ended_pod(code: int, at: str) -> dict[str, Any]:
    state = {"terminated": {"exitCode": code, "finishedAt": at}}
    return {"phase": "Failed", "containerStatuses": [{"name": "trn", "state": state}]}


def test_a_job_is_submitted_seen_in_each_state_signalled_and_deleted(cluster: Path) -> None:
    engine = KubernetesEngine(IMAGE, {"namespace": "ml", "context": "lab one"})
    prepared = engine.prepare(request("run"))
    engine_id = engine.submit(prepared)
    assert engine_id == f"job/{prepared.name}?context=lab+one&namespace=ml"
    assert asked(cluster) == [["--context=lab one", "--namespace=ml", "create", "-f", "-"]]
    looking = KubernetesEngine()
    assert looking.poll(engine_id).state == "queued"
    unschedulable = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    set_status(cluster, prepared.name, {"active": 1}, {"phase": "Pending", "conditions": [unschedulable]})
    assert looking.poll(engine_id).reason == "Unschedulable"
    set_status(cluster, prepared.name, {"active": 1}, {"phase": "Running"})
    assert looking.poll(engine_id).state == "running"
    failed = {"type": "Failed", "status": "True", "reason": "PodFailurePolicy", "message": "exit code 80"}
    pods = (ended_pod(80, "2026-11-22T12:01:00Z"), ended_pod(71, "2026-11-22T12:00:00Z"))
    set_status(cluster, prepared.name, {"conditions": [failed]}, *pods)
    seen = looking.poll(engine_id)
    assert (seen.state, seen.exit_code, seen.reason) == ("ended", 80, "PodFailurePolicy: exit code 80")
    set_status(cluster, prepared.name, {"conditions": [{"type": "Complete", "status": "True"}]})
    assert looking.poll(engine_id).exit_code == 0
    looking.signal(engine_id, 15)
    assert asked(cluster)[-1][-1] == "import os; os.kill(1, 15)"
    looking.cancel(engine_id)
    assert looking.poll(engine_id).state == "gone"


def test_a_refusal_and_a_damaged_name_are_one_line(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECTL_MODE", "refuse")
    with pytest.raises(EngineError, match="kubectl refused: Error from server") as caught:
        KubernetesEngine().poll("job/trn-1")
    assert "\n" not in str(caught.value)
    for name in ("pod/x", "job/--all", "job/x?namespace=a&server=http://evil", "job/a b"):
        with pytest.raises(EngineError, match="expected job/NAME"):
            KubernetesEngine().cancel(name)
    with pytest.raises(EngineError, match="null byte"):
        KubernetesEngine().cancel("job/x?namespace=%00")


@pytest.mark.parametrize(
    "answer",
    ["not JSON", "{", '{"status": "x"}', '{"status": {"conditions": {"a": 1}}}', '{"items": [1]}', '{"items": "abc"}'],
)
def test_nonsense_is_one_line(cluster: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    (cluster / "nonsense").write_text(answer)
    monkeypatch.setenv("KUBECTL_MODE", "nonsense")
    with pytest.raises(EngineError, match="from kubectl") as caught:
        KubernetesEngine().poll("job/trn-1")
    assert "\n" not in str(caught.value)


Run = Callable[..., tuple[str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """A command line of trn in this process: what it says on standard output, and on standard error."""

    def answer(*arguments: str, status: int = 0) -> tuple[str, str]:
        found = main(arguments)
        said = capsys.readouterr()
        assert found == status, said.err
        return said.out, said.err

    return answer


def test_the_door_submits_shows_and_cancels(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setenv("TRN_RUNS_DIR", str(tmp_path / "runs"))
    spec = write_job(tmp_path / "job", max_steps=10)
    command = ["run", "--config", str(spec), "--run-id", "demo", "--launcher", "kubernetes", "--image", IMAGE]
    shown = run(*command, "--dry-run", "--nnodes", "2", "--ddp", "--lr", "0.02", "--volume", "secrets:/tokens")
    Draft202012Validator(JOB_SET).validate(json.loads(shown[0]))
    assert "--lr=0.02" in shown[0]
    assert not (tmp_path / "runs").exists()
    assert not (cluster / "asked.jsonl").exists()
    told = json.loads(run(*command, "--secret", "HF_TOKEN=hub/token", "--json")[0])
    found = json.loads(run("status", told["job_id"], "--json")[0])
    assert (found["state"], found["engine"]["state"], found["engine"]["launcher"]) == ("queued", "queued", "kubernetes")
    with open_store(tmp_path / "runs") as store:
        waiting = store.get(told["job_id"])
        assert waiting is not None
        row, _ = cancel_at_engine(store, waiting, now=False)
        assert (row.state, at_engine(store, row)[1]) == ("cancelled", None)
        lines = job_log_lines(job_log(store.runs_dir, row)).read_text().splitlines()
    (line,) = map(json.loads, lines)
    assert (line["event"], line["job_id"], line["run_id"]) == ("job_submitted", told["job_id"], "demo")
    Draft202012Validator(job_log_schema()).validate(line)
    assert "delete" in asked(cluster)[-1]


def test_a_job_that_cannot_be_recorded_is_not_left_behind(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    spec, runs = write_job(tmp_path / "job", max_steps=10), tmp_path / "runs"
    (runs / "jobs").mkdir(parents=True)
    (runs / "jobs" / "index.jsonl").mkdir()  # no line can be appended
    command = ["run", "--config", str(spec), "--run-id", "demo", "--runs-dir", str(runs), "--launcher", "kubernetes"]
    monkeypatch.setenv("KUBECTL_MODE", "refuse delete")
    assert "kubernetes still has it as job/trn-" in run(*command, "--image", IMAGE, status=74)[1]
    monkeypatch.delenv("KUBECTL_MODE")
    (cluster / "asked.jsonl").unlink()
    for path in cluster.glob("trn-*"):
        path.unlink()
    run(*command, "--image", IMAGE, status=74)
    assert [one[-3] for one in asked(cluster)] == ["create", "--wait=false"]
    assert [path.name for path in cluster.glob("trn-*")] == []


def test_a_run_that_waits_for_its_next_attempt_is_cancelled_there(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setenv("TRN_RUNS_DIR", str(tmp_path / "runs"))
    engine = KubernetesEngine(IMAGE)
    engine_id = engine.submit(engine.prepare(request("run")))
    changes = {"state": "preempted", "exit_code": 75, "launcher": "kubernetes", "engine_id": engine_id}
    row = row_of(tmp_path / "runs", "demo", **changes)
    with open_store(tmp_path / "runs") as store:
        store.add(row)
    assert "engine     kubernetes job/" in run("status", row.job_id)[0]
    assert "kubernetes does not start it any more" in run("cancel", row.job_id)[1]
    assert engine.poll(engine_id).state == "gone"
    monkeypatch.setenv("KUBECTL_MODE", "refuse")
    told = run("status", row.job_id)[0]
    assert "cannot be asked (engine error [no_device] at Kubernetes: kubectl refused: Error from server" in told
    said = run("cancel", row.job_id, status=0)[1]
    assert said.count("[no_device]") == 1


def test_a_row_that_claims_to_wait_gets_the_end_that_the_engine_tells(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = KubernetesEngine(IMAGE)
    prepared = engine.prepare(request("run"))
    changes = {"launcher": "kubernetes", "engine_id": engine.submit(prepared)}
    failed = {"type": "Failed", "status": "True", "reason": "PodFailurePolicy"}
    set_status(cluster, prepared.name, {"conditions": [failed]}, ended_pod(2, "2026-11-22T12:00:00Z"))
    runs = tmp_path / "runs"
    with open_store(runs) as store:
        refused = row_of(runs, "demo", state="queued", **changes)
        store.add(refused)
        row, _ = at_engine(store, refused)
        assert (row.state, row.exit_code, row.reason) == ("rejected", 2, "kubernetes says: PodFailurePolicy")
        assert store.get(refused.job_id) == row
        lost = row_of(runs, "other", state="running", **changes)
        store.add(lost)
        assert at_engine(store, lost)[0].state == "lost"
        # somebody is at work: the folder wins
        held = row_of(runs, "third", state="running", **changes)
        store.add(held)
        (runs / "third").mkdir()
        lock = Lock(runs / "third" / ".lock")
        assert lock.acquire(note=f"pid=1 job={held.job_id}")
        assert at_engine(store, held)[0].state == "running"
        lock.release()


def test_what_belongs_to_another_launcher_or_to_none_is_refused(tmp_path: Path, run: Run) -> None:
    spec = write_job(tmp_path / "job", max_steps=10)
    command = ["run", "--config", str(spec), "--run-id", "demo", "--runs-dir", str(tmp_path / "runs"), "--launcher"]
    assert "it goes with --launcher kubernetes" in run(*command, "slurm", "--image", "x", status=2)[1]
    assert "expected `ddp: true`" in run(*command, "slurm", "--nnodes", "2", status=2)[1]
    assert "The engine numbers its machines" in run(*command, "slurm", "--node-rank", "0", status=2)[1]
    assert "may be a secret" in run(*command, "slurm", "--set", "hyperparams.api_key=abcdefgh1234", status=2)[1]
    for of_slurm in ("export=ALL,HF_TOKEN=abcdefgh1234", "comment=token=abcdefgh1234"):
        told = run(*command, "slurm", "--slurm", of_slurm, "--dry-run", status=2)
        assert "may be a secret" in told[1]
        assert "abcdefgh1234" not in "".join(told)
    said = run(*command, "kubernetes", "--image", IMAGE, "--secret", "hf_looks_like_one", status=2)[1]
    assert "expected NAME=SECRET/KEY" in said
    assert "hf_looks" not in said
    (tmp_path / "runs" / "demo" / "reports").mkdir(parents=True)
    assert "exists already" in run(*command, "slurm", status=78)[1]


def test_the_door_there_is_given_what_was_given_here(tmp_path: Path, run: Run) -> None:
    spec = write_job(tmp_path / "a job", max_steps=10)
    given = ["--no-shuffle", "--ddp", "--val-every=0", "--set=seed=7", "--set=owner=it's me", "--allow-change=lr"]
    asked_for = ["--nproc", "2", "--max-restarts", "3", "--cpus", "4", "--add-version", "--verbose"]
    engine = ["--launcher", "slurm", "--slurm", "partition=gpu", "--dry-run", "--json"]
    runs = tmp_path / "the runs"
    command = ["run", "--config", str(spec), "--run-id", "demo", "--runs-dir", str(runs), *given, *asked_for, *engine]
    text = json.loads(run(*command)[0])["text"]
    (line,) = [line for line in text.splitlines() if " -m trn run " in line]
    words = shlex.split(line.removesuffix(" &"))
    words = words[words.index("trn") + 1 :]
    name = words[words.index("--run-id") + 1]
    assert re.fullmatch(r"demo-v0-\d{8}-\d{6}", name)
    expected = ["run", "--config", str(spec), "--run-id", name, "--auto-resume", "--set", "add_version=false"]
    assert words[:10] == [*expected, "--runs-dir", str(runs)]
    assert sorted(words[10:]) == sorted([*given, "--verbose", "--nproc", "2"])
    assert {"#SBATCH --cpus-per-task=4", "#SBATCH --requeue", "#SBATCH --partition=gpu"} <= set(text.splitlines())
