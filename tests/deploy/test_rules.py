"""What stands in deploy/: each rule against the table of exit codes, and each file by the program that reads it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from support.kubernetes_schema import JOB
from support.slurm import is_here, slurm
from trn.errors import STATUS
from trn.launch.engine import AGAIN, AGAIN_UNCOUNTED, COUNTED, FINAL, Request
from trn.launch.kubernetes import KubernetesEngine
from trn.launch.slurm import SlurmEngine
from trn.provenance.secret_names import is_secret_name
from trn.spec.schema import LimitsSpec

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CODES = sorted({one.exit for one in STATUS.values()})
REQUEST = Request("job-1", "demo", ("run",), "/job", grace_s=LimitsSpec().grace_seconds, max_restarts=5)


def loaded(name: str) -> Any:
    return YAML(typ="safe", pure=True).load((DEPLOY / name).read_text())


def numbers(text: str) -> list[int]:
    return [int(one) for one in re.findall(r"\d+", text)]


# the words of docs/exit-codes.md


def test_the_docs_say_the_same_as_the_rules() -> None:
    page = (ROOT / "docs/exit-codes.md").read_text()
    tries = dict(re.findall(r"^\| ([\d, ]+) \| (goes on where the run stood|goes on once.*?) \|$", page, re.MULTILINE))
    by_itself = {code for row, said in tries.items() if "stood" in said for code in numbers(row)}
    # 92 was somebody's own will
    assert by_itself - {STATUS["cancelled"].exit} == set(AGAIN)
    slurm_words = page.split("* **Slurm**")[1].split("\n* ")[0].partition("(`scontrol requeue`) on")[2]
    assert set(numbers(slurm_words)) == set(AGAIN)
    ignored, final, counted = re.split(r"`FailJob`|; (?=71)", page.split("* **Kubernetes**")[1].split("\n  `term")[0])
    assert set(numbers(ignored)) == set(AGAIN_UNCOUNTED)
    assert set(numbers(counted)) == set(COUNTED)
    assert set(numbers(final)) == set(FINAL)


def test_each_file_is_named_in_the_readme() -> None:
    readme = (DEPLOY / "README.md").read_text()
    for path in DEPLOY.rglob("*"):
        if path.is_file() and path.suffix not in (".md", ".dockerignore"):
            assert f"({path.relative_to(DEPLOY)})" in readme


# Slurm


def batch(tmp_path: Path, code: int | str, **more: str) -> tuple[int, str]:
    """What the script ends with, and what it asks Slurm for, where trn ends with `code`."""
    record = tmp_path / "record"
    record.write_text("")
    for name, text in (("trn", f"exit {code}"), ("scontrol", f'echo "$*" >> {shlex.quote(str(record))}')):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", **more}
    done = subprocess.run(
        ["bash", str(DEPLOY / "slurm/train.sbatch")], env=environ, timeout=20, check=False, capture_output=True
    )
    return done.returncode, record.read_text()


def test_the_batch_script_asks_again_by_the_exit_code_alone(tmp_path: Path) -> None:
    killed = (128 + signal.SIGKILL, 128 + signal.SIGTERM)
    for code in (*CODES, 1, *killed):
        asked = "requeue 7\n" if code in (*AGAIN, *killed) else ""
        assert batch(tmp_path, code) == (code, asked)
    assert batch(tmp_path, 75, MOST="3", SLURM_RESTART_COUNT="3") == (75, "")


def test_the_batch_script_restarts_as_the_engine_does() -> None:
    pattern = re.compile(r"^ *((?:\d+\|)+\d+)\)", re.MULTILINE)
    ours = SlurmEngine().prepare(REQUEST).text
    assert pattern.findall((DEPLOY / "slurm/train.sbatch").read_text()) == pattern.findall(ours)


@pytest.mark.slow
@pytest.mark.skipif(not is_here(), reason="needs root, slurm-wlm and munge")
def test_slurm_takes_the_batch_script(tmp_path: Path) -> None:
    with slurm(tmp_path) as environ:
        script = str(DEPLOY / "slurm/train.sbatch")
        done = subprocess.run(
            ["sbatch", "--test-only", script],
            env=dict(environ),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode, "to start at" in done.stderr) == (0, True), done.stderr


# Kubernetes


def test_the_manifest_has_the_form_of_a_job_and_the_rules_of_the_engine() -> None:
    found = loaded("kubernetes/job.yaml")
    Draft202012Validator(JOB).validate(found)
    ours = json.loads(KubernetesEngine("image").prepare(REQUEST).text)
    assert found["spec"]["podFailurePolicy"] == ours["spec"]["podFailurePolicy"]
    theirs, own = found["spec"]["template"]["spec"], ours["spec"]["template"]["spec"]
    assert theirs["terminationGracePeriodSeconds"] >= own["terminationGracePeriodSeconds"]
    assert theirs["restartPolicy"] == own["restartPolicy"] == "Never"
    text = (DEPLOY / "kubernetes/job.yaml").read_text()
    counted = numbers(text.split("# the rest counts:")[1].split("a kill")[0])
    assert sorted(counted) == sorted(COUNTED)


# SkyPilot


def test_the_task_recovers_from_what_is_nobodys_fault_and_from_nothing_else() -> None:
    found = loaded("skypilot/task.yaml")
    assert set(found) == {"name", "resources", "volumes", "workdir", "setup", "run"}
    recovery = found["resources"]["job_recovery"]
    assert recovery == {"recover_on_exit_codes": list(AGAIN_UNCOUNTED), "max_restarts_on_errors": 0}
    assert_a_command_line(found["run"].removeprefix("exec "))


# systemd


def unit(name: str) -> dict[str, str]:
    lines = (DEPLOY / "systemd" / name).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def test_the_service_restarts_by_the_table() -> None:
    found = unit("trn@.service")
    assert numbers(found["RestartForceExitStatus"]) == list(AGAIN_UNCOUNTED)
    assert numbers(found["RestartPreventExitStatus"]) == list(FINAL)
    stopped = [STATUS["preempted"].exit, STATUS["cancelled"].exit]
    assert numbers(found["SuccessExitStatus"]) == stopped
    # all others are failures, and so restarted
    assert found["Restart"] == "on-failure"
    assert not set(COUNTED) & {*FINAL, *AGAIN_UNCOUNTED, *stopped}
    assert int(found["TimeoutStopSec"]) > LimitsSpec().grace_seconds + 30
    assert (found["KillSignal"], found["KillMode"]) == ("SIGTERM", "mixed")
    # nothing else can be written to, and the leases of devices are below it
    assert (found["ProtectSystem"], found["ReadWritePaths"].split()) == ("strict", ["/srv/trn", "/tmp"])
    assert "PrivateTmp" not in found
    assert_a_command_line(found["ExecStart"].replace("%i", "demo"))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_service(tmp_path: Path) -> None:
    program = tmp_path / "trn"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    text = (DEPLOY / "systemd/trn@.service").read_text()
    service = tmp_path / "trn@demo.service"
    service.write_text(text.replace("/usr/local/trn/bin/trn", str(program)))
    assert verified(service) == ""
    service.write_text(text + "KillMode=never-heard-of\n")
    assert "KillMode" in verified(service)


def verified(service: Path) -> str:
    done = subprocess.run(
        ["systemd-analyze", "verify", str(service)], capture_output=True, text=True, timeout=30, check=False
    )
    # what this machine's own units have wrong is not ours
    return "\n".join(line for line in (done.stdout + done.stderr).splitlines() if service.name in line)


# Docker


def instructions() -> list[tuple[str, str]]:
    text = (DEPLOY / "docker/Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def test_the_image_is_pinned_is_not_root_and_knows_no_secret() -> None:
    found = instructions()
    last: Mapping[str, str] = dict(found)
    assert re.fullmatch(r"BASE=[\w./-]+:\d+\.\d+\.\d+-[\w-]+", last["ARG"])
    assert {value.split(" AS ")[0] for name, value in found if name == "FROM"} == {"${BASE}"}
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last["USER"])
    assert json.loads(last["ENTRYPOINT"]) == ["tini", "--", "trn"]
    assert last["STOPSIGNAL"] == "SIGTERM"
    names = re.findall(r"(\w+)=", " ".join(value for name, value in found if name in ("ARG", "ENV")))
    assert {"BASE", "PATH", "TRN_RUNS_DIR"} <= set(names)
    assert not any(map(is_secret_name, names))
    (pip,) = [value for name, value in found if name == "RUN" and "pip" in value]
    assert "--constraint /src/constraints.txt" in pip


def test_the_image_is_made_of_what_is_there_and_sent() -> None:
    sources = [
        source
        for name, value in instructions()
        if name == "COPY" and "--from" not in value
        for source in value.split()[:-1]
    ]
    assert sources == ["pyproject.toml", "README.md", "LICENSE", "constraints.txt", "src"]
    ignored = (DEPLOY / "docker/Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in ignored
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored


# the command lines


def assert_a_command_line(text: str) -> None:
    """trn itself takes it, up to the spec, which is not there."""
    words = shlex.split(text)
    assert os.path.basename(words[0]) == "trn"
    done = subprocess.run(
        [sys.executable, "-P", "-m", "trn", *words[1:]], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert re.search(r"spec error \[spec_refused\] .*(spec|demo)\.yaml", done.stderr), done.stderr


def test_every_command_line_is_one_that_trn_takes() -> None:
    (container,) = loaded("kubernetes/job.yaml")["spec"]["template"]["spec"]["containers"]
    assert_a_command_line(shlex.join(container["command"]))
    (line,) = re.findall(r"^trn run .*(?= &$)", (DEPLOY / "slurm/train.sbatch").read_text(), re.MULTILINE)
    assert_a_command_line(line.replace("$SPEC", "spec.yaml").replace("$RUN_ID", "demo").replace("$RUNS_DIR", "runs"))
