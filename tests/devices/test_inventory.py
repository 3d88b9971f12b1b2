"""What is there: by each way to ask, as the environment leaves it, with what nobody tells as null and a reason."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from support import drivers
from support.drivers import gpu
from trn.devices import Device, accelerators, count_accelerators, inventory
from trn.devices.nvidia import open_nvidia, proc_devices


def ids(found: tuple[Device, ...]) -> list[tuple[str, str | None]]:
    return [(one.id, one.uuid) for one in found]


def seen(environ: dict[str, str]) -> list[str]:
    """The beginnings of the UUIDs, in the order in which they are numbered."""
    return [(one.uuid or "")[:8] for one in accelerators(environ, with_use=False).devices]


def test_nvml_tells_names_memory_use_and_power(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drivers.install(monkeypatch, tmp_path, [gpu(0), gpu(1, busy=None, milliwatts=None, free=1_000)])
    first, second = accelerators(os.environ).devices
    assert (first.id, first.kind, first.name, first.uuid) == ("cuda:0", "cuda", "Test GPU", "GPU-00aa-0000-1111")
    assert (first.memory_total_bytes, first.memory_free_bytes) == (80_000_000_000, 79_000_000_000)
    assert (first.utilisation_pct, first.power_w, first.reasons) == (3.0, 61.5, {})
    assert (first.key, second.key) == ("cuda-0000-01-00.0", "cuda-0000-02-00.0")
    assert (second.memory_free_bytes, second.utilisation_pct, second.power_w) == (1_000, None, None)
    assert second.reasons == dict.fromkeys(("utilisation_pct", "power_w"), "NVML: Not Supported")


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (None, ["GPU-00aa", "GPU-11aa", "GPU-22aa"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("2,0", ["GPU-22aa", "GPU-00aa"]),
        (" 1 , 2", ["GPU-11aa", "GPU-22aa"]),
        ("0,7,1", ["GPU-00aa"]),
        ("1,1,2", ["GPU-11aa"]),
        ("GPU-2,gpu-1", ["GPU-22aa"]),
        ("GPU-22AA-0000-1111,GPU-1", ["GPU-22aa", "GPU-11aa"]),
        ("GPU-,0", []),
        ("GPU-9", []),
    ],
)
def test_the_universe_is_what_cuda_would_see(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chosen: str | None, expected: list[str]
) -> None:
    drivers.install(monkeypatch, tmp_path, [gpu(number) for number in range(3)])
    environ = {} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen}
    assert seen(environ) == expected
    assert count_accelerators(environ) == len(expected)
    assert [one.id for one in accelerators(environ, with_use=False).devices] == [
        f"cuda:{number}" for number in range(len(expected))
    ]


def test_of_a_partitioned_device_there_are_its_instances(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parts = [{"name": "1g", "uuid": f"MIG-{name}", "total": 10, "free": free} for name, free in (("aa", 4), ("bb", 5))]
    drivers.install(monkeypatch, tmp_path, [gpu(0, instances=parts), gpu(1)])
    first, second, third = accelerators({}).devices
    assert ids((first, second, third)) == [("cuda:0", "MIG-aa"), ("cuda:1", "MIG-bb"), ("cuda:2", "GPU-11aa-0000-1111")]
    assert (second.key, second.memory_free_bytes, second.utilisation_pct) == ("cuda-MIG-bb", 5, None)
    assert second.reasons["utilisation_pct"] == "NVML: Not Supported"
    assert seen({"CUDA_VISIBLE_DEVICES": "MIG-b,1"}) == ["MIG-bb", "GPU-11aa"]
    assert seen({"CUDA_VISIBLE_DEVICES": "0,GPU-11"}) == ["MIG-aa", "GPU-11aa"]


def test_without_the_module_nvidia_smi_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drivers.install(monkeypatch, tmp_path, None, pynvml=drivers.ABSENT)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU-ab, Test GPU, 00000000:0A:00.0, 16, 4, [N/A], 12.5'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (device,) = accelerators({}).devices
    assert (device.id, device.uuid, device.key) == ("cuda:0", "GPU-ab", "cuda-0000-0a-00.0")
    assert (device.memory_total_bytes, device.memory_free_bytes, device.power_w) == (16 << 20, 4 << 20, 12.5)
    assert device.utilisation_pct is None
    assert "nvidia-ml-py is not installed" in device.reasons["utilisation_pct"]


def test_without_any_program_the_driver_s_own_list_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drivers.install(monkeypatch, tmp_path, None, pynvml=drivers.ABSENT)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, uuid in (("0000:0b:00.0", "GPU-bb"), ("0000:0a:00.0", "GPU-????")):
        (tmp_path / "gpus" / name).mkdir(parents=True)
        (tmp_path / "gpus" / name / "information").write_text(f"Model: \t Test GPU\nGPU UUID: \t {uuid}\n")
    first, second = proc_devices(tmp_path / "gpus")
    assert [(one.name, one.uuid, one.address) for one in (first, second)] == [
        ("Test GPU", None, "0000:0a:00.0"),
        ("Test GPU", "GPU-bb", "0000:0b:00.0"),
    ]
    assert proc_devices(tmp_path / "none") == []
    driver = open_nvidia(tmp_path / "gpus")
    assert len(driver.devices()) == 2
    assert "trn-runtime[cuda]" in driver.use(first).reasons["memory_free_bytes"]


def test_amd_s_devices_are_told_by_its_own_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = [gpu(0, uuid="ab-0", bus="0000:C1:00.0"), gpu(1, uuid="cd-1", busy="N/A", free=None)]
    drivers.install(monkeypatch, tmp_path, found, pynvml=drivers.ABSENT, amdsmi=drivers.AMD)
    monkeypatch.setenv("PATH", str(tmp_path))
    first, second = accelerators({}).devices
    assert (first.id, first.kind, first.uuid, first.key) == ("cuda:0", "rocm", "ab-0", "cuda-0000-c1-00.0")
    assert (first.memory_free_bytes, first.utilisation_pct, first.power_w) == (79_000_000_000, 3.0, 61.5)
    assert (second.memory_free_bytes, second.utilisation_pct) == (None, None)
    assert second.reasons == {
        "memory_free_bytes": "amdsmi: Error code: 2 | not supported",
        "utilisation_pct": "amdsmi: N/A",
    }
    hidden: dict[str, Any] = {"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}
    (only,) = accelerators(hidden).devices
    assert (only.id, only.uuid, only.shown_as) == ("cuda:0", "cd-1", "0")


def test_where_nothing_is_the_reasons_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drivers.install(monkeypatch, tmp_path, None)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = accelerators({})
    assert found.devices == ()
    assert found.reasons["cuda"] == "no driver of NVIDIA is loaded"
    assert set(found.reasons) == {"cuda", "rocm", "mps"}
    state = Path(os.environ[drivers.VARIABLE])
    state.write_text("[]")
    assert accelerators({}).reasons["cuda"] == "the driver shows none"
    drivers.write(state, [gpu(0)])
    assert "hides them all" in accelerators({"CUDA_VISIBLE_DEVICES": ""}).reasons["cuda"]


def test_the_cores_are_those_that_this_process_may_run_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drivers.install(monkeypatch, tmp_path, None)
    cores = inventory(os.environ).of("cpu")
    assert [one.id for one in cores] == [f"cpu:{core}" for core in sorted(os.sched_getaffinity(0))]
    for one in cores:
        assert one.utilisation_pct is None or 0.0 <= one.utilisation_pct <= 100.0
        told = one.to_json()
        assert all(key in told["reasons"] for key, value in told.items() if value is None)
