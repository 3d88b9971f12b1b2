"""A run that can export, trained once and not exported; each test has a copy of its folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.forkserver import ForkServer
from support.job import command, write_job
from support.reopening import put_back_process

HOOK = """
    def export(self, batch, state, ctx):
        from trn import Export

        return Export(state.model, {"x": batch["x"]}, ("y",), {"x": {0: "batch"}})
"""


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `job/` and `runs/run`: 40 steps with a moving average, which is what is evaluated and exported."""
    folder = tmp_path_factory.mktemp("trained")
    spec = write_job(folder / "job", max_steps=40)
    trainer = folder / "job/noisy.py"
    trainer.write_text(trainer.read_text() + HOOK)
    spec.write_text(spec.read_text() + "ema: {enabled: true, decay: 0.9, evaluate: true}\nexport: {onnx: false}\n")
    with ForkServer() as server:
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
