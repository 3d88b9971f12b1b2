"""The subprocess contract: written whole and private, read strictly, frozen as `trn schema contract`."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from trn import files
from trn.doors.schemas import schema_of
from trn.errors import StorageError, UsageError
from trn.launch.contract import CONTRACT_VERSION, TrainerSubprocessContractV1, read_contract, write_contract

GOOD = {
    "contract_version": "v1",
    "trainer_plugin": "trainer:Mine",
    "job_spec_path": "/runs/.trn/worker/demo/job_spec.json",
    "arrow_ipc_path": "/runs/.trn/arrow/k.arrow",
    "checkpoints_dir": "/runs/demo/checkpoints",
    "samples_dir": "/runs/demo/samples",
    "events_path": "/runs/demo/reports/events.jsonl",
}


def written(path: Path, value: Any) -> Path:
    """The value as JSON, or bytes as they are, in a private file."""
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    path.chmod(0o600)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as refused:
        read_contract(path)
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)
    return str(refused.value)


def test_what_is_written_is_read_again_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    path, contract = tmp_path / "contract.json", TrainerSubprocessContractV1(**GOOD)
    before = os.umask(0)
    try:
        write_contract(path, contract)
    finally:
        os.umask(before)
    assert read_contract(path) == contract
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_bytes()) == GOOD


def test_the_contract_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "contract.json"
    files.set_fault("op=rename,n=1,do=enospc,path=contract.json")
    try:
        with pytest.raises(StorageError):
            write_contract(path, TrainerSubprocessContractV1(**GOOD))
    finally:
        files.set_fault(None)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_that_would_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "contract.json"
    for name, text in (("job_spec_path", "job.json"), ("trainer_plugin", ""), ("samples_dir", "/a\0b")):
        with pytest.raises(UsageError, match=name):
            write_contract(path, TrainerSubprocessContractV1(**{**GOOD, name: text}))
    with pytest.raises(UsageError, match="UTF-8"):
        write_contract(path, TrainerSubprocessContractV1(**{**GOOD, "samples_dir": os.fsdecode(b"/\xff")}))
    assert not path.exists()


def test_no_decoded_data_is_the_empty_text(tmp_path: Path) -> None:
    assert read_contract(written(tmp_path / "c.json", GOOD | {"arrow_ipc_path": ""})).arrow_ipc_path == ""


@pytest.mark.parametrize(
    ("version", "said"), [(None, "found null"), ("v2", "found 'v2'"), (1, "found 1"), ("V1", "found 'V1'")]
)
def test_any_other_version_is_refused(tmp_path: Path, version: object, said: str) -> None:
    line = refusal(written(tmp_path / "c.json", GOOD | {"contract_version": version}))
    assert line.startswith("usage error [usage] at ")
    assert f"contract_version: expected 'v1', {said}" in line


def test_a_missing_version_is_refused(tmp_path: Path) -> None:
    value = {name: one for name, one in GOOD.items() if name != "contract_version"}
    assert "contract_version is missing, expected 'v1'" in refusal(written(tmp_path / "c.json", value))


def test_another_version_is_said_before_its_unknown_fields(tmp_path: Path) -> None:
    value = {"contract_version": "v2", "other": 1}
    assert "expected 'v1', found 'v2'" in refusal(written(tmp_path / "c.json", value))


def test_an_unknown_field_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    line = refusal(written(tmp_path / "c.json", GOOD | {"arow_ipc_path": ""}))
    assert "unknown field 'arow_ipc_path'. Did you mean 'arrow_ipc_path'?" in line
    assert "Its fields are contract_version, " in refusal(written(tmp_path / "c.json", GOOD | {"zzz": ""}))


@pytest.mark.parametrize("name", sorted(set(GOOD) - {"contract_version"}))
def test_every_field_is_required_and_is_text(tmp_path: Path, name: str) -> None:
    value = {key: one for key, one in GOOD.items() if key != name}
    assert f"missing {name};" in refusal(written(tmp_path / "c.json", value))
    for wrong, kind in ((None, "null"), (3, "int"), (True, "bool"), (["/a"], "list")):
        assert f"{name}: expected text, found {kind}." in refusal(written(tmp_path / "c.json", GOOD | {name: wrong}))
    if name != "trainer_plugin":
        assert f"{name}: expected an absolute path" in refusal(written(tmp_path / "c.json", GOOD | {name: "here"}))
    if name != "arrow_ipc_path":
        assert f"{name}: expected some text" in refusal(written(tmp_path / "c.json", GOOD | {name: ""}))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "expected one object of strict JSON"),
        (b"no json", "expected one object of strict JSON"),
        (b"[]", "expected a JSON object, found list"),
        (b"null", "expected a JSON object, found null"),
        (json.dumps(GOOD).replace("}", ', "samples_dir": "/x"}').encode(), "samples_dir"),
        (json.dumps(GOOD).encode()[:-1], "expected one object of strict JSON"),
        (b"\xff\xfe", "expected one object of strict JSON"),
        (b'{"contract_version": ' + b"[" * 5000 + b"]" * 5000 + b"}", "expected one object of strict JSON"),
        (json.dumps(GOOD).encode() + b" " * (64 << 10), "expected at most 65,536 bytes"),
    ],
)
def test_what_is_no_contract_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    assert said in refusal(written(tmp_path / "c.json", content))


def test_a_file_that_others_can_read_or_write_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "c.json", GOOD)
    for mode in (0o640, 0o602, 0o644, 0o666):
        path.chmod(mode)
        assert f"found mode {mode:04o} of user" in refusal(path)


def test_links_folders_pipes_and_nothing_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(written(tmp_path / "c.json", GOOD))
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "cannot be read: Too many levels of symbolic links" in refusal(tmp_path / "link")
    assert "expected a plain file" in refusal(tmp_path / "pipe")
    assert "plain file" in refusal(tmp_path)
    assert "cannot be read: No such file" in refusal(tmp_path / "none")


def test_the_shape_of_version_1_is_frozen() -> None:
    assert CONTRACT_VERSION == "v1"
    assert [one.name for one in fields(TrainerSubprocessContractV1)] == list(GOOD)
    schema = schema_of("contract")
    assert schema["required"] == list(GOOD)
    assert schema["additionalProperties"] is False
    check = Draft202012Validator(schema)
    assert check.is_valid(asdict(TrainerSubprocessContractV1(**GOOD)))
    assert check.is_valid(GOOD | {"arrow_ipc_path": ""})
    for name in GOOD:
        assert not check.is_valid({key: one for key, one in GOOD.items() if key != name})
        assert not check.is_valid(GOOD | {name: None})
        assert not check.is_valid(GOOD | {name: "relative"}) or name == "trainer_plugin"
    assert not check.is_valid(GOOD | {"more": ""})
    assert not check.is_valid(GOOD | {"contract_version": "v2"})
