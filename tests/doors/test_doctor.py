"""`trn doctor`: what it says of a healthy machine, of a broken one, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.stand_in import publish
from trn import files
from trn.doors.cli import main
from trn.doors.installation import Library, libraries, torch_facts
from trn.doors.storage import try_storage

Capture = pytest.CaptureFixture[str]

_FACTS = json.dumps(
    {
        "version": "9.9",
        "threads": 1,
        "cpu_capability": "X",
        "cuda": True,
        "built_for": "12",
        "devices": ["GPU \x1b[2J"],
        "mps": False,
    }
)


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    files.set_fault(None)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that child processes import from first: its torch answers at once."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    _stand_in(folder, "torch", f"import os; print({_FACTS!r}, flush=True); os._exit(0)")
    return folder


def _stand_in(folder: Path, name: str, code: str) -> None:
    (folder / f"{name}.py").write_text(f"{code}\n")


@pytest.fixture
def runs_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "above" / "runs"
    monkeypatch.setenv("TRN_RUNS_DIR", str(folder))
    folder.mkdir(parents=True)
    return folder


def examined(capsys: Capture, status: int, *arguments: str) -> Any:
    capsys.readouterr()
    assert main(["doctor", "--json", *arguments]) == status
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


def test_a_healthy_machine_is_usable_and_nothing_is_left(modules: Path, runs_dir: Path, capsys: Capture) -> None:
    publish(runs_dir / "demo", "job-1").release()
    before = sorted(path for path in runs_dir.rglob("*"))
    document = examined(capsys, 0)
    assert [problem for problem in document["problems"] if problem["blocks"]] == []
    trials = document["storage"]["trials"]
    assert list(trials) == ["write", "fsync", "flock", "hard_links", "rename_folder", "sqlite"]
    assert all(trial == {"works": True, "reason": None} for trial in trials.values())
    assert document["storage"]["runs_dir"] == document["storage"]["tried_in"] == str(runs_dir)
    assert document["storage"]["free_bytes"] > 0
    assert document["job_store"] == {"path": str(runs_dir / ".trn/jobs.db"), "exists": False, "jobs": 0, "runs": 1}
    assert document["torch"]["devices"] == ["GPU \x1b[2J"]
    assert {"lm"} <= {trainer["name"] for trainer in document["trainers"]}
    assert document["libraries"]["torch"]
    assert sorted(path for path in runs_dir.rglob("*")) == before


def test_the_block_for_people_says_the_same_and_cannot_reach_the_terminal(
    modules: Path, runs_dir: Path, capsys: Capture
) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "storage     write yes, fsync yes, flock yes, hard_links yes, rename_folder yes, sqlite yes" in said
    assert "torch       9.9, built for 12, 1 threads, X, GPU" in said
    assert "problems" in said


def test_a_folder_of_runs_that_is_not_there_is_not_made(modules: Path, runs_dir: Path, capsys: Capture) -> None:
    wanted = runs_dir / "deeper" / "still"
    document = examined(capsys, 0, "--runs-dir", str(wanted))
    assert document["storage"]["tried_in"] == str(runs_dir)
    assert os.listdir(runs_dir) == []


def test_a_file_in_the_way_of_the_runs_is_told(modules: Path, runs_dir: Path, capsys: Capture) -> None:
    (runs_dir / "file").write_text("mine")
    (problem, *_) = examined(capsys, 74, "--runs-dir", str(runs_dir / "file" / "runs"))["problems"]
    assert problem["what"] == f"{runs_dir / 'file'} is in the way, and no folder"
    assert problem["blocks"] == "io_error"


@pytest.mark.parametrize(
    ("fault", "trial", "status"),
    [
        ("op=fsync,n=1,do=eio", "fsync", 74),
        ("op=mkdir,n=1,do=enospc", "write", 74),
        ("op=open,n=1,do=eio", "write", 74),
        ("op=link,n=1,do=eio", "hard_links", 0),
        ("op=rename,n=1,do=eio,path=published", "rename_folder", 74),
        ("op=open,n=1,do=eio,path=flock", "flock", 74),
        ("op=write,n=1,do=enospc,path=sqlite", "sqlite", 74),
    ],
)
def test_what_the_storage_does_not_do_is_found(
    modules: Path, runs_dir: Path, capsys: Capture, fault: str, trial: str, status: int
) -> None:
    files.set_fault(fault)
    document = examined(capsys, status)
    found = document["storage"]["trials"]
    assert [name for name, one in found.items() if one["works"] is False] == [trial]
    if trial == "write":
        assert all(one["works"] is None for name, one in found.items() if name != "write")
    assert [problem["remedy"] for problem in document["problems"] if trial in problem["what"]] != []
    assert os.listdir(runs_dir) == []


def test_a_damaged_store_is_told_with_its_remedy(modules: Path, runs_dir: Path, capsys: Capture) -> None:
    (runs_dir / ".trn").mkdir()
    (runs_dir / ".trn" / "jobs.db").write_bytes(b"damaged" * 1000)
    document = examined(capsys, 74)
    assert document["job_store"]["jobs"] is None
    (problem,) = [one for one in document["problems"] if one["blocks"] == "io_error"]
    assert "the job store is damaged" in problem["what"]
    assert problem["remedy"].startswith("Move jobs.db")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ImportError('libcudart.so is not there')", "ImportError: libcudart.so is not there"),
        ("import os; os._exit(3)", "it exited with 3"),
        ("import os; os.kill(os.getpid(), 11)", "it exited with -11"),
        ("print('good morning'); raise SystemExit(0)", "it said 'good morning'"),
    ],
)
def test_a_torch_that_cannot_be_used_is_null_with_its_reason(
    modules: Path, runs_dir: Path, capsys: Capture, code: str, reason: str
) -> None:
    _stand_in(modules, "torch", code)
    document = examined(capsys, 78)
    assert (document["torch"], document["torch_reason"]) == (None, reason)
    assert any(reason in problem["what"] for problem in document["problems"])


def test_a_torch_that_hangs_is_given_up(modules: Path) -> None:
    _stand_in(modules, "torch", "import signal; signal.pause()")
    assert torch_facts(timeout_s=0.5) == (None, "importing torch took more than 0.5 s")


def test_a_broken_installation_can_still_be_looked_at(modules: Path, runs_dir: Path) -> None:
    for name in ("pydantic", "psutil", "ruamel", "rich", "numpy"):
        _stand_in(modules, name, f"raise ImportError('{name} is broken')")
    command = [sys.executable, "-m", "trn.doors.cli", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 78, done.stderr
    document = json.loads(done.stdout)
    assert document["environment"] is None
    assert document["memory"] is None
    assert any("is broken" in problem["what"] for problem in document["problems"])


@pytest.mark.parametrize(
    ("found", "least", "problem"),
    [
        (None, "2.10", "torch is not installed"),
        ("2.9.1+cu121", "2.10", "torch is 2.9.1+cu121, expected 2.10 or newer"),
        ("2.10.0", "2.10", None),
        ("10.0", "2.10", None),
        ("2.9", None, None),
    ],
)
def test_a_library_fits_or_does_not(found: str | None, least: str | None, problem: str | None) -> None:
    assert Library("torch", found, least, None).problem == problem


def test_the_libraries_are_those_that_the_package_asks_for() -> None:
    known = {library.name: library for library in libraries()}
    assert {"torch", "pyarrow", "pydantic", "click", "psutil"} <= set(known)
    assert known["torch"].at_least is not None
    assert known["tokenizers"].extra == "lm"
    assert known.keys().isdisjoint({"pytest", "pytorch-lightning"})


def test_no_secret_of_the_environment_is_told(
    modules: Path, runs_dir: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {
        "HF_TOKEN": "hf_q7Vw3kZtXyB9mN2pL5",
        "SLURM_JWT": "j4Kd8sWq2Zx7Vb1N",
        "TRN_API_KEY": "p0Qm6yRt3Hc9Lz5X",
        "MASTER_ADDR": "https://user:g5Tn2vKw8Jd4@host",
        "TRN_NOTE": "use j4Kd8sWq2Zx7Vb1N here",
        "AWS_REGION": "not-listed",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert main(["doctor"]) == 0
    assert main(["doctor", "--json"]) == 0
    said = capsys.readouterr().out
    assert "OMP_NUM_THREADS" in said
    for secret in ("q7Vw3kZtXyB9", "j4Kd8sWq2Zx7", "p0Qm6yRt3Hc9", "g5Tn2vKw8Jd4", "not-listed"):
        assert secret not in said


def test_a_failpoint_that_was_forgotten_is_told(
    modules: Path, runs_dir: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRN_FAULT", "op=fsync,n=7,do=kill")
    assert any("TRN_FAULT is set" in problem["what"] for problem in examined(capsys, 0)["problems"])


def test_trials_do_not_disturb_each_other(tmp_path: Path) -> None:
    assert all(trial.works for _ in range(3) for trial in try_storage(tmp_path))
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_real_torch_answers(runs_dir: Path, capsys: Capture) -> None:
    import torch

    document = examined(capsys, 0)
    assert document["torch"]["version"] == torch.__version__
    assert document["torch"]["cuda"] is torch.cuda.is_available()
    assert document["torch_reason"] is None
