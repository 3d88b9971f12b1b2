"""Forking, failed at each of its operations in turn, leaves a whole new run or none, and never touches the other."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from support.compare import differences, events, final_payload, lines, outcome
from support.forkserver import OPERATIONS, ForkServer
from support.job import QUIET, command, stride_of, write_job
from trn.errors import STATUS
from trn.files import sha256_file
from trn.records import new_job_id
from trn.spec.plan_model import Plan
from trn.verify import verify_run


@pytest.fixture(scope="module")
def source(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of six steps, a checkpoint every second: those of steps 4 and 6 are there."""
    folder = tmp_path_factory.mktemp("source")
    spec = write_job(folder / "job", max_steps=6, checkpoint_every=2)
    spec.write_text(spec.read_text() + QUIET)
    assert server.run(command(spec, folder, "source"), folder / "log") == 0, (folder / "log").read_text()
    return folder / "source"


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in folder.rglob("*") if path.is_file()}


def assert_whole_or_absent(new: Path) -> bool:
    """Whether the fork is there; it then has its plan, and its checkpoint holds."""
    if not new.exists():
        return False
    assert Plan.read((new / "reports/resolved_config.json").read_bytes(), "plan").run_id == "new"
    assert (new / "reports/forked_from.json").is_file()
    bad = [one.problem for one in verify_run(new) if one.problem is not None and one.what.startswith("checkpoints/")]
    assert bad == []
    return True


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("do", ["kill", "tear", "enospc", "eio", "short"])
def test_every_operation_of_a_fork_may_fail(server: ForkServer, source: Path, tmp_path: Path, do: str) -> None:
    before = contents(source)
    stride = stride_of(do, of_kills=2, of_faults=5)
    passed_untouched, absent, n = False, 0, 1 - stride
    while not passed_untouched:
        n += stride
        folder = tmp_path / f"{n}"
        folder.mkdir()
        new, log = folder / "new", folder / "log"
        options = ["--run-dir", str(source), "--run-id", "new", "--runs-dir", str(folder), "--checkpoint", "4"]
        code = server.run(["--job-id", new_job_id(), *options], log, fault=f"op=any,n={n},do={do}")
        is_there = assert_whole_or_absent(new)
        passed_untouched = code == 0 and int(log.read_text().rpartition(OPERATIONS)[2]) < n
        if code != 0:
            expected = -signal.SIGKILL if do in ("kill", "tear") else STATUS["io_error"].exit
            assert code == expected, log.read_text()
            absent += not is_there
            if not is_there and expected > 0:
                assert list((folder / ".trn/staging").glob("*")) == [], "a refusal cleans up after itself"
            again = ["--run-dir", str(new)] if is_there else options
            assert server.run(["--job-id", new_job_id(), *again], log) == 0, log.read_text()
        assert list((folder / ".trn/staging").glob("*")) == [], "what a kill left is cleared by the next job"
        assert not list(folder.rglob(".*.tmp-*"))
        assert_ends_as(new, source)
        assert contents(source) == before
        shutil.rmtree(folder)
    least = 30 // stride
    assert do == "short" or least < absent < n // stride - least, (
        "failed both while it was made and after it was published"
    )


def assert_ends_as(new: Path, source: Path) -> None:
    for name in ("train_metrics.jsonl", "val_metrics.jsonl"):
        assert lines(new, name) == lines(source, name), name
    assert differences("", final_payload(new), final_payload(source)) == []
    for key in ("status", "step", "final", "best", "exit_code", "plan_fingerprint"):
        assert outcome(new)[key] == outcome(source)[key], key
    assert len(events(new, "completed")) == 1
    assert events(new, "plan_written")[0]["forked_from"]["run_id"] == "source"
    assert [one for one in verify_run(new) if one.problem is not None] == []
