"""run_meta.json of a real run with two jobs: accepted as it is, and refused with any change, by both who check it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.changes import Change, drop, put
from support.forkserver import ForkServer
from support.job import command, write_job
from trn import validate_run_meta
from trn.verify import __main__ as verify
from trn.verify import verify_run

pytestmark = pytest.mark.slow

HASH = "0123456789abcdef" * 4
NAME = "reports/run_meta.json"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was finished, and then went on to a longer budget: two jobs, two revisions of the plan."""
    folder = tmp_path_factory.mktemp("finished")
    spec, log = write_job(folder / "job", max_steps=20), folder / "log"
    with ForkServer() as server:
        assert server.run(command(spec, folder, "run"), log) == 0, log.read_text()
        longer = ["--resume", "--allow-change", "max_steps", "--set", "max_steps=30"]
        assert server.run(command(spec, folder, "run", *longer), log) == 0, log.read_text()
    return folder / "run"


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def problems(folder: Path) -> list[str]:
    return [f"{one.what}: {one.problem}" for one in verify_run(folder) if one.problem is not None]


def test_the_record_of_a_real_run_is_accepted(run_dir: Path) -> None:
    assert len(json.loads((run_dir / NAME).read_bytes())["jobs"]) == 2
    assert validate_run_meta.main([str(run_dir / NAME)]) == 0
    assert problems(run_dir) == []
    for module, path in (("trn.validate_run_meta", run_dir / NAME), ("trn.verify", run_dir)):
        done = subprocess.run([sys.executable, "-m", module, str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


# the schema: both refuse
SCHEMA: dict[str, Change] = {
    **{
        f"without {name}": drop(name)
        for name in (
            *("schema_version", "run_id", "created_at", "plan_fingerprint", "git", "dependency_lock", "preprocess"),
            *("hardware", "runtime", "command", "dataset", "trainer", "config_sources", "redacted", "jobs"),
            *("git.reason", "hardware.host.cpu_count", "runtime.flags", "command.cwd", "jobs.1.from_step"),
        )
    },
    "a key more": put("extra", 1),
    "a key more in a section": put("runtime.extra", 1),
    "a key more in a job": put("jobs.1.extra", 1),
    "another version": put("schema_version", 2),
    "a version that is text": put("schema_version", "1"),
    "a version that is true": put("schema_version", True),
    "an id that is a path": put("run_id", "../../x"),
    "a time that is none": put("created_at", "2026-02-30T00:00:00Z"),
    "a time without a zone": put("jobs.1.started_at", "2026-02-03T00:00:00"),
    "a short hash": put("plan_fingerprint", "abc"),
    "a hash in capitals": put("dependency_lock.package_set_sha256", HASH.upper()),
    "a hash that is a number": put("dataset.fingerprint", 7),
    "a commit that is none": put("git.sha", "HEAD"),
    "a negative count": put("dependency_lock.package_count", -1),
    "no threads": put("runtime.threads", 0),
    "half a thread": put("runtime.threads", 1.5),
    "a negative step": put("jobs.1.from_step", -1),
    "deterministic, perhaps": put("runtime.deterministic", "perhaps"),
    "an empty command": put("command.argv", []),
    "another command line": put("command.command_str", "true"),
    "a source that leads outside": put("config_sources.0.name", "../spec.yaml"),
    "a section that is a list": put("git", []),
    "a section that is null": put("hardware", None),
    "no job": put("jobs", []),
    "a job twice": lambda meta: meta["jobs"].append(meta["jobs"][1]),
    "jobs in another order": lambda meta: meta["jobs"].reverse(),
    "the first job missing": lambda meta: meta["jobs"].pop(0),
    "a first job that resumes": put("jobs.0.resume", True),
    "a second first job": lambda meta: meta["jobs"][1].update(resume=False, from_step=None),
    "another host in the first job": put("jobs.0.host", "elsewhere"),
    "another code in the first job": put("jobs.0.code_sha256", HASH),
}

# bytes: both refuse
BYTES: dict[str, Callable[[bytes], bytes]] = {
    "NaN": lambda data: data.replace(b'"kind": "none"', b'"kind": "none", "x": NaN'),
    "a key twice": lambda data: data.replace(b'"run_id"', b'"run_id": "a", "run_id"', 1),
    "half of it": lambda data: data[: len(data) // 2],
    "nothing": lambda data: b"",
    "a list": lambda data: b"[]",
    "too deep": lambda data: b"[" * 100_000,
    "no UTF-8": lambda data: data + b"\xff",
}

# true to the schema, and false: only who has the run can see it
FALSE: dict[str, Change] = {
    "another run": put("run_id", "another"),
    "another trainer": put("trainer.name", "other:Trainer"),
    "another data set": put("dataset.fingerprint", HASH),
    "another plan": put("jobs.1.plan_fingerprint", HASH),
    "another plan from the start": lambda meta: (
        meta.update(plan_fingerprint=HASH),
        meta["jobs"][0].update(plan_fingerprint=HASH),
    ),
    "another source": put("config_sources.0.sha256", HASH),
    "a source that is not there": put("config_sources.0.name", "other.yaml"),
    "a job that is missing": lambda meta: meta["jobs"].pop(),
}


def change_json(path: Path, change: Change) -> None:
    document: dict[str, Any] = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))


def test_there_are_at_least_forty_changes() -> None:
    assert len(SCHEMA) + len(BYTES) >= 40


@pytest.mark.parametrize("name", [*SCHEMA, *BYTES])
def test_a_change_is_refused_by_the_validator_and_by_verify(
    run_dir: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = run_dir / NAME
    if name in SCHEMA:
        change_json(path, SCHEMA[name])
    else:
        path.write_bytes(BYTES[name](path.read_bytes()))
    assert validate_run_meta.main([str(path)]) == 86
    told = capsys.readouterr().err.splitlines()
    assert told
    assert all(line.startswith(f"{path}: ") and line.isprintable() for line in told)
    assert verify.main([str(run_dir)]) == 86
    assert any(line.startswith(f"BAD  {NAME}: ") for line in capsys.readouterr().err.splitlines())


@pytest.mark.parametrize("name", FALSE)
def test_what_is_valid_and_false_is_found_by_verify(run_dir: Path, name: str) -> None:
    change_json(run_dir / NAME, FALSE[name])
    assert validate_run_meta.main([str(run_dir / NAME)]) == 0
    assert problems(run_dir)


OTHERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "the record: gone": (NAME, Path.unlink),
    "the record: a folder": (NAME, lambda path: (path.unlink(), path.mkdir())),
    "a source: a byte": ("config_source.yaml", lambda path: path.write_bytes(path.read_bytes() + b"#")),
    "a source: gone": ("config_source.yaml", Path.unlink),
    "the plan for people: a number": (
        "reports/config_resolved.yaml",
        lambda path: path.write_text(path.read_text().replace("seed: 42", "seed: 43", 1)),
    ),
    "the plan for people: gone": ("reports/config_resolved.yaml", Path.unlink),
    "the flat record: another run": (
        "reports/run_metadata.json",
        lambda path: change_json(path, put("run_name", "x")),
    ),
    "the flat record: a file outside": (
        "reports/run_metadata.json",
        lambda path: change_json(path, put("run_manifest_files.x", "../../x")),
    ),
    "the flat record: no JSON": ("reports/run_metadata.json", lambda path: path.write_text("{")),
    "the environment: a key less": ("reports/runtime_env.json", lambda path: change_json(path, drop("env"))),
    "the environment: gone": ("reports/runtime_env.json", Path.unlink),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_change_to_another_start_up_artifact_is_found(run_dir: Path, name: str) -> None:
    path, change = OTHERS[name]
    change(run_dir / path)
    assert problems(run_dir), name
    assert verify.main([str(run_dir)]) == 86


EARLIER: dict[str, Callable[[Path], object]] = {
    "another run": lambda path: change_json(path, put("run_id", "another")),
    "another plan": lambda path: change_json(path, put("plan_fingerprint", HASH)),
    "another job": lambda path: change_json(path, put("job_id", "job-x")),
    "another status": lambda path: change_json(path, put("status", "cancelled")),
    "half of it": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "a name of its own": lambda path: path.rename(path.with_name("job-x.json")),
}


@pytest.mark.parametrize("name", EARLIER)
def test_a_change_to_the_outcome_of_an_earlier_job_is_found(run_dir: Path, name: str) -> None:
    (path,) = (run_dir / "reports/outcomes").iterdir()
    EARLIER[name](path)
    assert problems(run_dir)


def test_a_plan_for_people_that_a_kill_left_behind_is_no_damage_and_is_mended(run_dir: Path) -> None:
    from trn.provenance.resolved import config_resolved_yaml
    from trn.records import read_json
    from trn.runner.artifacts import _mend_resolved

    resolved, now = run_dir / "reports/config_resolved.yaml", (run_dir / "reports/config_resolved.yaml").read_bytes()
    resolved.write_bytes(config_resolved_yaml(read_json(run_dir / "reports/plans/0.json")))
    assert resolved.read_bytes() != now
    assert problems(run_dir) == []
    _mend_resolved(run_dir)
    assert resolved.read_bytes() == now
