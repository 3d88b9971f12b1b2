"""The export at the end of a run: what passes, what does not, and what that makes of the run."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from support.compare import assert_identical, events, lines, outcome
from support.forkserver import ForkServer
from support.job import command, write_job
from trn.export.publish import staging
from trn.records import read_json

pytestmark = pytest.mark.slow

HEAD = """
    def export(self, batch, state, ctx):
        from trn.trainer.exporting import Export

"""
RIGHT = (
    HEAD
    + """
        return Export(state.model, {"x": batch["x"]}, ("y",), {"x": {0: "rows"}})
"""
)
ANOTHER_MODEL = (
    HEAD
    + """
        class Shifted(nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner
                self.calls = 0

            def forward(self, x):
                self.calls += not torch.compiler.is_compiling()
                return self.inner(x) + 1e-3 * self.calls

        return Export(Shifted(state.model), {"x": batch["x"]}, ("y",), {"x": {0: "rows"}})
"""
)
NO_EXPORT = (
    HEAD
    + """
        class Branching(nn.Module):
            def forward(self, x):
                return x + 1 if x.sum() > 0 else x

        return Export(Branching(), {"x": batch["x"]}, ("y",), {"x": {0: "rows"}})
"""
)
SLOW = (
    HEAD
    + """
        import pathlib, time

        pathlib.Path(ctx.run_dir, "exporting").touch()
        while pathlib.Path(ctx.run_dir, "wait").exists():
            time.sleep(0.01)
        pathlib.Path(ctx.run_dir, "exporting").unlink()
        return Export(state.model, {"x": batch["x"]}, ("y",), {"x": {0: "rows"}})
"""
)


def job(folder: Path, hook: str, steps: int = 20) -> Path:
    spec = write_job(folder, max_steps=steps, checkpoint_every=10)
    trainer = spec.parent / "noisy.py"
    trainer.write_text(trainer.read_text() + hook)
    return spec


def test_a_run_whose_trainer_can_exports_and_checks_itself_before_its_outcome(
    server: ForkServer, tmp_path: Path
) -> None:
    spec, log, run_dir = job(tmp_path / "job", RIGHT), tmp_path / "log", tmp_path / "run"
    assert server.run(command(spec, tmp_path, "run"), log) == 0, log.read_text()
    kinds = [event["event"] for event in events(run_dir)]
    assert kinds[-3:] == ["exported", "parity", "completed"]
    (parity,) = events(run_dir, "parity")
    assert parity["status"] == "passed"
    assert 0 <= parity["max_abs"] < 1e-5
    sidecar = read_json(run_dir / "exports/model.onnx.meta.json")
    (best,) = events(run_dir, "exported")
    assert sidecar["checkpoint"]["file"] == best["checkpoint"]
    assert sidecar["checkpoint"]["step"] == outcome(run_dir)["best"]["step"]
    assert read_json(run_dir / "reports/onnx_parity.json")["status"] == "passed"


def test_a_run_that_exports_ends_with_the_bits_of_one_that_does_not(server: ForkServer, tmp_path: Path) -> None:
    spec, log = job(tmp_path / "job", RIGHT), tmp_path / "log"
    assert server.run(command(spec, tmp_path, "run"), log) == 0, log.read_text()
    off = command(spec, tmp_path, "off", "--auto-resume", "--set", "export.onnx=false")
    assert server.run(off, log) == 0, log.read_text()
    assert_identical(tmp_path / "run", tmp_path / "off")
    skipped = read_json(tmp_path / "off/reports/onnx_parity.json")
    assert (skipped["status"], skipped["reason"]) == ("skipped", "export.onnx is false")
    assert [event["status"] for event in events(tmp_path / "off", "parity")] == ["skipped"]
    assert not (tmp_path / "off/exports/model.onnx").exists()


@pytest.mark.parametrize(
    ("hook", "why"), [(ANOTHER_MODEL, "differs from the model"), (NO_EXPORT, "cannot be exported")]
)
def test_what_does_not_pass_ends_as_parity_failed_and_a_resume_only_exports_again(
    server: ForkServer, tmp_path: Path, hook: str, why: str
) -> None:
    spec, log, run_dir = job(tmp_path / "job", hook), tmp_path / "log", tmp_path / "run"
    assert server.run(command(spec, tmp_path, "run"), log) == 85, log.read_text()
    ended = outcome(run_dir)
    assert (ended["status"], ended["exit_code"], ended["step"]) == ("parity_failed", 85, 20)
    assert why in ended["reason"]
    assert "completed" in ended["reason"]
    assert f"parity_failed: {ended['reason']}\n" in log.read_text()
    assert not (run_dir / "exports/model.onnx").exists()
    report = read_json(run_dir / "reports/onnx_parity.json")
    assert (report["status"], report["passed"]) == ("failed", False)
    before = lines(run_dir, "train_metrics.jsonl")
    again = command(spec, tmp_path, "run", "--resume", "--set", "export.parity_policy=warn")
    assert server.run(again, log) == 0, log.read_text()
    assert outcome(run_dir)["status"] == "completed"
    assert [event["status"] for event in events(run_dir, "parity")] == ["failed", "failed"]
    assert lines(run_dir, "train_metrics.jsonl") == before
    assert why in log.read_text()


def test_a_run_killed_while_it_exports_exports_again_and_ends_the_same(server: ForkServer, tmp_path: Path) -> None:
    spec, log, run_dir = job(tmp_path / "job", SLOW), tmp_path / "log", tmp_path / "run"
    assert server.run(command(spec, tmp_path, "oracle"), log) == 0, log.read_text()
    pid = server.start(command(spec, tmp_path, "run"), log)
    end = time.monotonic() + 60
    while not run_dir.exists():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.001)
    (run_dir / "wait").touch()
    while not (run_dir / "exporting").exists():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    server.wait(pid)
    assert not (run_dir / "reports/outcome.json").exists()
    (run_dir / "wait").unlink()
    (run_dir / "exporting").unlink()
    assert server.run(command(spec, tmp_path, "run"), log) == 0, log.read_text()
    assert_identical(run_dir, tmp_path / "oracle")
    assert (run_dir / "exports/model.onnx").exists()


def test_a_run_waits_for_an_export_of_it_that_goes_on_at_its_end(server: ForkServer, tmp_path: Path) -> None:
    spec, log, run_dir = job(tmp_path / "job", RIGHT), tmp_path / "log", tmp_path / "run"
    pid = server.start(command(spec, tmp_path, "run"), log)
    end = time.monotonic() + 60
    while not run_dir.exists():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.001)
    with staging(run_dir / "exports", 0.1):
        while len(lines(run_dir, "train_metrics.jsonl")) < 20:
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.01)
        time.sleep(2.5)  # longer than `trn export` would wait
        assert not (run_dir / "reports/outcome.json").exists()
    assert server.wait(pid) == 0, log.read_text()
    assert outcome(run_dir)["status"] == "completed"
    assert (run_dir / "exports/model.onnx.meta.json").exists()


def test_a_signal_breaks_the_export_off_and_a_resume_makes_it(server: ForkServer, tmp_path: Path) -> None:
    spec, log, run_dir = job(tmp_path / "job", SLOW), tmp_path / "log", tmp_path / "run"
    made = []
    for number, (sent, code, status) in enumerate(
        ((signal.SIGTERM, 75, "preempted"), (signal.SIGINT, 92, "cancelled"))
    ):
        pid = server.start(command(spec, tmp_path, "run"), log)
        end = time.monotonic() + 60
        while not run_dir.exists():
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.001)
        (run_dir / "wait").touch()
        while not (run_dir / "exporting").exists():
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.01)
        os.kill(pid, sent)
        assert server.wait(pid) == code, log.read_text()
        ended = outcome(run_dir)
        assert (ended["status"], ended["step"]) == (status, 20)
        assert ended["reason"] == f"{sent.name} was received, during the export"
        assert [path.name for path in (run_dir / "exports").iterdir()] == [".lock"]
        assert len(events(run_dir, "job_started")) == number + 1
        made.append(lines(run_dir, "train_metrics.jsonl"))
        (run_dir / "exporting").unlink()
    (run_dir / "wait").unlink()
    assert server.run(command(spec, tmp_path, "run"), log) == 0, log.read_text()
    assert outcome(run_dir)["status"] == "completed"
    assert (run_dir / "exports/model.onnx").exists()
    assert made == [lines(run_dir, "train_metrics.jsonl")] * 2


OUT_OF_MEMORY = (
    HEAD
    + """
        raise MemoryError("no room for the graph")
"""
)


def test_memory_that_does_not_suffice_for_the_export_is_no_parity_that_failed(
    server: ForkServer, tmp_path: Path
) -> None:
    spec, log, run_dir = job(tmp_path / "job", OUT_OF_MEMORY), tmp_path / "log", tmp_path / "run"
    assert server.run(command(spec, tmp_path, "run"), log) == 89, log.read_text()
    assert (outcome(run_dir)["status"], outcome(run_dir)["step"]) == ("out_of_memory", 20)
    assert events(run_dir, "parity") == []
