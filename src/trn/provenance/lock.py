"""Which dependencies were installed, as one hash, and which files asked for them."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from trn.files import sha256_file
from trn.provenance.git import repository_root
from trn.provenance.redact import encodable

__all__ = ["dependency_lock", "installed_packages", "requirements_files"]

_PATTERNS = ("requirements*.txt", "constraints*.txt", "pyproject.toml", "*.lock")


def dependency_lock(code_folder: Path) -> dict[str, Any]:
    """`{python_version, package_count, package_set_sha256, requirements_files_sha256}` of this process and this code.

    The package set is the sorted, normalised `name==version` lines of `installed_packages`, each ended by a newline.
    """
    packages = installed_packages()
    lines = "".join(f"{line}\n" for line in packages)
    return {
        "python_version": platform.python_version(),
        "package_count": len(packages),
        "package_set_sha256": hashlib.sha256(lines.encode()).hexdigest(),
        "requirements_files_sha256": requirements_files(code_folder),
    }


def installed_packages(found: Iterable[Distribution] | None = None) -> list[str]:
    """Sorted `name==version` lines of all that is installed; the first on the import path counts where two are found.

    Names are normalised as PEP 503 says. Broken remains of an installation, without a name, are left out.
    """
    versions: dict[str, str] = {}
    for distribution in distributions() if found is None else found:
        head = distribution.metadata  # parsed anew each time it is asked for
        # asked first: a backport of this library, which others may have put in its place, raises for what is not there
        name = head["Name"] if "Name" in head else None  # noqa: SIM401 - not all of them have `get`
        version = head["Version"] if "Version" in head else None  # noqa: SIM401
        if name and version:
            versions.setdefault(re.sub(r"[-_.]+", "-", name).lower(), version)
    return sorted(f"{name}=={version}" for name, version in versions.items())


def requirements_files(code_folder: Path) -> dict[str, str | None]:
    """sha256 of each file that names dependencies, in the code's folder and at the root of its repository.

    Keys are paths relative to that root (to the folder, outside a repository); null where a file cannot be read.
    """
    folder = Path(os.path.realpath(code_folder))
    root = repository_root(folder) or folder
    paths = {path for place in (root, folder) for pattern in _PATTERNS for path in place.glob(pattern)}
    named = {
        encodable(path.relative_to(root).as_posix()): path
        for path in paths
        if os.path.isfile(path) and path.name[0] != "."
    }
    return {name: _digest(named[name]) for name in sorted(named)}


def _digest(path: Path) -> str | None:
    try:
        return sha256_file(path)
    except OSError:
        return None
