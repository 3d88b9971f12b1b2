"""Where `run` and `resume` begin: at a checkpoint of the run itself, or at one of another run, which is then forked.

Only what the command line says is judged here, and that the other run is one. Whether a checkpoint is there, and
whether it holds, the runner finds out.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from trn.checkpoint.named import parse_name
from trn.doors.targets import Target, find
from trn.errors import UsageError

__all__ = ["Beginning", "fork_options", "is_checkpoint", "no_id_of_its_own", "read_beginning"]


class Beginning(NamedTuple):
    """What `trn run` was told: whether to resume, by which checkpoint, or which other run to fork."""

    resume: bool
    checkpoint: str | None = None
    fork_from: Path | None = None

    @property
    def options(self) -> list[tuple[str, str]]:
        """For the runner, beside `--resume`."""
        given = {"--checkpoint": self.checkpoint, "--fork-from": self.fork_from}
        return [(name, str(value)) for name, value in given.items() if value is not None]


def read_beginning(
    resume_from: str | None, checkpoint: str | None, *, run_dir: Path, resume: bool, auto_resume: bool
) -> Beginning:
    """What `--resume-from`, `--checkpoint` and `--resume` mean together for the run in `run_dir`. Raises UsageError."""
    if resume_from is None:
        if checkpoint is not None and not resume:
            raise UsageError(
                "it says where a resume begins, and nothing is resumed.",
                where="--checkpoint",
                hint="Give --resume too, or fork another run with --resume-from RUN.",
            )
        return Beginning(resume, checkpoint)
    source, named = _read(resume_from, run_dir.parent)
    if named is not None and checkpoint is not None:
        raise UsageError("--resume-from names a checkpoint already.", where="--checkpoint", hint="Give one of the two.")
    if source is None or os.path.realpath(source.run_dir) == os.path.realpath(run_dir):
        if named is None:
            raise no_id_of_its_own(run_dir.name)
        if auto_resume:
            raise UsageError(
                "a checkpoint that is named is never replaced by a fresh start.",
                where="--auto-resume",
                hint="Give --resume in its place.",
            )
        return Beginning(True, named)
    if resume:
        raise UsageError(
            f"it forks the run {source.run_id!r} into a new one, and --resume is for a run that exists.",
            where="--resume-from",
            hint="Leave --resume out, or give --auto-resume.",
        )
    return Beginning(False, named or checkpoint, source.run_dir)


def is_checkpoint(resume_from: str | None) -> bool:
    """Whether `--resume-from` names a checkpoint of the run itself."""
    return resume_from is not None and parse_name(resume_from) is not None


def fork_options(source: Target, run_id: str, runs_dir: Path) -> list[str]:
    """For the runner: begin the run `run_id` in `runs_dir` from `source`, by its plan. Raises UsageError."""
    if run_id == source.run_id:
        raise no_id_of_its_own(run_id)
    return ["--run-dir", str(source.run_dir), "--run-id", run_id, "--runs-dir", str(runs_dir)]


def no_id_of_its_own(run_id: str) -> UsageError:
    return UsageError(
        f"a fork needs an id of its own, and {run_id!r} is that of the run it begins from.",
        where="--run-id",
        hint="Choose another one; to go back in the run itself, name one of its checkpoints with --checkpoint.",
    )


def _read(text: str, runs_dir: Path) -> tuple[Target | None, str | None]:
    """The run that `--resume-from` names, None for the run itself, and the checkpoint, None for the newest."""
    if parse_name(text) is not None:
        return None, text
    path = Path(text).absolute()
    if os.sep not in text or path.is_dir():
        return find(text, runs_dir), None
    folder = path.parent.parent if path.parent.name.startswith("abandoned-") else path.parent
    if folder.name != "checkpoints":
        raise UsageError(
            "expected a run, or a file in the folder checkpoints of a run.",
            where=text,
            hint="`trn list` shows the runs.",
        )
    return find(str(folder.parent), runs_dir), str(path)
