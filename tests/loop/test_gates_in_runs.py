"""Each gate at its exact step in real runs, with its outcome and exit code, and the same after a kill in its window."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support.compare import assert_identical, differences, epoch_artifacts, events, final_payload, lines, outcome
from support.forkserver import ForkServer
from support.job import command
from support.scripted import write_scripted
from trn.checkpoint.epochs import state_sha256
from trn.checkpoint.meta import listed_steps
from trn.errors import STATUS
from trn.gates import epoch_problems
from trn.records import Json, read_json
from trn.verify import verify_run

pytestmark = pytest.mark.slow

FINETUNE = "gates: {regime: finetune"
SERIES = [
    # losses, more of the spec, vocab -> outcome, step
    (
        [4.0, 2.1, 4.2, 2.1, 1.0],
        FINETUNE + ", target_val_loss: 2.2, patience: 1, min_epochs: 3}",
        None,
        "target_reached",
        20,
    ),
    (
        [4.0, 2.1, 4.2, 2.3, 1.0],
        FINETUNE + ", target_val_loss: 2.2, patience: 1, min_epochs: 3}",
        None,
        "early_stopped",
        20,
    ),
    (
        [4.0, 2.1, 4.2, 8.5, 1.0],
        FINETUNE + ", target_val_loss: 2.2, patience: 1, min_epochs: 3}",
        None,
        "divergence",
        20,
    ),
    ([4.0, 2.1, 4.2, "nan", 1.0], FINETUNE + "}", None, "numerical_instability", 20),
    (["inf"], FINETUNE + "}", None, "numerical_instability", 5),
    ([10.0, 9.0], FINETUNE + "}", None, "completed", 10),
    ([10.1, 9.0], FINETUNE + "}", None, "divergence_at_first_validation", 5),
    ([21.6, 9.0], "", 50257, "completed", 10),
    ([21.7, 9.0], "", 50257, "divergence_at_first_validation", 5),
    ([99.0, 9.0], "", None, "completed", 10),
    ([3.0, 3.0, 3.0], "gates: {patience: 0, min_epochs: 1}", None, "early_stopped", 10),
    ([3.0, 2.95, 2.9], "gates: {patience: 1, min_epochs: 1, min_delta: 0.2}", None, "early_stopped", 15),
    ([3.0, 3.1, 3.2], "gates: {patience: 0}", None, "early_stopped", 15),
    ([3.0, 2.0], "gates: {target_val_loss: 2.0}", None, "target_reached", 10),
    ([3.0, 2.5], "gates: {target_val_loss: 2.0}", None, "completed", 10),
    ([3.0, 2.5], "gates: {target_val_loss: 2.0, require_target: true}", None, "target_missed", 10),
    ([3.0, 3.1, 3.2], "gates: {target_val_loss: 2.0, require_target: true, patience: 0}", None, "target_missed", 15),
    ([2.0, 1.0, 1.4, 1.6], "gates: {divergence_factor: 1.5}", None, "divergence", 20),
]


@pytest.mark.parametrize(("losses", "more", "vocab", "word", "step"), SERIES)
def test_a_scripted_series_ends_at_its_step_also_after_kills(
    server: ForkServer, tmp_path: Path, losses: list[object], more: str, vocab: int | None, word: str, step: int
) -> None:
    spec = write_scripted(tmp_path / "job", losses, more=more, vocab=vocab)
    log, oracle, run_dir = tmp_path / "log", tmp_path / "oracle", tmp_path / "run"
    code = STATUS[word].exit
    assert server.run(command(spec, tmp_path, "oracle"), log) == code, log.read_text()
    ended = outcome(oracle)
    assert (ended["status"], ended["step"], ended["exit_code"]) == (word, step, code), ended["reason"]
    for operation in (60, 30):  # durable operations of the job until it is killed: within an epoch, and at its end
        server.run(command(spec, tmp_path, "run"), log, fault=f"op=any,n={operation},do=kill")
    assert server.run(command(spec, tmp_path, "run"), log) == code, log.read_text()
    if listed_steps(oracle / "checkpoints"):
        assert_identical(run_dir, oracle)
    assert outcome(run_dir)["reason"] == ended["reason"]
    if word != "completed":
        assert events(run_dir, "gate")[-1]["outcome"] == word


def test_a_damaged_step_gets_no_checkpoint_and_its_loss_no_line(server: ForkServer, tmp_path: Path) -> None:
    spec = write_scripted(tmp_path / "job", [2.0, 4.5], more=FINETUNE + "}")
    assert server.run(command(spec, tmp_path, "run"), tmp_path / "log") == 81
    run_dir = tmp_path / "run"
    assert max(listed_steps(run_dir / "checkpoints")) == 8
    assert [line["val_loss"] for line in lines(run_dir, "val_metrics.jsonl")] == [2.0]
    assert set(epoch_artifacts(run_dir)) == {"epoch-000.metadata.json"}
    said = (
        "val_loss is 4.5 after epoch 1, above 4, twice the 2 of the validation before; try a tenth of the learning rate"
    )
    assert outcome(run_dir)["reason"] == said
    assert f"divergence: {said}\n" in (tmp_path / "log").read_text()
    # to go on is to diverge again, at the same step
    assert server.run(command(spec, tmp_path, "run"), tmp_path / "log") == 81
    assert (outcome(run_dir)["reason"], outcome(run_dir)["step"]) == (said, 10)


def skipped(run_dir: Path) -> list[Json]:
    keys = ("step", "field", "value", "row_ids", "skips_in_row", "skips", "lr_factor")
    found = {event["row_ids"][0]: {key: event[key] for key in keys} for event in events(run_dir, "step_skipped")}
    return [found[row] for row in sorted(found)]


def test_a_refused_batch_is_left_out_as_if_it_had_never_been_there(server: ForkServer, tmp_path: Path) -> None:
    guard = "guard: {policy: skip, max_skips: 2, lr_decay: 0.5}"
    spec = write_scripted(tmp_path / "job", [3.0, 2.9, 2.8], bad_steps=(3, 7, 8), more=guard, end="stop")
    log, run_dir = tmp_path / "log", tmp_path / "run"
    assert server.run(command(spec, tmp_path, "run"), log) == 0, log.read_text()
    assert skipped(run_dir) == [
        {"step": 3, "field": "train_loss", "value": "nan", "row_ids": [8, 9, 10, 11], "skips_in_row": 1, "skips": 1,
         "lr_factor": 0.5},
        {"step": 6, "field": "train_loss", "value": "nan", "row_ids": [24, 25, 26, 27], "skips_in_row": 1, "skips": 2,
         "lr_factor": 0.25},
        {"step": 6, "field": "train_loss", "value": "nan", "row_ids": [28, 29, 30, 31], "skips_in_row": 2, "skips": 3,
         "lr_factor": 0.125},
    ]  # fmt: skip
    made = lines(run_dir, "train_metrics.jsonl")
    assert [line["step"] for line in made] == list(range(1, 16))
    assert [line["lr"] for line in made[:6]] == [0.01, 0.01, 0.005, 0.005, 0.005, 0.00125]
    # the same run over data without the bad rows, at the learning rates that the skips made
    clean = tmp_path / "clean"
    write_scripted(clean, [3.0, 2.9, 2.8])
    without_bad_batches(spec.parent / "train.parquet", clean / "train.parquet", bad_steps=(3, 7, 8))
    trainer = (spec.parent / "by_script.py").read_text().replace("class Scripted(TorchTrainer):", HALVED)
    (clean / "by_script.py").write_text(trainer)
    assert server.run(command(clean / "spec.yaml", tmp_path, "clean-run"), log) == 0, log.read_text()
    ours, theirs = final_payload(run_dir)["trainer"], final_payload(tmp_path / "clean-run")["trainer"]
    assert state_sha256(ours) == state_sha256(theirs)
    assert [line["train_loss"] for line in made] == [
        line["train_loss"] for line in lines(tmp_path / "clean-run", "train_metrics.jsonl")
    ]


HALVED = """class Scripted(TorchTrainer):
    def train_step(self, batch, state, ctx):
        ctx._lr_factor = 1.0 if ctx.step < 3 else 0.5 if ctx.step < 6 else 0.125
        return super().train_step(batch, state, ctx)
