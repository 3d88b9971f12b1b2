"""`python -m trn.export`: a run's folder alone becomes files that verify knows, or stays as it was."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from support.reopening import contents
from trn.errors import TrainerError
from trn.export.__main__ import main
from trn.export.publish import staging
from trn.files import set_fault
from trn.records import read_json
from trn.verify import verify_run

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.slow

JOURNAL = ("reports/events.jsonl", "reports/outcome.json", "reports/train_metrics.jsonl")


def problems(run_dir: Path) -> list[str]:
    return [f"{one.what}: {one.problem}" for one in verify_run(run_dir) if one.problem is not None]


def export(run_dir: Path, *more: str) -> int:
    return main([str(run_dir), *more])


def test_a_copied_run_is_exported_proved_and_verified(
    trained: Path, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the data nor the folder of the spec are there any more; the average is what is exported."""
    code = Path(shutil.copytree(trained / "job", tmp_path / "code"))
    for path in code.glob("*.parquet"):
        path.unlink()
    before = {name: contents(run_dir)[name] for name in JOURNAL}
    assert export(run_dir, "--code", str(code), "--json", "--format", "onnx", "--format", "safetensors") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], [one["format"] for one in told["exports"]]) == (True, ["onnx", "safetensors"])

    sidecar, report = (
        read_json(run_dir / "exports/model.onnx.meta.json"),
        read_json(run_dir / "reports/onnx_parity.json"),
    )
    meta = read_json(run_dir / "checkpoints/best.meta.json")
    assert sidecar["weights"] == report["weights"] == "average"
    assert sidecar["checkpoint"]["sha256"] == report["checkpoint"]["sha256"] == meta["sha256"]
    assert sidecar["onnx"]["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["batch", 8]}]
    assert sidecar["onnx"]["opset"] == 18
    assert sidecar["parity"].items() >= {"status": "passed", "policy": "fail", "reason": None}.items()
    assert sidecar["environment"]["run_metadata"]["run_name"] == "run"
    assert "torch" in sidecar["environment"]["runtime_env"]["upstream"]
    assert set(sidecar["versions"]) == {"python", "trn", "torch", "onnx", "onnxscript", "onnxruntime"}
    assert (report["status"], report["passed"], report["available"], report["reason"]) == ("passed", True, True, None)
    assert report["initialisers"]["compared"] == report["initialisers"]["equal"] == 8
    assert report["initialisers"]["not_in_checkpoint"] == []
    assert {"max", "mean", "p50", "p90", "p95", "p99", "relative"} <= set(report["outputs"]["y"])
    assert {"max", "mean", "p50", "p90", "p95", "p99", "relative"} <= set(report["overall"])

    from safetensors.torch import load_file

    payload = torch.load(run_dir / "checkpoints" / meta["file"], weights_only=True)["trainer"]
    average = payload["ema"]
    loaded = load_file(run_dir / "exports/model.safetensors")
    assert {name for name in average if not torch.equal(average[name], loaded[name])} == set()

    assert problems(run_dir) == []
    assert {name: contents(run_dir)[name] for name in JOURNAL} == before
    assert [path.name for path in (run_dir / "exports").iterdir() if path.name.startswith(".")] == [".lock"]


def test_a_swapped_file_is_found(trained: Path, run_dir: Path) -> None:
    assert export(run_dir) == 0
    assert problems(run_dir) == []
    shutil.copy(run_dir / "reports/events.jsonl", run_dir / "exports/model.onnx")
    (problem,) = problems(run_dir)
    assert "exports/model.onnx" in problem
    assert "changed or swapped" in problem


def test_what_does_not_pass_is_kept_aside_and_the_export_before_stays(
    trained: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(run_dir) == 0
    good = contents(run_dir / "exports")
    assert export(run_dir, "--atol", "0") == 85
    assert "kept aside in exports/rejected: y: off by" in capsys.readouterr().err
    after = contents(run_dir / "exports")
    assert {name: after[name] for name in good if name != ".lock"} == {
        name: good[name] for name in good if name != ".lock"
    }
    report = read_json(run_dir / "reports/onnx_parity.json")
    assert (report["status"], report["passed"], report["onnx"]) == ("failed", False, "exports/rejected/model.onnx")
    assert problems(run_dir) == []

    assert export(run_dir, "--atol", "0", "--parity-policy", "warn") == 0
    assert "published all the same" in capsys.readouterr().err
    assert not (run_dir / "exports/rejected").exists()
    assert read_json(run_dir / "exports/model.onnx.meta.json")["parity"]["status"] == "failed"
    assert problems(run_dir) == []


def test_a_full_disk_leaves_the_export_before_as_it_was(
    trained: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(run_dir) == 0
    before = contents(run_dir)
    set_fault("op=mkdir,n=1,do=enospc,path=.export")
    try:
        assert export(run_dir) == 74
    finally:
        set_fault(None)
    assert contents(run_dir) | {"exports/.lock": ""} == before | {"exports/.lock": ""}
    with staging(run_dir / "exports", 0.1):
        assert export(run_dir) == 78
    assert "another export of this run is going on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "status", "told"),
    [
        (["--opset", "17"], 2, "opset 17 is not written; expected 18 or more"),
        (["--allow-change", "everything"], 2, "'everything' cannot be allowed; expected code"),
        (["--atol", "inf"], 2, "a tolerance of inf; expected a number of 0 or more"),
        (["--opset", "99"], 78, "opset 99 was asked for"),
        (["--format", "hf"], 70, "is no PreTrainedModel of the transformers library"),
        (["--checkpoint", "7"], 78, "7"),
    ],
)
def test_what_cannot_be_done_is_refused_and_leaves_nothing(
    trained: Path, run_dir: Path, capsys: pytest.CaptureFixture[str], more: list[str], status: int, told: str
) -> None:
    assert export(run_dir, *more) == status
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert [path.name for path in (run_dir / "exports").glob("*")] in ([], [".lock"])


def test_a_run_without_a_good_checkpoint_is_told_so(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (run_dir / "checkpoints").glob("*.pt"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    assert export(run_dir) == 91
    assert not (run_dir / "exports").exists()


def test_weights_that_are_not_the_checkpoints_do_not_pass(trained: Path, run_dir: Path) -> None:
    """The state of one checkpoint under the name of another."""
    from trn.checkpoint.meta import CheckpointMeta, listed_steps, meta_name
    from trn.export import export_checkpoint
    from trn.reopen import reopen

    run = reopen(run_dir, checkpoint="last")
    other = min(listed_steps(run_dir / "checkpoints"))
    assert other != run.meta.step
    meta = CheckpointMeta.read(run_dir / "checkpoints" / meta_name(other))
    plan: Any = run.plan.model_copy(update={"ema": None})
    (one,) = export_checkpoint(plan, run.trainer, run.state, run.ctx, meta)  # which reads the other one
    assert not one.is_published
    assert one.parity is not None
    assert "are not the weights in the checkpoint" in one.parity["reason"]
    with pytest.raises(TrainerError, match="are not the weights in the checkpoint"):
        export_checkpoint(plan, run.trainer, run.state, run.ctx, meta, formats=["safetensors"])


def test_a_checkpoint_that_is_taken_away_meanwhile_is_exported_all_the_same(trained: Path, run_dir: Path) -> None:
    """As a run that is training does when it has a better one."""
    from trn.export import export_checkpoint
    from trn.reopen import reopen

    run = reopen(run_dir, checkpoint="best")
    run.where.unlink()
    run.where.with_suffix(".meta.json").unlink()
    (one,) = export_checkpoint(run.plan, run.trainer, run.state, run.ctx, run.meta, payload=run.payload)
    assert one.is_published


def test_what_a_hook_prints_is_heard_and_not_in_the_document(
    trained: Path, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = Path(shutil.copytree(trained / "job", tmp_path / "code"))
    trainer = code / "noisy.py"
    trainer.write_text(
        trainer.read_text().replace("from trn import Export\n", "from trn import Export; print('here')\n")
    )
    code_of_it = ("--code", str(code), "--allow-change", "code")
    assert export(run_dir, *code_of_it, "--json") == 0
    heard = capsys.readouterr()
    assert json.loads(heard.out)["ok"]
    assert "here" in heard.err


def test_a_hook_that_raises_is_told_in_one_line(
    trained: Path, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = Path(shutil.copytree(trained / "job", tmp_path / "code"))
    trainer = code / "noisy.py"
    raising = "raise ValueError('no input\\n\\nof that name')\n"
    trainer.write_text(trainer.read_text().replace("from trn import Export\n", raising))
    assert export(run_dir, "--code", str(code), "--allow-change", "code") == 70
    assert capsys.readouterr().err == "trainer error [trainer_raised] at export: ValueError: no input.\n"


def test_the_command_is_a_module() -> None:
    assert "trn.export.__main__" in sys.modules
