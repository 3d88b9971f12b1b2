"""What a run relies on of a trainer's objects: each function proves one promise, or raises BrokenPromise."""

from __future__ import annotations

from typing import Any

from torch import nn

from trn.checkpoint import rng
from trn.feed import Cursor, Dataset, Feed, RawBatch
from trn.loop.batches import transform_seed
from trn.loop.evaluation import call_evaluate, enter_settled, metrics_of
from trn.plan import plan_order
from trn.ranks import World
from trn.runner.make import Made
from trn.runner.reading import validation_of
from trn.spec.plan_model import Plan
from trn.testing.compare import final_payload, first_difference
from trn.testing.promise import breaks
from trn.testing.subject import ALL_STATE, STREAMS, Subject, make_objects, restore_objects, snapshot
from trn.trainer import Trainer, has_own_transform

__all__ = ["builds_alike", "evaluates", "is_restored", "prepares_alike", "stores_its_state"]


def builds_alike(subject: Subject) -> None:
    """Two objects, made from one seed, begin with the same state."""
    found = []
    for _ in range(2):
        plan, trainer = subject.plan("built")
        found.append(snapshot(trainer, make_objects(plan, trainer).state))
    breaks(
        "build",
        first_difference(found[0], found[1]),
        where="state_dict after configure",
        meaning="the same seed twice",
        hint="Let the weights come from torch's global generator, which the run has seeded.",
    )


def prepares_alike(subject: Subject) -> None:
    """The same rows become the same batch: in another object, and with another batch before them."""
    given = []
    for is_later in (False, True):
        plan, trainer = subject.plan("prepared")
        made = make_objects(plan, trainer)
        first, second = _first_batches(plan)
        if is_later and has_own_transform(trainer):
            _transformed(plan, trainer, made, second)
        given.append(_prepared(plan, trainer, made, first))
    breaks(
        "batches",
        first_difference(given[0], given[1]),
        where="transform or prepare_batch of the first batch",
        meaning="the same rows, with the same random streams, prepared twice",
        hint=STREAMS,
    )


def stores_its_state(subject: Subject) -> None:
    """What state_dict gives is plain, is the same when asked again, and comes back from a real checkpoint file."""
    ran = subject.ran()
    once, again = snapshot(ran.trainer, ran.state), snapshot(ran.trainer, ran.state)
    hint = "state_dict must only look: no counter, no draw, no change to what it describes."
    breaks("state", first_difference(once, again), where="state_dict", meaning="asked twice in a row", hint=hint)
    stored = final_payload(ran.run_dir)["trainer"]
    breaks("state", first_difference(once, stored), where="the checkpoint file", meaning="after writing it", hint=hint)


def evaluates(subject: Subject) -> None:
    """Evaluating twice gives the same numbers, and leaves state and modes of the modules as they were."""
    plan, trainer = subject.plan("straight")
    made, batches = restore_objects(subject, plan, trainer), validation_of(plan, World())
    assert batches is not None, "the plan of such a trainer has validation data here"
    before, modes = snapshot(trainer, made.state), _modes(made.state)
    found = []
    enter_settled(made.ctx, plan, subject.ran().progress)
    for _ in range(2):
        given = call_evaluate(trainer, made.state, made.ctx, batches(), call=lambda _, hook: hook())
        found.append(metrics_of(given, made.ctx.step))
    breaks(
        "evaluate",
        first_difference(modes, _modes(made.state)),
        where="the modules' training mode",
        meaning="before an evaluation and after it",
        hint="Note module.training of each module before .eval(), and put it back in a finally.",
    )
    breaks(
        "evaluate",
        first_difference(before, snapshot(trainer, made.state)),
        where="state_dict",
        meaning="before an evaluation and after it",
        hint="Evaluate without gradients, in .eval(), and change nothing that is trained.",
    )
    breaks(
        "evaluate",
        first_difference(found[0], found[1]),
        where="the metrics",
        meaning="evaluated twice in a row",
        hint=STREAMS,
    )


def is_restored(subject: Subject) -> None:
    """A fresh object that is given a checkpoint describes its state as the checkpoint does."""
    plan, trainer = subject.plan("straight")
    restored = snapshot(trainer, restore_objects(subject, plan, trainer).state)
    breaks(
        "resume",
        first_difference(final_payload(subject.ran().run_dir)["trainer"], restored),
        where="state_dict after load_state_dict",
        meaning="what was loaded, and what state_dict then says",
        hint=ALL_STATE,
    )


def _modes(state: Any) -> dict[str, bool]:
    """Whether each module that the state shows is in training."""
    held = state if isinstance(state, dict) else getattr(state, "__dict__", {})
    modules = {name: one for name, one in held.items() if isinstance(one, nn.Module)}
    if isinstance(state, nn.Module):
        modules = {"state": state}
    return {
        ".".join((name, path)).rstrip("."): module.training
        for name, one in modules.items()
        for path, module in one.named_modules()
    }


def _first_batches(plan: Plan) -> tuple[RawBatch, RawBatch]:
    """Read anew each time: a hook may write to the memory of its rows."""
    feed = Feed(Dataset.from_json(plan.dataset.data), plan_order(plan), plan.dataset.columns, Cursor(), readahead=0,
                fills=plan.dataset.fills)  # fmt: skip
    with feed:
        first, second = feed.next(), feed.next()
        assert first is not None, "there are rows"
        assert second is not None, "the data begin again where they end"
        return first, second


def _transformed(plan: Plan, trainer: Any, made: Made, raw: RawBatch) -> Any:
    made.ctx._enter_step(1, 0, raw.row_ids, raw.row_passes, 1.0)
    with rng.isolated(transform_seed(plan.seed, raw.cursor, 0)):
        return trainer.transform(raw.record_batch, made.ctx)


def _prepared(plan: Plan, trainer: Trainer, made: Made, raw: RawBatch) -> Any:
    rows = _transformed(plan, trainer, made, raw) if has_own_transform(trainer) else raw.record_batch
    made.ctx._enter_step(1, 0, raw.row_ids, raw.row_passes, 1.0)
    with rng.isolated(plan.seed):
        return trainer.prepare_batch(rows, made.state, made.ctx)
