"""Real repositories and the facts of a job, for the tests of this room."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trn.provenance import Accelerator, Device, StartupFacts, TorchFacts

HASH = "0123456789abcdef" * 4
STARTED = "2026-03-04T05:06:07.000008Z"

Git = Callable[..., str]


@pytest.fixture
def git(tmp_path: Path) -> Git:
    """Runs git in a folder below tmp_path, without the configuration of whoever runs the tests."""

    def run(*arguments: str, folder: Path) -> str:
        environ = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
        identity = ("-c", "user.name=A", "-c", "user.email=a@example.com", "-c", "init.defaultBranch=main")
        command = ["git", *identity, "-C", str(folder), *arguments]
        return subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout.strip()

    return run


@pytest.fixture
def repository(tmp_path: Path, git: Git) -> Path:
    """A repository with one commit and nothing else."""
    folder = tmp_path / "code"
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "train.py").write_text("x = 1\n")
    git("init", "-q", folder=folder)
    git("add", "-A", folder=folder)
    git("commit", "-qm", "first", folder=folder)
    return folder


@pytest.fixture
def plan(tmp_path: Path) -> dict[str, Any]:
    """As much of a plan as provenance reads, and some of what it only writes down."""
    return {
        "schema_version": 1,
        "config_path": "/specs/train.yaml",
        "base_config_path": ["/specs/base.yaml"],
        "dataset_seed": 42,
        "run_id": "exp01",
        "run_dir": "/runs/exp01",
        "runs_dir": "/runs",
        "trainer": {"name": "lm", "code_sha256": HASH, "params": {"token_dim": 64, "tokenizer": "tok"}},
        "dataset": {"data": {"fingerprint": HASH}, "columns": ["tokens"]},
        "schedule": {"lr_max": 5e-05, "lr_min": 1e-06},
        "fingerprint": HASH[::-1],
    }


@pytest.fixture
def facts(plan: dict[str, Any], repository: Path, tmp_path: Path) -> StartupFacts:
    return StartupFacts(
        plan=plan,
        run_id="exp01",
        job_id="job-1",
        started_at=STARTED,
        argv=["trn", "run", "--config", "train.yaml"],
        cwd="/specs",
        code_folder=repository / "src",
        environ={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "2"},
        sources=[("/specs/train.yaml", b"# mine\nextends: base.yaml\nlr: 1e-3\n"), ("/specs/base.yaml", b"seed: 42\n")],
        torch=TorchFacts(
            version="2.13.0+cpu",
            threads=2,
            interop_threads=1,
            flags={"cudnn_benchmark": False, "matmul_precision": "highest"},
            accelerator=Accelerator(kind="cuda", version="13.0", devices=(Device(0, "A100", 80 << 30, "8.0"),)),
        ),
    )


@pytest.fixture
def unreadable() -> Callable[[Path], None]:
    """Makes a path that is a file to whoever looks, and an error to whoever reads, even for root."""

    def make(path: Path) -> None:
        path.symlink_to("/proc/self/mem")

    return make
