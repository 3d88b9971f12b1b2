"""The verb `init`: a folder with a trainer and a spec to start from, which appears whole or not at all.

.DIR.tmp-PID-TAIL/.lock      held while the folder is made; one whose lock is free is dead, and removed by the next
.DIR.tmp-PID-TAIL/new/       filled here, its data made by its own script in a child process, then renamed to DIR
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import click

from trn.doors.completion import complete_folder
from trn.doors.starters import DATA_MAKER, STARTERS, Starter
from trn.doors.text import clean, clean_line
from trn.errors import DataError, UsageError
from trn.files import Lock, is_locked, make_folder, publish_folder, remove_tree, write_atomic

__all__ = ["init_command"]

_NAMED = 5
_MAKER_TIMEOUT_S = 120.0


@click.command(name="init")
@click.argument("folder", metavar="DIR", shell_complete=complete_folder)
@click.option(
    "--kind",
    type=click.Choice(list(STARTERS)),
    default="torch",
    show_default=True,
    help="A TorchTrainer, a trainer of six hooks by hand, or a language model.",
)
def init_command(folder: str, kind: str) -> None:
    """Write a trainer and a spec to start from into the new folder DIR: a small training that runs as it is.

    What is made is yours: change it. DIR must not exist, or be empty.
    """
    target = Path(os.path.abspath(folder))
    _refuse_taken(target)
    names = _write(STARTERS[kind], target)
    click.echo(clean(f"trn: wrote {', '.join(names)} into {folder}. Next:"))
    for command in STARTERS[kind].commands:
        arguments = [part.replace("{dir}", folder.rstrip("/")) for part in command]
        click.echo(clean(f"  trn {shlex.join(arguments)}"))


def _refuse_taken(target: Path) -> None:
    """Raise UsageError unless `target` is absent, or an empty folder that can be replaced."""
    hint = "Name another folder."
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        found = "a link" if target.is_symlink() else "no folder"
        raise UsageError(f"expected an empty or a new folder; this is {found}.", where=str(target), hint=hint)
    if not target.exists():
        return
    if names := sorted(os.listdir(target)):
        listed = ", ".join(clean_line(name) for name in names[:_NAMED])
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        raise UsageError(f"expected an empty or a new folder; in it: {listed}{more}.", where=str(target), hint=hint)
    if os.path.samefile(target, os.getcwd()):
        # the rename would leave the shell in a folder that is gone
        raise UsageError(
            "the current folder cannot be replaced while you are in it.",
            where=str(target),
            hint="Go to the folder above it, or name a new folder in it.",
        )


def _write(starter: Starter, target: Path) -> list[str]:
    """Fill the folder aside and publish it; returns the names in it."""
    make_folder(target.parent)
    _clear_dead(target)
    aside = make_folder(target.parent / f".{target.name}.tmp-{os.getpid()}-{os.urandom(3).hex()}")
    lock = Lock(aside / ".lock")
    try:
        lock.acquire(note=f"pid={os.getpid()} trn init")
        staged = make_folder(aside / "new")
        for name, text in starter.files.items():
            write_atomic(staged / name, text.encode())
        if DATA_MAKER in starter.files:
            _make_data(staged)
        names = sorted(os.listdir(staged))
        if not publish_folder(staged, target):
            _refuse_taken(target)
            raise UsageError("somebody else made this folder meanwhile.", where=str(target), hint="Try again.")
        return names
    finally:
        remove_tree(aside)
        lock.release()


def _clear_dead(target: Path) -> None:
    """Remove what an `init` of this folder that was killed left beside it."""
    for aside in target.parent.iterdir():
        lock = aside / ".lock"
        is_ours = aside.name.startswith(f".{target.name}.tmp-") and not aside.is_symlink() and lock.is_file()
        # without a note in it the lock was never held: its maker is about to take it
        if is_ours and lock.stat().st_size and is_locked(lock) is None:
            remove_tree(aside)


def _make_data(staged: Path) -> None:
    """Run the data maker in its folder, and make durable what it wrote. Raises DataError where it fails."""
    script = staged / DATA_MAKER
    # -P: a file in the current folder must not stand in for a module of the same name
    command = [sys.executable, "-P", str(script)]
    try:
        done = subprocess.run(command, capture_output=True, cwd=staged, timeout=_MAKER_TIMEOUT_S, check=False)
        said = clean(done.stderr.decode(errors="replace")).strip().splitlines() or [f"it exited with {done.returncode}"]
        problem = said[-1] if done.returncode else None
    except subprocess.TimeoutExpired:
        problem = f"it took more than {_MAKER_TIMEOUT_S:.0f} s"
    if problem is not None:
        raise DataError(
            f"the data could not be made: {problem}.", where=DATA_MAKER, hint="`trn doctor` shows what is installed."
        )
    for path in staged.glob("*.parquet"):
        write_atomic(path, path.read_bytes())
