"""What the tests of the spec share: a good spec, files to write, and a look at the problems of a bad one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trn.errors import Problem, SpecError
from trn.spec import LoadedSpec, load_spec

GOOD = """\
config_version: 1
trainer: lm
dataset: {parquet_paths: [data/*.parquet]}
seed: 42
device: cpu
precision: none
ddp: false
max_steps: 1000
"""

Write = Callable[..., Path]
Load = Callable[..., LoadedSpec]
Refuse = Callable[..., list[Problem]]


@pytest.fixture
def good() -> str:
    """The text of a good spec."""
    return GOOD


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file into the test's folder, by default a good spec and whatever follows it."""

    def write_one(more: str | bytes = "", name: str = "spec.yaml", *, good: bool = True) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = more if isinstance(more, bytes) else ((GOOD if good else "") + more).encode()
        path.write_bytes(data)
        return path

    return write_one


@pytest.fixture
def load(write: Write) -> Load:
    """Loads a good spec and whatever follows it."""

    def load_one(more: str = "", **options: Any) -> LoadedSpec:
        return load_spec(write(more), **options)

    return load_one


@pytest.fixture
def refuse() -> Refuse:
    """The problems of a spec that must be refused."""

    def problems_of(path: Path, **options: Any) -> list[Problem]:
        with pytest.raises(SpecError) as caught:
            load_spec(path, **options)
        return list(caught.value.problems)

    return problems_of


@pytest.fixture
def without_key() -> Callable[[str], str]:
    """The good spec without one of its keys."""

    def remove(key: str) -> str:
        return "".join(line for line in GOOD.splitlines(keepends=True) if not line.startswith(f"{key}:"))

    return remove
