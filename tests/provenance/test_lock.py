"""Which dependencies were installed, and which files asked for them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path

from trn.provenance.lock import dependency_lock, installed_packages, requirements_files


def _install(folder: Path, name: str, head: str) -> None:
    info = folder / f"{name}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\n{head}")


def test_packages_are_named_the_same_way_sorted_and_told_once(tmp_path: Path) -> None:
    _install(tmp_path / "a", "Zope.Interface-1.0", "Name: Zope.Interface\nVersion: 1.0\n")
    _install(tmp_path / "a", "my_pkg-2.0", "Name: my__Pkg\nVersion: 2.0+cpu\n")
    _install(tmp_path / "b", "my_pkg-1.0", "Name: my-pkg\nVersion: 1.0\n")
    _install(tmp_path / "b", "~orch-1.0", "")
    found = distributions(path=[str(tmp_path / "a"), str(tmp_path / "b")])
    assert installed_packages(found) == ["my-pkg==2.0+cpu", "zope-interface==1.0"]


def test_the_lock_is_the_hash_of_the_lines_of_this_environment(tmp_path: Path) -> None:
    lock = dependency_lock(tmp_path)
    lines = installed_packages()
    assert lock["package_count"] == len(lines) > 5
    assert lock["package_set_sha256"] == hashlib.sha256(("\n".join(lines) + "\n").encode()).hexdigest()
    assert any(line.startswith("pydantic==") for line in lines)


def test_files_that_name_dependencies_are_hashed_in_the_folder_and_at_the_root(repository: Path) -> None:
    wanted = ["requirements.txt", "requirements-dev.txt", "constraints.txt", "pyproject.toml", "uv.lock"]
    for name in [*wanted, "README.md", ".lock", "src/requirements.txt", "src/train.lock"]:
        (repository / name).write_text(name)
    (repository / "folder.lock").mkdir()
    names = sorted([*wanted, "src/requirements.txt", "src/train.lock"])
    expected = {name: hashlib.sha256(name.encode()).hexdigest() for name in names}
    assert requirements_files(repository / "src") == expected
    assert list(requirements_files(repository / "src")) == names


def test_outside_a_repository_the_folder_alone_counts(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("torch\n")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "poetry.lock").write_text("x")
    assert list(requirements_files(tmp_path / "code")) == ["poetry.lock"]
    assert requirements_files(tmp_path / "gone") == {}


def test_a_file_that_cannot_be_read_is_told_as_null(tmp_path: Path, unreadable: Callable[[Path], None]) -> None:
    unreadable(tmp_path / "requirements.txt")
    os.mkfifo(tmp_path / "pipe.lock")
    assert requirements_files(tmp_path) == {"requirements.txt": None}
