"""The state of the repository that holds the code: which commit, which branch, what is changed.

git is asked, not trusted: it runs with an environment of its own, without pager, prompt, hooks, file system monitor or
locks, and for a limited time. Nothing here raises, since a run outside git is a good run: what could not be found is
null, and `reason` says why.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["MAX_STATUS_LINES", "git_state", "repository_root"]

MAX_STATUS_LINES = 200

_SAFE = ("--no-pager", "--no-optional-locks", "-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}")
_KEPT_VARIABLES = ("PATH", "HOME", "XDG_CONFIG_HOME")
_OWN_VARIABLES = {
    "LC_ALL": "C",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_PAGER": "cat",
}
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class _Answer:
    code: int
    out: str
    reason: str | None
    """Why there is no answer at all: git is missing, refuses or is too slow."""


class _Git:
    """One series of questions to git about one folder, with one deadline."""

    def __init__(self, folder: Path, environ: Mapping[str, str], timeout_s: float) -> None:
        self._environ = {name: environ[name] for name in _KEPT_VARIABLES if name in environ} | _OWN_VARIABLES
        self._program = shutil.which("git", path=environ.get("PATH", os.defpath))
        self._folder = folder
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s

    def ask(self, *question: str) -> _Answer:
        if self._program is None:
            return _Answer(-1, "", "git is not installed")
        try:
            process = subprocess.Popen(
                [self._program, *_SAFE, "-C", str(self._folder), *question],
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            return _Answer(-1, "", f"git cannot be started: {error}")
        try:
            out, err = process.communicate(timeout=max(0.0, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _end(process)
            return _Answer(-1, "", f"git did not answer within {self._timeout_s:g} s")
        reason = _refusal(err.decode("utf-8", "replace")) if process.returncode not in (0, 1) else None
        return _Answer(process.returncode, out.decode("utf-8", "replace"), reason)


def git_state(folder: Path, *, environ: Mapping[str, str] | None = None, timeout_s: float = 5.0) -> dict[str, Any]:
    """`{sha, branch, dirty, status_porcelain, reason}` of the repository around `folder`; never raises.

    Untracked files count as dirty. `status_porcelain` holds the first 200 lines of `git status --porcelain`. Each of
    sha, branch and dirty may be null, and then `reason` says why. Of `environ` (the process's own by default) only
    PATH, HOME and XDG_CONFIG_HOME reach git: the user's `safe.directory` holds, a stray GIT_DIR does not.
    """
    git = _Git(folder, os.environ if environ is None else environ, timeout_s)
    inside = git.ask("rev-parse", "--is-inside-work-tree")
    if inside.reason is not None:
        return _unknown(inside.reason)
    if inside.out.strip() != "true":
        return _unknown("not inside a work tree of git")
    if git.ask("check-ignore", "--quiet", ".").code == 0:
        return _unknown("the repository around this folder ignores it, so no commit holds the code")
    head = git.ask("rev-parse", "--verify", "--quiet", "HEAD")
    branch = git.ask("symbolic-ref", "--quiet", "--short", "HEAD")
    status = git.ask("status", "--porcelain=v1", "--untracked-files=normal")
    lines = [line for line in status.out.split("\n") if line.strip()] if status.code == 0 else []
    found = {
        "sha": head.out.strip() if _COMMIT.fullmatch(head.out.strip()) else None,
        "branch": branch.out.strip() or None,
        "dirty": bool(lines) if status.code == 0 else None,
    }
    reason = _why(head, branch, status) if None in found.values() else None
    return {**found, "status_porcelain": lines[:MAX_STATUS_LINES], "reason": reason}


def repository_root(folder: Path) -> Path | None:
    """The nearest folder at or above `folder` that has a `.git`, asked without git; None outside a repository."""
    start = Path(os.path.realpath(folder))
    return next((place for place in (start, *start.parents) if os.path.exists(place / ".git")), None)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill git and its children; a process that hangs in the kernel is left behind rather than waited for."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=1.0)


def _unknown(reason: str) -> dict[str, Any]:
    return {"sha": None, "branch": None, "dirty": None, "status_porcelain": [], "reason": reason}


def _why(head: _Answer, branch: _Answer, status: _Answer) -> str:
    """Why one of the three answers is missing."""
    for answer in (head, branch, status):
        if answer.reason is not None:
            return answer.reason
    if head.code != 0:
        return "no commits yet"
    if branch.code != 0:
        return "detached HEAD"
    return "git gave no answer"


def _refusal(complaint: str) -> str:
    """git's complaint in our words; the first line of it where we have none."""
    if "dubious ownership" in complaint or "safe.directory" in complaint:
        return "git refuses the repository, which another user owns; add it to git's safe.directory"
    if "not a git repository" in complaint:
        return "not a git repository"
    first = next((line.strip() for line in complaint.splitlines() if line.strip()), "no message")
    return "git failed: " + "".join(char for char in first if char.isprintable())[:200]
