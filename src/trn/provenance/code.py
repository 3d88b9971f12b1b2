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

__all__ = ["code_files", "code_sha256", "files_sha256", "folder_of", "is_below", "library_versions"]

_LIBRARIES = ("torch", "numpy", "pyarrow")


def code_files(module_name: str) -> list[Path]:
    """The source files that belong to an imported trainer, sorted: its package, or the modules beside it.

    For `pkg.sub.mod` all loaded modules of `pkg`; for a plain `mod` all loaded modules from its folder or below, so
    that a helper beside the trainer counts, but nothing of trn: its version is recorded instead. One of trn's trainers
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
    beside = folder_of(own)
    files = {Path(own).resolve()}
    folders: dict[str, str] = {}  # two thousand modules may be loaded, from a few hundred folders
    for name, loaded in list(sys.modules.items()):
        given = getattr(loaded, "__file__", None)
        if given is None or not given.endswith(".py") or name.partition(".")[0] == "trn":
            continue
        is_member = is_package and (name == top or name.startswith(f"{top}."))
        # a name that is relative is made up, as that of torch.classes is: an import gives absolute ones
        is_placed = not is_package and os.path.isabs(given)
        if is_member or (is_placed and is_below(folder_of(given, folders), beside)):
            files.add(Path(given).resolve())
    return sorted(files)


def folder_of(file: str, known: dict[str, str] | None = None) -> str:
    """The real folder that holds the name `file`, with a slash at its end; a file that is a link may lie elsewhere.

    `known` keeps the answers.
    """
    name = os.path.dirname(file)
    known = {} if known is None else known
    if name not in known:
        known[name] = os.path.join(os.path.realpath(name), "")
    return known[name]


def is_below(folder: str, beside: str) -> bool:
    """Whether modules of `folder` are those of a trainer in the folder `beside`; what is installed there is not."""
    return folder.startswith(beside) and "site-packages" not in folder[len(beside) :]


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
