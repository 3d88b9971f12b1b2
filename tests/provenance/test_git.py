"""What git says about the code, and why it sometimes says nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trn.provenance.git import MAX_STATUS_LINES, git_state, repository_root

Git = Callable[..., str]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path)}


def test_a_clean_repository_is_told_with_commit_and_branch(repository: Path, git: Git, environ: dict[str, str]) -> None:
    assert git_state(repository / "src", environ=environ) == {
        "sha": git("rev-parse", "HEAD", folder=repository),
        "branch": "main",
        "dirty": False,
        "status_porcelain": [],
        "reason": None,
    }


def test_a_changed_file_is_dirty(repository: Path, environ: dict[str, str]) -> None:
    (repository / "src" / "train.py").write_text("x = 2\n")
    state = git_state(repository / "src", environ=environ)
    assert (state["dirty"], state["status_porcelain"], state["reason"]) == (True, [" M src/train.py"], None)


def test_an_untracked_file_outside_the_folder_is_dirty(repository: Path, environ: dict[str, str]) -> None:
    (repository / "new file.py").write_text("")
    state = git_state(repository / "src", environ=environ)
    assert (state["dirty"], state["status_porcelain"]) == (True, ['?? "new file.py"'])


def test_an_ignored_file_is_not_dirty(repository: Path, git: Git, environ: dict[str, str]) -> None:
    (repository / ".gitignore").write_text("runs/\n")
    git("add", "-A", folder=repository)
    git("commit", "-qm", "second", folder=repository)
    (repository / "runs").mkdir()
    (repository / "runs" / "x").write_text("")
    assert git_state(repository, environ=environ)["dirty"] is False


def test_code_in_an_ignored_folder_is_in_no_commit(repository: Path, environ: dict[str, str]) -> None:
    package = repository / ".venv" / "lib" / "package"
    package.mkdir(parents=True)
    (repository / ".gitignore").write_text(".venv/\n")
    state = git_state(package, environ=environ)
    assert (state["sha"], state["dirty"]) == (None, None)
    assert state["reason"] == "the repository around this folder ignores it, so no commit holds the code"


def test_only_the_first_lines_of_a_long_status_are_kept(repository: Path, environ: dict[str, str]) -> None:
    for index in range(MAX_STATUS_LINES + 5):
        (repository / f"f{index:04}").write_text("")
    lines = git_state(repository, environ=environ)["status_porcelain"]
    assert lines == [f"?? f{index:04}" for index in range(MAX_STATUS_LINES)]


def test_a_detached_head_has_a_commit_and_no_branch(repository: Path, git: Git, environ: dict[str, str]) -> None:
    git("checkout", "-q", "--detach", folder=repository)
    state = git_state(repository, environ=environ)
    assert (state["sha"] is not None, state["branch"], state["dirty"]) == (True, None, False)
    assert state["reason"] == "detached HEAD"


def test_a_repository_without_commits_has_a_branch_and_no_commit(
    tmp_path: Path, git: Git, environ: dict[str, str]
) -> None:
    (tmp_path / "code").mkdir()
    git("init", "-q", folder=tmp_path / "code")
    state = git_state(tmp_path / "code", environ=environ)
    assert (state["sha"], state["branch"], state["dirty"]) == (None, "main", False)
    assert state["reason"] == "no commits yet"


def test_a_linked_worktree_is_its_own_state(
    repository: Path, tmp_path: Path, git: Git, environ: dict[str, str]
) -> None:
    git("worktree", "add", "-q", "-b", "side", str(tmp_path / "side"), folder=repository)
    (repository / "new").write_text("")
    state = git_state(tmp_path / "side", environ=environ)
    assert (state["branch"], state["dirty"]) == ("side", False)


def test_a_folder_outside_git_says_so(tmp_path: Path, environ: dict[str, str]) -> None:
    assert git_state(tmp_path, environ=environ) == {
        "sha": None,
        "branch": None,
        "dirty": None,
        "status_porcelain": [],
        "reason": "not a git repository",
    }


def test_the_inside_of_a_git_folder_is_no_work_tree(repository: Path, environ: dict[str, str]) -> None:
    assert git_state(repository / ".git", environ=environ)["reason"] == "not inside a work tree of git"


def test_a_missing_folder_is_a_reason_and_no_exception(tmp_path: Path, environ: dict[str, str]) -> None:
    state = git_state(tmp_path / "gone", environ=environ)
    assert state["sha"] is None
    assert state["reason"].startswith("git failed: ")
    assert git_state(Path("a\0b"), environ=environ)["reason"].startswith("git cannot be started: ")


def test_a_machine_without_git_says_so(repository: Path, tmp_path: Path) -> None:
    assert git_state(repository, environ={"PATH": str(tmp_path / "nothing")})["reason"] == "git is not installed"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")  # CI runs as root
def test_the_repository_of_another_user_is_refused_and_says_why(
    repository: Path, git: Git, environ: dict[str, str]
) -> None:
    for folder, _, _ in os.walk(repository):
        os.chown(folder, 12345, 12345)
    state = git_state(repository, environ=environ)
    assert (state["sha"], state["reason"]) == (
        None,
        "git refuses the repository, which another user owns; add it to git's safe.directory",
    )
    git("config", "--global", "--add", "safe.directory", str(repository), folder=repository)
    assert git_state(repository, environ=environ)["reason"] is None


def _install_git(folder: Path, script: str) -> dict[str, str]:
    folder.mkdir()
    (folder / "git").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "git").chmod(0o700)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


def test_a_git_that_hangs_is_given_up_with_all_its_children(tmp_path: Path) -> None:
    environ = _install_git(tmp_path / "bin", f"echo $$ > {tmp_path}/pid\nsleep 600 &\nsleep 600")
    began = time.monotonic()
    state = git_state(tmp_path, environ=environ, timeout_s=0.3)
    assert time.monotonic() - began < 5
    assert state["reason"] == "git did not answer within 0.3 s"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_git_that_talks_nonsense_is_not_believed(tmp_path: Path) -> None:
    environ = _install_git(tmp_path / "bin", 'echo true; case "$*" in *check-ignore*) exit 1;; esac')
    state = git_state(tmp_path, environ=environ)
    assert (state["sha"], state["reason"]) == (None, "git gave no answer")


def test_a_git_that_fails_is_quoted_without_control_characters(tmp_path: Path) -> None:
    environ = _install_git(tmp_path / "bin", "printf '\\033[31mfatal: odd\\377\\nmore\\n' >&2; exit 128")
    assert git_state(tmp_path, environ=environ)["reason"] == "git failed: [31mfatal: odd�"


def test_variables_of_the_caller_do_not_reach_git(
    repository: Path, tmp_path: Path, git: Git, environ: dict[str, str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git("init", "-q", folder=other)
    stray = {"GIT_DIR": str(other / ".git"), "GIT_WORK_TREE": str(other), "GIT_INDEX_FILE": "/nowhere"}
    state = git_state(repository, environ=environ | stray)
    assert state["sha"] == git("rev-parse", "HEAD", folder=repository)
    assert state["dirty"] is False


def test_neither_hooks_nor_a_monitor_are_run_and_nothing_is_written(
    repository: Path, tmp_path: Path, git: Git, environ: dict[str, str]
) -> None:
    trap = repository / ".git" / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/sprung\n")
    trap.chmod(0o700)
    for hook in ("post-index-change", "post-checkout", "reference-transaction"):
        (repository / ".git" / "hooks").mkdir(exist_ok=True)
        (repository / ".git" / "hooks" / hook).symlink_to(trap)
    git("config", "core.fsmonitor", str(trap), folder=repository)
    git("config", "core.pager", str(trap), folder=repository)
    os.utime(repository / "src" / "train.py")
    (tmp_path / "sprung").unlink(missing_ok=True)
    index = (repository / ".git" / "index").read_bytes()
    assert git_state(repository, environ=environ)["dirty"] is False
    assert not (tmp_path / "sprung").exists()
    assert (repository / ".git" / "index").read_bytes() == index


def test_the_root_of_a_repository_is_found_without_git(repository: Path, tmp_path: Path) -> None:
    assert repository_root(repository / "src") == repository.resolve()
    (tmp_path / "link").symlink_to(repository / "src")
    assert repository_root(tmp_path / "link") == repository.resolve()
    assert repository_root(tmp_path) is None
