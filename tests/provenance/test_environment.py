"""Only listed variables are recorded, and the platform is really there."""

from __future__ import annotations

import json
import platform

from trn.provenance.environment import allowed_variables, launcher, runtime_env, upstream
from trn.provenance.machine import Accelerator, Device, TorchFacts, hardware, runtime
from trn.provenance.redact import MASK, Redactor, redact


def test_only_listed_variables_are_recorded_and_blank_ones_are_not() -> None:
    environ = {
        "CUDA_VISIBLE_DEVICES": "0,1",
        "OMP_NUM_THREADS": "4",
        "PYTHONHASHSEED": "0",
        "WORLD_SIZE": "2",
        "TRN_RUNS_DIR": "/runs",
        "SLURM_JOB_ID": "7",
        "SLURM_NODELIST": "n[1-2]",
        "CONDA_PREFIX": "  ",
        "NCCL_DEBUG": "",
        "HOME": "/home/someone",
        "EDITOR": "vi",
        "AWS_REGION": "eu",
        "XTRN_OTHER": "1",
    }
    assert allowed_variables(environ, redact) == {
        "CUDA_VISIBLE_DEVICES": "0,1",
        "OMP_NUM_THREADS": "4",
        "PYTHONHASHSEED": "0",
        "SLURM_JOB_ID": "7",
        "SLURM_NODELIST": "n[1-2]",
        "TRN_RUNS_DIR": "/runs",
        "WORLD_SIZE": "2",
    }


def test_a_listed_prefix_lets_no_secret_through() -> None:
    environ = {
        "SLURM_JWT": "a.b.c",
        "TRN_API_TOKEN": "abc",
        "TRN_SIGNING_KEY": "abc",
        "TRAINER_CAPABILITY_TOKEN": "abc",
        "TRN_TOKEN_FILE": "/run/t",
        "TRN_REDIS_URL": "redis://:pw@host/0",
        "TRN_NOTE": "as known as long-secret-1",
    }
    redactor = Redactor.knowing({"OTHER_SECRET": "long-secret-1"})
    assert allowed_variables(environ, redactor) == {
        "TRN_NOTE": f"as known as {MASK}",
        "TRN_REDIS_URL": f"redis://:{MASK}@host/0",
        "TRN_TOKEN_FILE": "/run/t",
    }


def test_an_endless_value_is_cut() -> None:
    assert len(allowed_variables({"TRN_NOTE": "x" * 10_000}, redact)["TRN_NOTE"]) == 4096


def test_platform_and_libraries_are_really_there() -> None:
    seen = runtime_env({}, redact, libraries=("pydantic", "no-such-library"))
    assert seen["platform"]["system"] == platform.system()
    assert seen["platform"]["python_version"] == platform.python_version()
    assert seen["platform"]["cpu_count"] >= seen["platform"]["cpu_usable"] >= 1
    assert "version" in seen["upstream"]["torch"]
    assert seen["upstream"]["no-such-library"] == {"error": "not installed"}
    assert list(upstream(("torch",))).count("torch") == 1
    assert (seen["schema_version"], seen["env"]) == (1, {})
    json.dumps(seen, allow_nan=False)


def test_the_place_among_other_processes_is_told() -> None:
    alone = launcher({})
    assert alone["kind"] == "local"
    assert {value for key, value in alone.items() if key != "kind"} == {None}
    torchrun = {
        "TORCHELASTIC_RUN_ID": "r",
        "WORLD_SIZE": "4",
        "RANK": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_WORLD_SIZE": "2",
        "GROUP_RANK": "1",
        "TORCHELASTIC_RESTART_COUNT": "3",
        "MASTER_ADDR": "n1",
        "MASTER_PORT": "29500",
        "SLURM_JOB_ID": "7",
    }
    assert launcher(torchrun) == {
        "kind": "torchrun",
        "world_size": 4,
        "rank": 2,
        "local_rank": 0,
        "local_world_size": 2,
        "nodes": 2,
        "node_rank": 1,
        "restart_count": 3,
        "master_addr": "n1",
        "master_port": 29500,
        "slurm_job_id": "7",
    }
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "x", "SLURM_NNODES": "²"}
    shown = launcher(slurm)
    assert (shown["kind"], shown["world_size"], shown["rank"]) == ("slurm", 2, 1)
    assert (shown["local_rank"], shown["nodes"]) == (None, None)
    assert launcher({"WORLD_SIZE": "9" * 5000})["world_size"] is None


def test_hardware_is_what_the_machine_has_and_what_it_was_told() -> None:
    told = hardware(Accelerator(kind="cuda", version="13.0", devices=(Device(1, "A100", 80, "8.0"),)))
    assert told["host"]["memory_bytes"] > 1 << 20
    assert told["host"]["hostname"]
    assert told["accelerator"] == {
        "available": True,
        "kind": "cuda",
        "version": "13.0",
        "driver_version": None,
        "devices": [{"index": 1, "name": "A100", "memory_bytes": 80, "capability": "8.0"}],
        "reason": None,
    }
    assert hardware(Accelerator(reason="no driver"))["accelerator"]["available"] is False


def test_the_runtime_names_the_interpreter_without_its_folder() -> None:
    told = runtime(TorchFacts(version="2.13.0", threads=2, deterministic="warn", flags={"allow_tf32": False}))
    assert "/" not in told["python_executable"]
    assert (told["torch_version"], told["threads"], told["deterministic"]) == ("2.13.0", 2, "warn")
    assert told["versions"]["python"] == told["python_version"] == platform.python_version()
