"""One fork server for the scripts with a loop of their own; and a small job for loops inside of a test."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from support.forkserver import ForkServer
from support.job import write_table
from trn.provenance import lock


@pytest.fixture(scope="session")
def server() -> Iterator[ForkServer]:
    with ForkServer() as one:
        yield one


@pytest.fixture(autouse=True, scope="session")
def packages() -> Iterator[None]:
    """What is installed is looked at once, and not in each of sixty runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock, "installed_packages", cache(lock.installed_packages))
        yield


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.parquet"
    write_table(path, 64, seed=1)
    return path


@pytest.fixture
def spec(table: Path) -> dict[str, Any]:
    """8 steps over 64 rows."""
    return {
        "config_version": 1,
        "dataset": {"parquet_paths": [table], "batch_size": 8},
        "seed": 1,
        "device": "cpu",
        "precision": "none",
        "ddp": False,
        "epochs": 1,
        "threads": 1,
        "checkpoint_every": 3,
        "log": {"enabled": False},
        "heartbeat": {"interval_seconds": 0},
    }
