"""Hooks are called in order and without names: whatever can be called so is accepted, all else refused by name."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from trn.errors import PlanRefused
from trn.trainer.signatures import refuse_unfit_hooks


class Fitting:
    """Hooks of every kind that can be called as they will be."""

    def setup(self, *given: Any) -> None: ...
    def configure(self, context: Any, width: int = 8) -> None: ...
    def prepare_batch(self, rows: Any, state: Any, /, ctx: Any) -> None: ...

    train_step = staticmethod(lambda batch, state, ctx: None)
    state_dict = staticmethod(dict)  # written in C, with no signature that Python can tell

    @classmethod
    def load_state_dict(cls, state: Any, payload: Any, ctx: Any) -> None: ...

    evaluate = None  # no such hook
    export = functools.partialmethod(lambda self, more, batch, state, ctx: None, 1)


def test_hooks_that_can_be_called_are_accepted_whatever_their_parameters_are_called() -> None:
    refuse_unfit_hooks(Fitting(), "mine")


@pytest.mark.parametrize(
    ("hook", "value", "says"),
    [
        ("setup", lambda: None, r"expected setup\(ctx\), found setup\(\)\."),
        ("sample", lambda state: "", r"expected sample\(state, ctx\), found sample\(state\)\."),
        ("transform", lambda rows, ctx, *, seed: None, r"found transform\(rows, ctx, \*, seed\)\."),
    ],
)
def test_a_hook_that_cannot_is_refused_with_both_forms(hook: str, value: Any, says: str) -> None:
    trainer = Fitting()
    setattr(trainer, hook, value)
    with pytest.raises(PlanRefused, match=says):
        refuse_unfit_hooks(trainer, "mine")


def test_annotations_are_left_out_of_the_message() -> None:
    class Annotated(Fitting):
        def configure(self, ctx: dict[str, list[int]], model: str) -> list[str]:  # type: ignore[override]
            return []

    with pytest.raises(PlanRefused, match=r"expected configure\(ctx\), found configure\(ctx, model\)\."):
        refuse_unfit_hooks(Annotated(), "mine")


def save(state: Any, step: int, output_dir: Any, final: bool, ctx: Any) -> None: ...
def load(*, state: Any, checkpoint_dir: Any, payload: Any, ctx: Any) -> None: ...


def test_the_two_hooks_of_an_own_folder_are_called_by_name() -> None:
    trainer: Any = Fitting()
    trainer.save_checkpoint, trainer.load_checkpoint = save, load
    refuse_unfit_hooks(trainer, "mine")
    trainer.load_checkpoint = lambda **given: None
    refuse_unfit_hooks(trainer, "mine")
    trainer.save_checkpoint = lambda state, step, folder, final, ctx: None
    says = (
        r"expected save_checkpoint\(state, step, output_dir, final, ctx\), found save_checkpoint\(state, step, folder,"
    )
    with pytest.raises(PlanRefused, match=says):
        refuse_unfit_hooks(trainer, "mine")


@pytest.mark.parametrize(("there", "missing"), [("save", "load"), ("load", "save")])
def test_one_of_the_two_alone_is_refused_with_the_other(there: str, missing: str) -> None:
    trainer: Any = Fitting()
    setattr(trainer, f"{there}_checkpoint", save if there == "save" else load)
    with pytest.raises(PlanRefused, match=f"it has {there}_checkpoint and lacks {missing}_checkpoint. Add {missing}_"):
        refuse_unfit_hooks(trainer, "mine")
