"""First weights, groups and schedules of torch in real runs: what was asked for is what a run does, killed or not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support.compare import assert_identical, differences, events, final_payload, lines
from support.forkserver import ForkServer
from support.job import command, write_job
from trn.files import sha256_file

pytestmark = pytest.mark.slow


def test_a_run_begins_with_the_weights_of_another_and_does_not_need_them_again(
    server: ForkServer, tmp_path: Path
) -> None:
    spec, log = write_job(tmp_path / "job", max_steps=20), tmp_path / "log"
    assert server.run(command(spec, tmp_path, "first"), log) == 0, log.read_text()
    weights = spec.parent / "weights.pt"
    weights.write_bytes((tmp_path / "first/checkpoints/last.pt").read_bytes())
    asked = ["--set", f"weights.path={weights}", "--set", "optimizer.lr=1e-30", "--set", "schedule=null"]
    assert server.run(command(spec, tmp_path, "run", *asked), log) == 0, log.read_text()
    first, run = final_payload(tmp_path / "first")["trainer"], final_payload(tmp_path / "run")["trainer"]
    trained = {name: one for name, one in first["model"].items() if name.startswith(("0.", "4."))}
    again = {name: run["model"][name] for name in trained}
    # with this rate a step changes no float32, so that what the run began with is what it ends with
    assert differences("", trained, again) == []
    (told,) = events(tmp_path / "run", "weights_loaded")
    assert (told["loaded"], told["missing"]) == (len(first["model"]), [])
    assert told["sha256"] == sha256_file(weights)
    weights.unlink()
    assert server.run(["--job-id", "job-x", "--run-dir", str(tmp_path / "run")], log) == 0, log.read_text()


def test_weights_that_do_not_fit_are_refused_in_one_line_and_leave_nothing(server: ForkServer, tmp_path: Path) -> None:
    spec, log = write_job(tmp_path / "job", max_steps=20), tmp_path / "log"
    torch.save({"0.weight": torch.zeros(16, 9), "more": torch.zeros(1)}, spec.parent / "weights.pt")
    spec.write_text(spec.read_text() + "weights: {path: weights.pt}\n")
    assert server.run(command(spec, tmp_path, "run"), log) == 78, log.read_text()
    refusal = log.read_text().splitlines()[0]
    assert refusal.startswith("plan error [plan_refused] at weights.path: 0 of 9 tensors of the model fit; 8 missing")
    assert "Traceback" not in log.read_text()
    assert not (tmp_path / "run").exists()


def test_groups_and_a_schedule_of_torch_are_the_same_run_after_a_kill(server: ForkServer, tmp_path: Path) -> None:
    spec, log = write_job(tmp_path / "job", max_steps=40), tmp_path / "log"
    text = spec.read_text()
    head = text[: text.index("optimizer:")]
    spec.write_text(
        head
        + "optimizer: {name: adamw, lr: 0.01, accumulate: 2, no_decay: [bias, norm], "
        + "groups: [{match: ['0.*'], lr_mult: 0.1}, {match: [4.bias], lr_mult: 0}]}\n"
        + "schedule: {kind: one_cycle, warmup_steps: 4}\nclip_grad_norm: 1.0\n"
    )
    assert server.run(command(spec, tmp_path, "oracle"), log) == 0, log.read_text()
    assert server.run(command(spec, tmp_path, "run"), log, fault="op=rename,n=20,do=kill") != 0
    assert server.run(command(spec, tmp_path, "run"), log) == 0, log.read_text()
    assert_identical(tmp_path / "run", tmp_path / "oracle")
    rates = [line["lr"] for line in lines(tmp_path / "run", "train_metrics.jsonl")]
    assert max(rates) == pytest.approx(0.01, rel=1e-3)
    assert rates[-1] < 1e-6
    # with a longer budget the rate rests where it was
    text = spec.read_text()
    spec.write_text(text.replace("max_steps: 40", "max_steps: 60"))
    longer = ["--auto-resume", "--allow-change", "max_steps"]
    assert server.run(command(spec, tmp_path, "run", *longer), log) == 0, log.read_text()
    rates = [line["lr"] for line in lines(tmp_path / "run", "train_metrics.jsonl")]
    assert set(rates[40:]) == {rates[39]}
