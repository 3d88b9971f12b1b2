"""A run that was trained and validated once, with and without a moving average of its weights."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.forkserver import ForkServer
from support.job import command, write_job
from support.reopening import put_back_process


@pytest.fixture(scope="session")
def server() -> Iterator[ForkServer]:
    with ForkServer() as one:
        yield one


@pytest.fixture(scope="session")
def trained(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `job/` (spec, trainer, data) and `runs/run`: 60 steps, validated and saved at 25, 40, 50 and 60."""
    folder = tmp_path_factory.mktemp("trained")
    spec = write_job(folder / "job", max_steps=60)
    text = spec.read_text().replace("{keep: 2}", "{keep: 1000}").replace("checkpoint_every: 20", "checkpoint_every: 5")
    spec.write_text(text)
    assert server.run(command(spec, folder / "runs", "run"), folder / "log") == 0, (folder / "log").read_text()
    return folder


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run's folder, somewhere else."""
    return Path(shutil.copytree(trained / "runs/run", tmp_path / "elsewhere/copied"))


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    with put_back_process():
        yield
