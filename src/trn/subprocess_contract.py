"""What the worker hands to the process that trains a stranger's trainer: one small file, docs/formats/contract.md.

    worker ──write_contract──> contract.json ──read_contract──> python -m trn.runner --contract FILE

It names a trainer, a settled spec, the decoded data and the folders of the run, and nothing else: whatever it says the
reader holds against the spec and the run. Version v1 has these seven fields and no others; another shape is another
version. Not here: what the spec says (trn.spec), and what becomes of it (trn.runner.contracted).
"""

from __future__ import annotations

import difflib
import os
import stat
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from trn.errors import UsageError
from trn.files import write_atomic
from trn.records import JsonError, from_json, pretty_json

__all__ = ["CONTRACT_VERSION", "TrainerSubprocessContractV1", "read_contract", "write_contract"]

CONTRACT_VERSION = "v1"
_MOST_BYTES = 64 << 10
_MAY_BE_EMPTY = "arrow_ipc_path"


@dataclass(frozen=True)
class TrainerSubprocessContractV1:
    """Paths are absolute."""

    contract_version: str
    trainer_plugin: str
    """The trainer, as the spec names it."""
    job_spec_path: str
    """The settled spec."""
    arrow_ipc_path: str
    """The training data, decoded (docs/formats/cache.md); "": they are read as the spec says."""
    checkpoints_dir: str
    samples_dir: str
    events_path: str
    """These three are the run's own."""


_FIELDS = tuple(one.name for one in fields(TrainerSubprocessContractV1))


def write_contract(path: Path, contract: TrainerSubprocessContractV1) -> None:
    """The file is whole or absent, and its owner's alone. Raises StorageError; UsageError for what none would read."""
    value = asdict(contract)
    _check(value, str(path))
    write_atomic(path, pretty_json(value))


def read_contract(path: Path) -> TrainerSubprocessContractV1:
    """The contract in the file, which nobody else can have written or read. Raises UsageError."""
    where = str(path)
    try:
        value = from_json(_read(path))
    except OSError as error:
        raise UsageError(f"the contract cannot be read: {error.strerror or error}.", where=where) from error
    except JsonError as error:
        raise UsageError(f"expected one object of strict JSON: {error}.", where=where) from error
    if not isinstance(value, dict):
        raise UsageError(f"expected a JSON object, found {_kind(value)}.", where=where)
    _check(value, where)
    return TrainerSubprocessContractV1(**value)


def _read(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        _require_private(os.fstat(fd), str(path))
        with open(fd, "rb", closefd=False) as stream:
            data = stream.read(_MOST_BYTES + 1)
    finally:
        os.close(fd)
    if len(data) > _MOST_BYTES:
        raise UsageError(f"expected at most {_MOST_BYTES:,} bytes.", where=str(path))
    return data


def _require_private(found: os.stat_result, where: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise UsageError("expected a plain file.", where=where)
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise UsageError(
            f"expected a file that is this user's alone, since it names what is run; found mode"
            f" {stat.S_IMODE(found.st_mode):04o} of user {found.st_uid}.",
            where=where,
            hint="Let the worker write it, with mode 0600.",
        )


def _check(value: dict[str, Any], where: str) -> None:
    """The version first: of another one, nothing else is known."""
    if "contract_version" not in value:
        raise UsageError(f"contract_version is missing, expected {CONTRACT_VERSION!r}.", where=where)
    if value["contract_version"] != CONTRACT_VERSION:
        raise UsageError(
            f"contract_version: expected {CONTRACT_VERSION!r}, found {_shown(value['contract_version'])}.",
            where=where,
            hint="Worker and trainer need the same version of trn.",
        )
    if unknown := sorted(set(value) - set(_FIELDS)):
        near = difflib.get_close_matches(unknown[0], _FIELDS, 1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Its fields are {', '.join(_FIELDS)}."
        raise UsageError(f"unknown field {_shown(unknown[0])}.", where=where, hint=hint)
    if missing := [name for name in _FIELDS if name not in value]:
        raise UsageError(f"missing {', '.join(missing)}; all fields are required.", where=where)
    for name in _FIELDS:
        _check_text(name, value[name], where)


def _check_text(name: str, text: Any, where: str) -> None:
    if not isinstance(text, str):
        raise UsageError(f"{name}: expected text, found {_kind(text)}.", where=where)
    if not text and name != _MAY_BE_EMPTY:
        raise UsageError(f"{name}: expected some text, found none.", where=where)
    if "\0" in text or text != text.encode(errors="replace").decode():
        raise UsageError(f"{name}: expected UTF-8 without zero bytes, found {ascii(text)[:80]}.", where=where)
    if text and name.endswith(("_path", "_dir")) and not os.path.isabs(text):
        raise UsageError(f"{name}: expected an absolute path, found {_shown(text)}.", where=where)


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
