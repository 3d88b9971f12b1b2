"""`trn.open_run`: the block that a run lives in."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from trn.errors import UsageError
from trn.session.job import OwnJob, settings_put_back
from trn.session.opening import Asked, When, open_job
from trn.session.own_loop import caller_of
from trn.session.run import Run

__all__ = ["open_run"]


def open_run(
    spec: str | os.PathLike[str] | Mapping[str, Any],
    *,
    run_id: str | None = None,
    runs_dir: str | os.PathLike[str] | None = None,
    resume: When = "auto",
    sets: Sequence[str] = (),
    allow_change: Sequence[str] = (),
    checkpoint: str | None = None,
    profile: str | None = None,
) -> AbstractContextManager[Run]:
    """A run around your own loop, inside `with`: plan, folder, journal, gates, checkpoints, resume, outcome.

        with trn.open_run("spec.yaml", run_id="mine") as run:
            run.track(model=model, optimizer=optimizer)
            for batch in run.feed:
                loss = ...
                loss.backward()
                run.gate(train_loss=loss, grad_norm=clip_grad_norm_(model.parameters(), 1.0))
                optimizer.step()
                run.log(lr=...)
        sys.exit(run.exit_code)

    `spec` is a file or a mapping, without `trainer`. `resume` says what becomes of a run that exists: `auto` goes on
    with it, `never` refuses it, `must` refuses where there is none; `checkpoint` names where to go on from, `sets`,
    `allow_change` and `profile` are the command line's. Entering raises TrnError where it is refused, and nothing is
    left behind. Leaving by an exception writes the outcome and lets the exception go on.
    """
    asked = Asked(
        spec=spec,
        caller=caller_of(sys._getframe(1)),
        run_id=run_id,
        runs_dir=runs_dir,
        resume=resume,
        sets=tuple(sets),
        allow_change=tuple(allow_change),
        checkpoint=checkpoint,
        profile=profile,
    )
    return _opened(asked)


_open_in: int | None = None
"""The process that has a run open; a child that it forks may open another."""


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    global _open_in
    if _open_in == os.getpid():
        raise UsageError(
            "a run is open in this process: two would draw from the same random streams.",
            where="open_run",
            hint="Leave its block first, or open this one in another process.",
        )
    _open_in = os.getpid()
    try:
        yield
    finally:
        _open_in = None


@contextlib.contextmanager
def _opened(asked: Asked) -> Iterator[Run]:
    # cuBLAS reads this when it starts; without it deterministic mode refuses to run on CUDA
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with _alone(), settings_put_back():
        opened = open_job(asked)
        try:
            job = OwnJob(opened)
        except BaseException:
            opened.give_up()
            raise
        run = Run(job, opened.loop, opened.finished)
        try:
            job.open()
            yield run
        except BaseException as error:
            run.outcome = job.leave(error)
            raise
        run.outcome = job.leave(None)
        if job.failure is not None:
            raise job.failure
