"""Readings of accelerators: from the driver by a thread, into the steps' lines and the heartbeat; never waited for."""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import trn
from support import drivers
from support.compare import events
from support.door import until
from support.drivers import gpu
from support.job import command, write_job, write_table
from support.own_loop import open_and
from support.plans import plan_of
from trn.devices.telemetry import Reading, Telemetry
from trn.loop.lines import step_line
from trn.loop.pulse import STALE_S, Pulse
from trn.ranks import World
from trn.records import read_lines
from trn.runner import beating, telemetry
from trn.runner.telemetry import RunTelemetry


def reader(run_dir: Path, pulse: Pulse, world: World | None = None, device: str = "cuda:0") -> RunTelemetry:
    return RunTelemetry(plan_of(run_dir, device=device), pulse, world or World(), every_s=0.01)


def test_readings_come_from_a_thread_and_change_with_the_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state = drivers.install(monkeypatch, tmp_path, [gpu(0, busy=12), gpu(1, busy=99)])
    pulse = Pulse()
    reading = reader(tmp_path, pulse)
    assert reading.beat()["gpu_reason"] == "not read yet"
    reading.start()
    until(lambda: pulse.gpu_util_pct(time.perf_counter()) == 12.0)
    assert reading.beat() == {
        "gpu_util_pct": 12.0,
        "gpu_memory_used_bytes": 1_000_000_000,
        "gpu_power_w": 61.5,
        "gpu_reason": None,
    }
    drivers.write(state, [gpu(0, busy=None)])
    until(lambda: pulse.gpu is None)
    assert reading.beat()["gpu_reason"] == "NVML: Not Supported"
    drivers.write(state, [gpu(0, busy=13)])
    until(lambda: pulse.gpu_util_pct(time.perf_counter()) == 13.0)
    reading.stop()


@pytest.mark.parametrize(("seen", "expected"), [(2, 1), (1, 0)])
def test_each_rank_tells_the_memory_of_its_own_device(
    monkeypatch: pytest.MonkeyPatch, seen: int, expected: int
) -> None:
    monkeypatch.setattr(beating.torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(beating.torch.cuda, "device_count", lambda: seen)
    monkeypatch.setattr(beating.torch.cuda, "memory_allocated", lambda index: range(seen)[index])
    assert beating._device_bytes("cuda", 1) == expected


def test_each_rank_reads_its_own_device_also_where_it_sees_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drivers.install(monkeypatch, tmp_path, [gpu(0, busy=20), gpu(1, busy=50)])
    for rank, chosen, own in ((0, None, 20.0), (1, None, 50.0), (1, "0", 20.0)):
        pulse = Pulse()
        if chosen is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
        reading = reader(tmp_path, pulse, World(rank, rank, 2, 2), device="cuda")
        reading.start()
        until(lambda pulse=pulse: pulse.gpu is not None)
        reading.stop()
        assert pulse.gpu is not None
        assert pulse.gpu[0] == own
        assert reading.beat()["gpu_util_pct"] == own


def test_without_a_driver_there_is_a_reason_and_no_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drivers.install(monkeypatch, tmp_path, None)
    pulse = Pulse()
    for device, said in (("cuda:0", "NVML: Driver Not Loaded"), ("cpu", "the run has no accelerator")):
        reading = reader(tmp_path, pulse, device=device)
        reading.start()
        until(lambda reading=reading, said=said: reading.beat()["gpu_reason"] == said)
        reading.stop()
        assert reading.beat()["gpu_util_pct"] is None
    assert pulse.gpu is None


@pytest.mark.slow
def test_a_driver_that_hangs_is_waited_for_by_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    state = drivers.install(monkeypatch, tmp_path, [gpu(0)])
    pulse = Pulse()
    reading = reader(tmp_path, pulse)
    reading.start()
    until(lambda: pulse.gpu is not None)
    drivers.write(state, [gpu(0, busy="hangs")])
    time.sleep(0.1)
    began_s = time.monotonic()
    reading.stop()
    assert time.monotonic() - began_s < 3
    assert pulse.gpu is not None
    assert pulse.gpu_util_pct(pulse.gpu[1] + STALE_S + 0.1) is None  # what is old says nothing of now


def test_a_library_that_breaks_ends_the_readings_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drivers.install(monkeypatch, tmp_path, [gpu(0)])

    def hear(reading: Reading) -> None:
        raise RuntimeError("broken")

    one = Telemetry("cuda", 0, {}, hear=hear)
    one.start()
    until(lambda: one.reason == "RuntimeError: broken")
    one.stop()


def test_a_line_says_what_was_read_and_null_where_nothing_was() -> None:
    line: Callable[..., Any] = functools.partial(
        step_line, 1, 0, {}, None, 4, wall_s=1.0, waited_s=0.0, tokens_seen=None
    )
    assert line()["gpu_util_pct"] is None
    assert line(gpu_util_pct=61.0)["gpu_util_pct"] == 61.0


def on_the_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run on the CPU read the device as one on an accelerator would."""
    monkeypatch.setattr(telemetry, "leased_name", lambda name, environ: "cuda:0")
    monkeypatch.setattr(beating, "RunTelemetry", functools.partial(RunTelemetry, every_s=0.01))


def test_an_impossible_reading_is_null_in_the_line_and_counted_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state = drivers.install(monkeypatch, tmp_path, [gpu(0, busy=40)])
    on_the_fake(monkeypatch)
    write_table(tmp_path / "train.parquet", 64, seed=1)
    spec = {
        "config_version": 1,
        "dataset": {"parquet_paths": [tmp_path / "train.parquet"], "batch_size": 8},
        "seed": 1,
        "device": "cpu",
        "precision": "none",
        "ddp": False,
        "epochs": 1,
        "threads": 1,
    }

    def reads(run: trn.Run, wanted: float) -> bool:
        assert run._steps is not None
        newest = run._steps._parts.pulse.gpu
        return newest is not None and newest[0] == wanted

    def body(run: trn.Run) -> None:
        for _ in run.feed:
            if run.step == 5:
                drivers.write(state, [gpu(0, busy=250)])
            until(functools.partial(reads, run, 40.0 if run.step < 5 else 250.0))
            run.log(train_loss=1.0)

    open_and(spec, tmp_path, body)
    lines = list(read_lines(tmp_path / "run/reports/train_metrics.jsonl"))
    assert [one["gpu_util_pct"] for one in lines] == [40.0] * 4 + [None] * 4
    (gate,) = events(tmp_path / "run", "gate")
    assert (gate["gate"], gate["fields"], gate["step"]) == ("telemetry", ["gpu_util_pct"], 5)


RUN = """
import sys
from trn.runner import telemetry
telemetry.leased_name = lambda name, environ: "cuda:0"
from trn.runner.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_run_writes_the_newest_reading_into_each_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drivers.install(monkeypatch, tmp_path, [gpu(0, busy=37)])
    spec = write_job(tmp_path / "job", max_steps=30)
    argv = command(spec, tmp_path, "run")
    done = subprocess.run([sys.executable, "-c", RUN, *argv], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = [one["gpu_util_pct"] for one in read_lines(tmp_path / "run/reports/train_metrics.jsonl")]
    assert found == [37.0] * 30
