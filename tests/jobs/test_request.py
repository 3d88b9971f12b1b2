"""Requests in files: what is written comes back, and what cannot be used is refused as a whole."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trn.devices import Want
from trn.errors import StorageError
from trn.jobs import open_store
from trn.jobs.request import Request, read_request, request_path, sweep_requests, write_request

REQUEST = Request(
    job_id="job-1",
    run_id="demo",
    submitted_at="2026-11-22T09:30:00.000000Z",
    config_path="/spec.yaml",
    arguments=("--run-dir", "/runs/demo"),
    python="/usr/bin/python3",
    cwd="/home/me",
    argv=("trn", "run", "--queue"),
    nproc=2,
    want=Want(count=1, cpus=3),
    max_restarts=2,
    grace_s=5.0,
    allow_change=("lr",),
    environ={"HOME": "/home/me", "NAME": "Zoë"},
    left_out=("HF_TOKEN",),
)


def test_a_request_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_request(tmp_path, REQUEST)
    assert read_request(tmp_path, "job-1") == REQUEST
    assert request_path(tmp_path, "job-1").stat().st_mode & 0o777 == 0o600
    bare = replace(REQUEST, environ=None, left_out=(), want=Want(accelerators=("cuda:1",)))
    write_request(tmp_path, bare)
    assert read_request(tmp_path, "job-1") == bare


def test_what_was_left_out_is_the_starters_and_nothing_else(tmp_path: Path) -> None:
    starter = {"HF_TOKEN": "theirs", "HOME": "/home/you", "OTHER": "1"}
    assert REQUEST.environ_of(starter) == {"HOME": "/home/me", "NAME": "Zoë", "HF_TOKEN": "theirs"}
    assert REQUEST.environ_of({}) == {"HOME": "/home/me", "NAME": "Zoë"}
    assert replace(REQUEST, environ=None).environ_of(starter) == starter


def test_its_row_says_by_what_it_is_started(tmp_path: Path) -> None:
    row = REQUEST.new_row(tmp_path, "queued")
    assert (row.state, row.launcher, row.run_dir) == ("queued", "torchrun", str(tmp_path / "demo"))
    assert replace(REQUEST, nproc=1).new_row(tmp_path, "queued").launcher == "local"


def edited(**changes: Any) -> Callable[[dict[str, Any]], bytes]:
    return lambda value: json.dumps({**value, **changes}).encode()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda value: json.dumps(value).encode()[:-20], "is damaged"),
        (lambda value: b"", "is damaged"),
        (lambda value: b"[]", "holds no JSON object"),
        (edited(schema_version=2), "expected schema_version 1, found 2"),
        (edited(extra=1), "unknown extra"),
        (lambda value: json.dumps({key: value[key] for key in value if key != "cwd"}).encode(), "missing cwd"),
        (edited(arguments="--run-dir /"), "arguments is not what it should be"),
        (edited(arguments=["a\0b"]), "arguments is not what it should be"),
        (edited(environ={"A=B": "1"}), "environ is not what it should be"),
        (edited(environ={"A": 1}), "environ is not what it should be"),
        (edited(max_restarts=-1), "max_restarts is not what it should be"),
        (edited(max_restarts=True), "max_restarts is not what it should be"),
        (edited(run_id="../../x"), "run_id is not what it should be"),
        (edited(want={"devices": [], "device_count": "1", "cpus": 0}), "want.device_count is not what it should be"),
        (edited(layout=[1]), "layout is no object"),
        (edited(job_id="job-2"), "is of another job, job-2"),
    ],
)
def test_what_is_damaged_is_refused_with_the_reason(
    tmp_path: Path, damage: Callable[[dict[str, Any]], bytes], said: str
) -> None:
    write_request(tmp_path, REQUEST)
    path = request_path(tmp_path, "job-1")
    path.write_bytes(damage(REQUEST.to_json()))
    with pytest.raises(StorageError, match=said) as found:
        read_request(tmp_path, "job-1")
    assert "\n" not in str(found.value)


def test_what_another_could_have_written_is_not_started(tmp_path: Path) -> None:
    write_request(tmp_path, REQUEST)
    path = request_path(tmp_path, "job-1")
    path.chmod(0o666)
    with pytest.raises(StorageError, match="only its submitter can write"):
        read_request(tmp_path, "job-1")
    path.chmod(0o600)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="only its submitter can write"):
        read_request(tmp_path, "job-1")


def test_a_missing_request_and_a_strange_id_are_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is gone"):
        read_request(tmp_path, "job-1")
    with pytest.raises(StorageError, match="no job id"):
        read_request(tmp_path, "../x")


def test_only_what_nobody_needs_any_more_is_swept(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        for job_id, state in (("waits", "queued"), ("ended", "completed"), ("lost", "lost")):
            one = replace(REQUEST, job_id=job_id)
            store.add(replace(one.new_row(tmp_path, "submitted"), run_id=job_id))
            store.advance(job_id, state)
            write_request(tmp_path, one)
        for job_id in ("coming", "never"):
            write_request(tmp_path, replace(REQUEST, job_id=job_id))
        os.utime(request_path(tmp_path, "never"), (time.time() - 7200, time.time() - 7200))
        sweep_requests(store)
    left = sorted(path.stem for path in (tmp_path / ".trn" / "queue").iterdir())
    assert left == ["coming", "waits"]
