"""The artifacts of epochs: complete, and made of the lines and checkpoints that lie beside them."""

from __future__ import annotations

from collections.abc import Iterator

from trn.checkpoint.epochs import listed_epochs, metadata_name, state_sha256, weights_name
from trn.checkpoint.meta import CheckpointMeta, listed_steps, meta_name
from trn.files import sha256_file
from trn.gates import EpochTally, GateRules, epoch_problems
from trn.records import Json, JsonError, read_json, read_lines
from trn.verify.finding import Finding, Run

__all__ = ["check_epochs"]


def check_epochs(run: Run) -> Iterator[Finding]:
    """Every epoch that is over has its metadata, and what they say follows from the journal and the checkpoint."""
    listed = listed_epochs(run.checkpoints)
    lines = {line["step"]: line for line in read_lines(run.reports / "train_metrics.jsonl")} if listed else {}
    losses = {line["step"]: line.get("val_loss") for line in read_lines(run.reports / "val_metrics.jsonl")}
    hashes = _hashes(run) if listed else {}
    for epoch in sorted(listed):
        name = f"checkpoints/{metadata_name(epoch)}"
        metadata = read_json(run.folder / name)
        problems = [
            *epoch_problems(
                metadata, makes_own_updates=run.plan.optimizer is None, cross_entropy=_is_cross_entropy(run)
            ),
            *_against_journal(run, epoch, metadata, lines, losses),
        ]
        yield from (Finding(name, problem) for problem in problems)
        if not problems:
            yield Finding(name)
        yield from _weights(run, epoch, metadata, hashes)
    for path in sorted(run.checkpoints.glob("epoch-*.pt")):
        if path.name not in {weights_name(epoch) for epoch in listed}:
            yield Finding(f"checkpoints/{path.name}: not committed, left by a crash; the next job removes it")
    yield from _missing(run, set(listed))


def _is_cross_entropy(run: Run) -> bool:
    gates = run.plan.gates
    return GateRules(cross_entropy=gates.cross_entropy, vocab_size=gates.vocab_size).is_cross_entropy


def _against_journal(
    run: Run, epoch: int, metadata: Json, lines: dict[int, Json], losses: dict[int, float | None]
) -> Iterator[str]:
    last = (epoch + 1) * run.plan.budget.steps_per_epoch
    if metadata.get("epoch") != epoch:
        yield f"it says epoch {metadata.get('epoch')!r}"
    if last not in lines:
        yield f"the journal has no step {last}, the last one of this epoch"
        return
    tally = EpochTally()
    for step in range(last - run.plan.budget.steps_per_epoch + 1, last + 1):
        tally = tally.with_step(lines[step]["train_loss"], lines[step]["grad_norm"], 0.0)
    expected = {
        "train_loss": tally.mean_loss,
        "grad_norm_max": tally.grad_norm_max,
        "tokens_seen": lines[last]["tokens_seen"],
        "val_loss": losses.get(last),
    }
    for key, value in expected.items():
        if metadata.get(key) != value:
            yield f"{key} is {metadata.get(key)!r}, by the journal it is {value!r}"


def _hashes(run: Run) -> dict[int, str]:
    """Step -> the sha256 of its checkpoint, by its event or its meta."""
    found = {
        event["step"]: event["sha256"]
        for event in read_lines(run.reports / "events.jsonl")
        if event.get("event") == "checkpoint"
    }
    for step in listed_steps(run.checkpoints):
        try:
            found[step] = CheckpointMeta.read(run.checkpoints / meta_name(step)).sha256
        except (JsonError, OSError):
            continue  # a finding of the checkpoints' own check
    return found


def _weights(run: Run, epoch: int, metadata: Json, hashes: dict[int, str]) -> Iterator[Finding]:
    """The `.pt`, where retention has left it: its bytes, then the digest of the optimizer's state in it."""
    path = run.checkpoints / weights_name(epoch)
    if not path.exists():
        return
    name, step = f"checkpoints/{path.name}", (epoch + 1) * run.plan.budget.steps_per_epoch
    if step not in hashes:
        # killed between the commit and its event, and retention took the meta since: nothing is opened unverified
        yield Finding(f"{name}: not opened, the sha256 of step {step} is not on record")
        return
    if sha256_file(path) != hashes[step]:
        yield Finding(name, f"its sha256 is not that of the checkpoint of step {step}")
        return
    import torch  # only where there is a state to look into

    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["trainer"]
    optimizer = state.get("optimizer") if isinstance(state, dict) else None
    digest = None if optimizer is None else state_sha256(optimizer)
    if digest != metadata.get("optimizer_state_sha"):
        yield Finding(name, "the digest of its optimizer state is not the one in the metadata")
        return
    yield Finding(f"{name}: optimizer state {(digest or 'none')[:12]}")


def _missing(run: Run, listed: set[int]) -> Iterator[Finding]:
    """Metadata stay for every epoch; a plan that was revised, or a fork's origin, may have asked for fewer of them."""
    every, newest = run.plan.checkpoint.every_epochs, max(listed_steps(run.checkpoints), default=0)
    is_fork = (run.reports / "forked_from.json").exists()
    if not every or run.plan.revision or is_fork:
        return
    # the newest checkpoint may be one that a stop made before its epoch was settled
    over = max(newest - 1, 0) // run.plan.budget.steps_per_epoch
    delayed = run.plan.checkpoint.save_delay_steps
    for epoch in range(every - 1, over, every):
        is_due = (epoch + 1) * run.plan.budget.steps_per_epoch >= delayed
        if is_due and epoch not in listed:
            yield Finding(f"checkpoints/{metadata_name(epoch)}", "it is missing, and the epoch is over")
