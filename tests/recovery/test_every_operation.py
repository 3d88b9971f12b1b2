"""Every durable operation of plan, save, prune and resume is failed in turn, until a run passes untouched."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from support.compare import assert_identical, events
from support.forkserver import OPERATIONS, ForkServer
from support.job import QUIET, command, stride_of, write_job
from trn.checkpoint.discover import find_newest_good
from trn.errors import STATUS
from trn.spec.plan_model import Plan

FAILS = {"enospc", "eio"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps, a checkpoint every second: plan, three saves, one prune."""
    spec = write_job(tmp_path_factory.mktemp("small"), max_steps=6, checkpoint_every=2)
    spec.write_text(spec.read_text() + QUIET)
    return spec


@pytest.fixture(scope="module")
def small_oracle(server: ForkServer, small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small-oracle")
    assert server.run(command(small, folder, "oracle"), folder / "log") == 0, (folder / "log").read_text()
    return folder / "oracle"


def assert_nothing_is_trusted_that_does_not_hold(run_dir: Path) -> None:
    """Once a checkpoint was announced, a good one is found; a folder that is visible has its plan."""
    if not run_dir.exists():
        return
    plan = Plan.read((run_dir / "reports/resolved_config.json").read_bytes(), "plan")
    announced = {one["step"] for one in events(run_dir, "checkpoint")}
    found = find_newest_good(run_dir, lineage=plan.lineage, announced=announced)
    assert found.meta is not None or not announced


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("do", ["kill", "tear", "enospc", "eio", "short"])
def test_every_operation_of_a_run_may_fail(
    server: ForkServer, small: Path, small_oracle: Path, tmp_path: Path, do: str
) -> None:
    passed_untouched = False
    n = 1 - stride_of(do)
    while not passed_untouched:
        n += stride_of(do)
        folder = tmp_path / f"{n}"
        folder.mkdir()
        log = folder / "log"
        code = server.run(command(small, folder, "run"), log, fault=f"op=any,n={n},do={do}")
        assert_nothing_is_trusted_that_does_not_hold(folder / "run")
        passed_untouched = code == 0 and int(log.read_text().rpartition(OPERATIONS)[2]) < n
        if code != 0:
            expected = {-signal.SIGKILL} if do in ("kill", "tear") else {STATUS["io_error"].exit}
            assert code in expected, log.read_text()
            # the resume is failed at its own operations too, a different one each time
            again = server.run(command(small, folder, "run"), log, fault=f"op=any,n={1 + n * 7 % 60},do={do}")
            assert_nothing_is_trusted_that_does_not_hold(folder / "run")
            if again != 0:
                assert again in expected, log.read_text()
                assert server.run(command(small, folder, "run"), log) == 0, log.read_text()
        assert_identical(folder / "run", small_oracle)
        assert not list(folder.rglob(".*.tmp-*")), "leftovers are cleaned"
    assert n > 100, "a run has well over a hundred durable operations"
