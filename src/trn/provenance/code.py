"""What code a number came from: a digest of the trainer's own modules, and the versions of the libraries below them.

Not the git sha: what runs is what lies on disk, committed or not.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["code_files", "code_sha256", "files_sha256", "library_versions"]

_LIBRARIES = ("torch", "numpy", "pyarrow")


def code_files(module_name: str) -> list[Path]:
    """The source files that belong to an imported trainer, sorted: its package, or the modules beside it.

    For `pkg.sub.mod` all loaded modules of `pkg`; for a plain `mod` all loaded modules from its folder or below, so
    that a helper beside the trainer counts, but nothing of trn: its version is recorded instead. One of its own trainers
    stands alone.
    """
    module = sys.modules[module_name]
    own = getattr(module, "__file__", None)
    if own is None or not os.path.isfile(own):  # typed in, or read from standard input
        return []
    top = module_name.partition(".")[0]
    if top == "trn":
        return [Path(own)]
    is_package = hasattr(sys.modules[top], "__path__")
    # two thousand modules may be loaded: names and text first, resolving only what may belong
    beside = os.path.dirname(own) + os.sep
    files = {Path(own).resolve()}
    for name, loaded in list(sys.modules.items()):
        given = getattr(loaded, "__file__", None)
        if given is None or not given.endswith(".py") or name.partition(".")[0] == "trn":
            continue
        is_member = is_package and (name == top or name.startswith(f"{top}."))
        is_neighbour = not is_package and given.startswith(beside) and "site-packages" not in given[len(beside) :]
        if is_member or is_neighbour:
            files.add(Path(given).resolve())
    return sorted(files)


def code_sha256(module_name: str) -> str:
    """Hex sha256 over the names (relative to their common folder) and contents of `code_files`."""
    return files_sha256(code_files(module_name))


def files_sha256(files: Sequence[Path]) -> str:
    """The same of any files, sorted."""
    digest = hashlib.sha256()
    root = files[0].parent if files else Path()
    while files and not all(root in path.parents for path in files):
        root = root.parent
    for path in files:
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def library_versions(extra: Iterable[str] = ()) -> dict[str, str]:
    """Versions that numbers depend on: python, trn, torch, numpy, pyarrow and `extra`; "absent" where not installed."""
    found = {"python": platform.python_version(), "trn": _version("trn-runtime")}
    return found | {name: _version(name) for name in (*_LIBRARIES, *extra)}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
