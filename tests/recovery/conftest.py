"""One fork server, and one uninterrupted run of the hostile job as the oracle, for all tests of a process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.forkserver import ForkServer
from support.job import command, write_job


@pytest.fixture(scope="session")
def server() -> Iterator[ForkServer]:
    with ForkServer() as one:
        yield one


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The spec of the hostile job: 200 steps over five passes, a checkpoint every 20, validation every 25."""
    return write_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="session")
def oracle(server: ForkServer, job: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("oracle")
    log = folder / "log"
    assert server.run(command(job, folder, "oracle"), log) == 0, log.read_text()
    return folder / "oracle"
