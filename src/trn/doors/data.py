"""`trn data`: which program does the work, that of the files alone or that of a spec."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

__all__ = ["program_of"]

_OF_SPECS = ("inspect", "validate", "cache")
_MOST_BYTES = 64 << 20
_MANIFEST_KEYS = {"fingerprint", "files", "rows"}


def program_of(arguments: Sequence[str]) -> str:
    """The module behind `trn data ARGUMENTS`: a verb over a spec has to find its trainer, all else needs no such thing.

    A spec ends in .yaml, .yml or .toml, or in .json and is not the manifest of a data set.
    """
    has_spec = arguments[:1] and arguments[0] in _OF_SPECS and any(map(_is_spec, arguments[1:]))
    return "trn.plan" if has_spec else "trn.feed"


def _is_spec(argument: str) -> bool:
    path = Path(argument)
    if argument.startswith("-") or path.suffix.lower() not in (".yaml", ".yml", ".toml", ".json"):
        return False
    return path.suffix.lower() != ".json" or not _is_manifest(path)


def _is_manifest(path: Path) -> bool:
    try:
        if "://" in str(path) or not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return True
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return True
    return isinstance(value, dict) and value.keys() >= _MANIFEST_KEYS