"""


def without_bad_batches(source: Path, target: Path, bad_steps: tuple[int, ...]) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(source)
    keep = [row for row in range(table.num_rows) if row // 4 + 1 not in bad_steps]
    pq.write_table(table.take(keep), target, row_group_size=20)


def test_skips_are_the_same_after_kills_at_every_tenth_operation(server: ForkServer, tmp_path: Path) -> None:
    guard = "guard: {policy: skip, max_skips: 2}\ngates: {patience: 1, min_epochs: 1}"
    spec = write_scripted(
        tmp_path / "job", [3.0, 2.9, 3.0, 3.0, 1.0], bad_steps=(1, 2, 5, 6, 11), more=guard, end="stop"
    )
    log, oracle = tmp_path / "log", tmp_path / "oracle"
    assert server.run(command(spec, tmp_path, "oracle"), log) == 0, log.read_text()
    assert (outcome(oracle)["status"], outcome(oracle)["step"]) == ("early_stopped", 20)
    for number, operation in enumerate(range(15, 180, 11)):
        run_id = f"run-{number}"
        server.run(command(spec, tmp_path, run_id), log, fault=f"op=any,n={operation},do=kill")
        assert server.run(command(spec, tmp_path, run_id), log) == 0, log.read_text()
        assert_identical(tmp_path / run_id, oracle)
        assert skipped(tmp_path / run_id) == skipped(oracle)


def test_more_skips_in_a_row_than_allowed_end_the_run(server: ForkServer, tmp_path: Path) -> None:
    guard = "guard: {policy: skip, max_skips: 2}"
    spec = write_scripted(tmp_path / "job", [3.0, 2.9], bad_steps=(6, 7, 8), more=guard)
    assert server.run(command(spec, tmp_path, "run"), tmp_path / "log") == 80
    ended = outcome(tmp_path / "run")
    assert (ended["status"], ended["step"]) == ("numerical_instability", 5)
    assert "3 steps in a row are not finite, guard.max_skips is 2." in ended["reason"]
    refused = events(tmp_path / "run", "gate")[-1]
    assert (refused["step"], refused["row_ids"]) == (6, [28, 29, 30, 31])


def test_a_budget_in_passes_ends_with_the_data_however_many_batches_were_left_out(
    server: ForkServer, tmp_path: Path
) -> None:
    guard = "guard: {policy: skip}"
    for name, bad_steps in (("middle", (3, 12)), ("last", (25,))):
        spec = write_scripted(
            tmp_path / name, [3.0] * 6, bad_steps=bad_steps, budget="epochs: 1", end="stop", more=guard
        )
        spec.write_text(spec.read_text().replace("steps_per_epoch: 5\n", ""))
        assert server.run(command(spec, tmp_path, f"{name}-run"), tmp_path / "log") == 0, (tmp_path / "log").read_text()
        ended = outcome(tmp_path / f"{name}-run")
        made = 25 - len(bad_steps)
        assert (ended["status"], ended["step"], ended["final"]["step"]) == ("completed", made, made)
        assert ended["reason"] == f"every step of the budget is made; batches left out: {len(bad_steps)}"
        assert ended["checkpoint"]["step"] == made
        assert [one for one in verify_run(tmp_path / f"{name}-run") if one.problem is not None] == []


def test_a_budget_in_steps_is_not_met_by_batches_that_were_left_out(server: ForkServer, tmp_path: Path) -> None:
    guard = "guard: {policy: skip}"
    spec = write_scripted(tmp_path / "job", [3.0] * 5, bad_steps=(3,), end="stop", more=guard)
    assert server.run(command(spec, tmp_path, "run"), tmp_path / "log") == 65
    assert (outcome(tmp_path / "run")["status"], outcome(tmp_path / "run")["step"]) == ("data_exhausted", 24)


def test_the_artifact_of_an_epoch_is_complete_and_its_digest_real(server: ForkServer, tmp_path: Path) -> None:
    spec = write_scripted(tmp_path / "job", [3.0, 2.0, 1.0])
    assert server.run(command(spec, tmp_path, "run"), tmp_path / "log") == 0
    folder = tmp_path / "run/checkpoints"
    made = lines(tmp_path / "run", "train_metrics.jsonl")
    for epoch in range(3):
        metadata = read_json(folder / f"epoch-{epoch:03d}.metadata.json")
        assert epoch_problems(metadata) == []
        steps = made[epoch * 5 : epoch * 5 + 5]
        assert metadata["train_loss"] == pytest.approx(sum(line["train_loss"] for line in steps) / 5, rel=1e-12)
        assert metadata["grad_norm_max"] == max(line["grad_norm"] for line in steps)
        assert (metadata["epoch"], metadata["val_loss"]) == (epoch, 3.0 - epoch)
    assert sorted(path.name for path in folder.glob("epoch-*.pt")) == ["epoch-001.pt", "epoch-002.pt"]
    for epoch in (1, 2):
        payload = torch.load(folder / f"epoch-{epoch:03d}.pt", weights_only=True)
        assert payload["progress"]["step"] == (epoch + 1) * 5
        metadata = read_json(folder / f"epoch-{epoch:03d}.metadata.json")
        assert metadata["optimizer_state_sha"] == state_sha256(payload["trainer"]["optimizer"])


@pytest.mark.parametrize("losses", [[3.0, 2.0], [3.0, 7.0]])
def test_a_validation_that_a_stop_broke_off_is_made_good_with_all_that_follows_from_it(
    server: ForkServer, tmp_path: Path, losses: list[float]
) -> None:
    more = "gates: {regime: finetune, target_val_loss: 1.0, min_epochs: 1}"
    spec, log = write_scripted(tmp_path / "job", losses, more=more), tmp_path / "log"
    code = server.run(command(spec, tmp_path, "oracle"), log)
    assert code in (0, 81)
    (spec.parent / "terminate").write_text("5")
    assert server.run(command(spec, tmp_path, "run"), log) == 75
    assert outcome(tmp_path / "run")["step"] == 5
    assert epoch_artifacts(tmp_path / "run") == {}
    assert server.run(command(spec, tmp_path, "run"), log) == code
    assert_identical(tmp_path / "run", tmp_path / "oracle")
    assert "epoch-000.metadata.json" in epoch_artifacts(tmp_path / "run")


def test_a_run_that_ends_with_a_validation_made_good_ends_as_the_oracle(server: ForkServer, tmp_path: Path) -> None:
    more = "gates: {target_val_loss: 1.0, min_epochs: 1}"
    spec, log, run_dir = write_scripted(tmp_path / "job", [1.0, 1.0], more=more), tmp_path / "log", tmp_path / "run"
    assert server.run(command(spec, tmp_path, "oracle"), log) == 0
    (spec.parent / "terminate").write_text("5")
    assert [server.run(command(spec, tmp_path, "run"), log) for _ in range(2)] == [75, 0]
    keys = ("status", "reason", "step", "final", "best", "epochs_completed")
    assert [outcome(run_dir)[key] for key in keys] == [outcome(tmp_path / "oracle")[key] for key in keys]
    assert outcome(run_dir)["status"] == "target_reached"
    # the checkpoint was made before the validation: it has the same weights, and does not know of the loss
    assert differences("", final_payload(run_dir)["trainer"], final_payload(tmp_path / "oracle")["trainer"]) == []
    assert epoch_artifacts(run_dir) == epoch_artifacts(tmp_path / "oracle")
    assert (run_dir / "checkpoints/best.pt").samefile(run_dir / "checkpoints/step-00000005.pt")


@pytest.mark.parametrize(("every", "older"), [(4, 8), (0, 0)])
def test_a_checkpoint_that_was_made_before_its_step_was_found_damaged_is_set_aside(
    server: ForkServer, tmp_path: Path, every: int, older: int
) -> None:
    spec, log, run_dir = write_scripted(tmp_path / "job", [3.0, 7.0]), tmp_path / "log", tmp_path / "run"
    sets = ["--set", f"checkpoint_every={every}", "--set", "checkpoint.every_epochs=0"]
    sets += ["--set", "validation.every_epochs=2"] if every == 0 else []
    (spec.parent / "terminate").write_text("10")
    losses = ["--set", 'hyperparams.losses=["3.0", "nan"]'] if every == 0 else []
    code = 80 if every == 0 else 81
    argv = ["--auto-resume", *sets, *losses]
    assert server.run(command(spec, tmp_path, "run", *argv), log) == 75, log.read_text()
    assert outcome(run_dir)["checkpoint"]["step"] == 10
    for _ in range(2):  # the second finds the run without the checkpoint, and comes to the same end
        assert server.run(command(spec, tmp_path, "run", *argv), log) == code, log.read_text()
        assert max(listed_steps(run_dir / "checkpoints"), default=0) == older
        assert (outcome(run_dir)["checkpoint"] or {"step": 0})["step"] == older
        assert (run_dir / "checkpoints/last.pt").exists() == (older > 0)
    assert [event["from_step"] for event in events(run_dir, "resumed")] == [10, older]
    assert events(run_dir, "checkpoint_rejected")[0]["file"] == "step-00000010.pt"
    assert [one for one in verify_run(run_dir) if one.problem is not None] == []


def test_a_finished_run_that_is_resumed_is_left_as_it_is(server: ForkServer, tmp_path: Path) -> None:
    spec = write_scripted(tmp_path / "job", [3.0, 3.0, 3.0, 1.0], more="gates: {patience: 0, min_epochs: 1}")
    log, run_dir = tmp_path / "log", tmp_path / "run"
    assert server.run(command(spec, tmp_path, "run"), log) == 0
    before = (run_dir / "reports/outcome.json").read_bytes(), (run_dir / "reports/events.jsonl").read_bytes()
    assert server.run(command(spec, tmp_path, "run"), log) == 0
    assert server.run(["--job-id", "job-x", "--run-dir", str(run_dir)], log) == 0
    assert before == ((run_dir / "reports/outcome.json").read_bytes(), (run_dir / "reports/events.jsonl").read_bytes())
    # with rules that let it pass, it goes on
    spec.write_text(spec.read_text().replace("patience: 0", "patience: 5"))
    assert server.run(command(spec, tmp_path, "run"), log) == 78
    more = ["--auto-resume", "--allow-change", "gates"]
    assert server.run(command(spec, tmp_path, "run", *more), log) == 0, log.read_text()
    assert (outcome(run_dir)["status"], outcome(run_dir)["step"]) == ("completed", 20)
