"""The options by which a job is given its devices, what they mean with a spec, and the verb that shows who has them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from support import drivers
from support.compare import outcome
from support.drivers import gpu
from support.job import write_job
from trn.devices import Want, lease
from trn.doors.cli import main
from trn.doors.device_options import AskedDevices, choose, want_of
from trn.doors.processes import Processes
from trn.errors import UsageError
from trn.jobs import job_log, open_store
from trn.jobs.log import job_log_lines
from trn.launch import Layout
from trn.plan.device import leased_name
from trn.ranks import World
from trn.records import read_json

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def leases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRN_LEASES_DIR", str(tmp_path / "leases"))


def asked(**given: Any) -> AskedDevices:
    nothing = {"devices": None, "device_count": None, "cpu_only": False, "cpus": None}
    return AskedDevices.of(nothing | given)


@pytest.mark.parametrize(
    "given",
    [
        {"devices": ""},
        {"devices": "cpu"},
        {"devices": "cuda"},
        {"devices": "cuda:0,mps"},
        {"devices": "cuda:01"},
        {"devices": "cuda:0,"},
        {"devices": "cuda:1,cuda:1"},
        {"devices": "cuda:0", "device_count": 2},
        {"devices": "cuda:0", "cpu_only": True},
        {"device_count": 1, "cpu_only": True},
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as refused:
        asked(**given)
    assert "\n" not in str(refused.value)


def processes(nproc: int = 1, world: World | None = None) -> Processes:
    return Processes(Layout(nproc), world or World())


@pytest.mark.parametrize(
    ("given", "spec", "nproc", "want"),
    [
        ({}, {"device": "cpu"}, None, Want()),
        ({"cpus": 2}, {"device": "cpu"}, None, Want(cpus=2)),
        ({}, {"device": "cuda"}, None, Want(count=1)),
        ({}, {"device": "cuda:1"}, None, Want(("cuda:1",))),
        ({}, {"device": "mps"}, None, Want()),
        ({"devices": "cuda:1"}, {"device": "cuda"}, None, Want(("cuda:1",))),
        ({"devices": "cuda:1"}, {"device": "cuda:1"}, None, Want(("cuda:1",))),
        ({"devices": "auto"}, {"device": "cuda"}, None, Want(count=1)),
        ({"devices": "auto", "device_count": 2}, {"device": "cuda", "ddp": True}, 2, Want(count=2)),
        ({"device_count": 2, "cpus": 3}, {"device": "cuda", "ddp": True}, 2, Want(count=2, cpus=3)),
        ({"devices": "cuda:1,cuda:0"}, {"device": "cuda", "ddp": True}, 2, Want(("cuda:1", "cuda:0"))),
        ({"device_count": 1}, {"device": "cuda", "ddp": True}, 1, Want(count=1)),
        ({"devices": "cuda:0"}, {"device": "cuda:1", "is_resume": True}, None, Want(("cuda:0",))),
        ({"cpu_only": True}, {"device": "cpu"}, None, Want()),
        ({}, {"device": "auto"}, None, Want(count=1)),
        ({"cpus": 2}, {"device": "auto"}, None, Want(count=1, cpus=2)),
        ({"devices": "cuda:1"}, {"device": "auto"}, None, Want(("cuda:1",))),
    ],
)
def test_options_and_spec_together_are_what_is_wanted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: dict[str, Any], spec: dict[str, Any], nproc: int, want: Want
) -> None:
    drivers.install(monkeypatch, tmp_path, [gpu(0), gpu(1)])
    choice = choose(asked(**given), **{"ddp": False, "nproc": None, **spec})
    assert choice.nproc == nproc
    assert want_of(choice, processes(nproc or 1), os.environ) == want


@pytest.mark.parametrize(
    ("given", "spec", "said"),
    [
        ({"devices": "cuda:0"}, {"device": "cpu"}, "at --devices: it asks for cuda, and the spec says `device: cpu`."),
        ({"devices": "mps"}, {"device": "cuda"}, "it asks for mps"),
        ({"devices": "cuda:0"}, {"device": "cuda:1"}, "which is that one and no other"),
        ({"device_count": 1}, {"device": "cuda:1"}, "at --device-count: the spec says `device: cuda:1`"),
        (
            {"device_count": 2},
            {"device": "cuda"},
            "2 devices are for as many processes, and the spec says `ddp: false`",
        ),
        ({"device_count": 2}, {"device": "cuda", "ddp": True, "nproc": 3}, "3 processes and 2 devices"),
        ({"cpu_only": True}, {"device": "cuda"}, "at --cpu-only: the run is on 'cuda', and stays there."),
    ],
)
def test_where_a_spec_says_otherwise_the_job_is_refused(given: dict[str, Any], spec: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        choose(asked(**given), **{"ddp": False, "nproc": None, **spec})
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_device_that_is_left_to_the_machine_is_the_cpu_where_it_has_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drivers.install(monkeypatch, tmp_path, None)
    choice = choose(asked(cpus=1), device="auto", ddp=False, nproc=None)
    assert choice.flags == ()
    assert want_of(choice, processes(), os.environ) == Want(cpus=1)


def test_where_the_spec_is_silent_the_options_fill_it_in() -> None:
    assert asked(device_count=2).defaults == {"device": "cuda", "ddp": True}
    assert asked(devices="auto").defaults == {"device": "cuda"}
    assert asked(cpus=1).defaults == {}
    assert asked(devices="auto", device_count=2, cpus=3).arguments == [
        *("--devices", "auto", "--device-count", "2", "--cpus", "3")
    ]


def test_ranks_that_a_launcher_started_lease_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drivers.install(monkeypatch, tmp_path, [gpu(0), gpu(1)])
    second = processes(world=World(1, 1, 2, 2))
    implied = choose(asked(), device="cuda", ddp=True, nproc=None)
    assert want_of(implied, second, os.environ) == Want()
    with pytest.raises(UsageError, match="shares out the devices"):
        want_of(choose(asked(device_count=1), device="cuda", ddp=True, nproc=None), second, os.environ)


def test_without_a_driver_a_spec_s_device_is_for_torch_to_refuse(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drivers.install(monkeypatch, tmp_path, None)
    implied = choose(asked(), device="cuda:0", ddp=False, nproc=None)
    assert want_of(implied, processes(), os.environ) == Want()


@pytest.mark.parametrize(
    ("name", "leased", "expected"),
    [
        ("cuda:1", "", "cuda:1"),
        ("cuda:1", "cuda:1", "cuda:0"),
        ("cuda:1", "cuda:3,cuda:1,cpu:0", "cuda:1"),
        ("cuda:1", "cuda:0", "cuda:0"),
        ("cuda", "cuda:3", "cuda"),
        ("cpu", "cpu:0", "cpu"),
    ],
)
def test_a_spec_counts_as_its_author_does_and_a_child_sees_what_was_leased(
    name: str, leased: str, expected: str
) -> None:
    assert leased_name(name, {"TRN_LEASE_DEVICES": leased}) == expected


# the doors


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRN_RUNS_DIR", str(tmp_path / "runs"))
    return write_job(tmp_path / "job", max_steps=20)


def test_unknown_and_busy_devices_are_refused_before_anything_starts(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    drivers.install(monkeypatch, tmp_path, [gpu(0)])
    run = ["run", "--config", str(job), "--device", "cuda"]
    with lease(Want(("cuda:0",)), note="job=j-9 run=other", environ=os.environ):
        for options, said in (
            (["--devices", "cuda:5"], "there is no cuda:5; what is here: cuda:0 (Test GPU)"),
            (["--devices", "cuda:0"], "cuda:0 is held by job j-9 of run other"),
            (["--devices", "auto"], "cuda:0 is held by job j-9 of run other"),
            ([], "cuda:0 is held by job j-9 of run other"),
        ):
            assert main([*run, *options]) == 90
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith("device error [no_device] at devices:")
            assert said in line
    with open_store(tmp_path / "runs") as store:
        rows = store.list()
    assert [(row.state, row.exit_code, row.devices) for row in rows] == [("rejected", 90, None)] * 4
    assert "there is no cuda:5" in str(rows[-1].reason)
    told = [json.loads(line) for line in job_log_lines(job_log(tmp_path / "runs", rows[0])).read_text().splitlines()]
    assert [line["event"] for line in told] == ["job_submitted", "job_rejected"]
    assert not any((tmp_path / "runs" / row.run_id).exists() for row in rows)


def test_devices_shows_what_there_is_and_who_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    drivers.install(monkeypatch, tmp_path, [gpu(0), gpu(1, name="Bad\x1b[2J", busy=None)])
    core = min(os.sched_getaffinity(0))
    with lease(Want(("cuda:1",), cpus=1), note="job=j-9 run=other", environ=os.environ):
        assert main(["devices"]) == 0
        out, err = capsys.readouterr()
        assert main(["devices", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
    head, first, second, cores, held = out.splitlines()
    assert head.split() == ["DEVICE", "NAME", "MEMORY", "FREE", "BUSY", "POWER", "HELD", "BY"]
    assert first.split() == [*("cuda:0", "Test", "GPU", "79.0", "GB", "of", "80.0", "GB", "3%", "62", "W", "nobody")]
    assert "job j-9 of run other (pid" in second
    assert "\x1b" not in out
    assert cores.endswith("1 of them")
    assert held.startswith(f"cpu:{core}")
    assert "not known: NVML: Not Supported" in err
    assert "no rocm" in err
    holders = {one["id"]: one["holder"] for one in told["devices"]}
    assert holders["cuda:0"] is None
    assert (holders["cuda:1"]["job_id"], holders["cuda:1"]["pid"]) == ("j-9", os.getpid())
    assert holders[f"cpu:{core}"]["run_id"] == "other"
    bad = told["devices"][1]
    assert (bad["utilisation_pct"], bad["reasons"]) == (None, {"utilisation_pct": "NVML: Not Supported"})


def test_devices_of_a_machine_that_never_leased_leaves_it_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    drivers.install(monkeypatch, tmp_path, None)
    assert main(["devices"]) == 0
    assert not (tmp_path / "leases").exists()
    assert "no cuda: no driver of NVIDIA is loaded" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_holds_the_cores_it_asked_for_and_computes_on_these(job: Path, tmp_path: Path, capsys: Capture) -> None:
    core = min(os.sched_getaffinity(0))
    # the run itself says, from its trainer, where it runs and who holds the core
    trainer = job.parent / "noisy.py"
    trainer.write_text(
        trainer.read_text().replace(
            "    def build(self, ctx):\n",
            "    def build(self, ctx):\n"
            "        import json, os\n"
            "        from trn.devices import holders\n"
            "        held = {key: [one.job_id, one.pid] for key, one in holders(os.environ).items()}\n"
            "        told = [sorted(os.sched_getaffinity(0)), held, os.getpid()]\n"
            "        open(os.environ['SEEN'], 'w').write(json.dumps(told))\n",
            1,
        )
    )
    os.environ["SEEN"] = str(tmp_path / "seen.json")
    spec = job.read_text()
    job.write_text("\n".join(line for line in spec.splitlines() if not line.startswith("threads:")) + "\n")
    try:
        assert main(["run", "--config", str(job), "--run-id", "r", "--cpus", "1"]) == 0, capsys.readouterr().err
    finally:
        del os.environ["SEEN"]
    run_dir = tmp_path / "runs" / "r"
    assert read_json(run_dir / "reports/resolved_config.json")["threads"] == 1
    with open_store(tmp_path / "runs") as store:
        (row,) = store.list()
    assert row.devices == f'["cpu:{core}"]'
    cores, held, pid = json.loads((tmp_path / "seen.json").read_text())
    assert cores == [core]
    assert held == {f"cpu-{core}": [row.job_id, pid]}
    assert outcome(run_dir)["status"] == "completed"
    lease(Want(cpus=1), note="job=x run=y", environ=os.environ).release()
