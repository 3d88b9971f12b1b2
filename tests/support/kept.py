"""The keeper of a job and the server of the queue in processes of their own, with a stand-in for the runner.

    python kept.py keeper --runs-dir DIR --job-id J     TRN_TEST_DIE=lock|row|child: killed right after that
    python kept.py server --runs-dir DIR --until-empty

What the stand-in does is said in the request's arguments, or for all jobs in TRN_TEST_THEN.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.stand_in import SCRIPT as STAND_IN
from trn.devices import Want
from trn.doors import apart, keeper, queue_server, staying
from trn.jobs import Store, open_store
from trn.jobs.request import Request, write_request
from trn.records import JobRow, new_job_id, utc_now

SCRIPT = Path(__file__)


def _runner(job_id: str) -> list[str]:
    then = os.environ.get("TRN_TEST_THEN")
    runner = os.environ.get("TRN_TEST_RUNNER", str(STAND_IN))
    return [sys.executable, "-u", runner, "--job-id", job_id, *(["--then", then] if then else [])]


def _keeper(python: str) -> list[str]:
    return [python, str(SCRIPT), "keeper"]


def _server(runs_dir: Path) -> list[str]:
    return [sys.executable, str(SCRIPT), "server", "--runs-dir", str(runs_dir), "--until-empty"]


_STAND_INS: list[tuple[Any, str, Callable[..., list[str]]]] = [
    (staying, "_runner", _runner),
    (keeper, "_keeper", _keeper),
    (apart, "_server", _server),
]


def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From now on this process, and what it starts, has stand-ins for runners, and leases of its own."""
    for place, name, function in _STAND_INS:
        monkeypatch.setattr(place, name, function)
    monkeypatch.setenv("PYTHONPATH", str(SCRIPT.parents[1]))
    monkeypatch.setenv("TRN_LEASES_DIR", str(tmp_path / "leases"))


def request_of(runs_dir: Path, run_id: str, *then: str, **changes: Any) -> Request:
    """A request for a job whose stand-in does `then`."""
    request = Request(
        job_id=new_job_id(),
        run_id=run_id,
        submitted_at=utc_now(),
        config_path="/spec.yaml",
        arguments=("--run-dir", str(runs_dir / run_id), *(("--then", *then) if then else ())),
        python=sys.executable,
        cwd=str(runs_dir.parent),
        environ={name: text for name, text in os.environ.items() if name not in ("LS_COLORS",)},
    )
    return replace(request, **changes)


def enqueue(store: Store, run_id: str, *then: str, want: Want | None = None, **changes: Any) -> JobRow:
    """Put a job into the queue, as its door does once it is planned."""
    request = request_of(store.runs_dir, run_id, *then, want=want or Want(), **changes)
    row = request.new_row(store.runs_dir, "submitted")
    store.add(row)
    write_request(store.runs_dir, request)
    return store.advance(row.job_id, "queued")


def row_of(runs_dir: Path, job_id: str) -> JobRow:
    with open_store(runs_dir) as store:
        row = store.get(job_id)
    assert row is not None
    return row


def left(runs_dir: Path) -> set[str]:
    """The files in the folder, without the job store and the jobs' own logs of what happened to them."""
    files = (path.relative_to(runs_dir) for path in runs_dir.rglob("*") if path.is_file())
    return {str(one) for one in files if one.stem != "jobs" and one.suffix != ".jsonl"}


def _die(*arguments: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def _dying_after(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        function(*arguments, **named)
        time.sleep(0.2)  # the child is to come so far that it can go on alone
        return _die()

    return call


def main() -> None:
    for place, name, function in _STAND_INS:
        setattr(place, name, function)
    what = sys.argv.pop(1)
    if what == "keeper":
        from trn.launch import LocalLauncher

        places: dict[str, tuple[Any, str]] = {
            "lock": (keeper, "attend"),
            "row": (keeper, "_taken_row"),
            "child": (LocalLauncher, "start"),
        }
        if place := places.get(os.environ.get("TRN_TEST_DIE", "")):
            setattr(*place, _dying_after(getattr(*place)))
    sys.exit({"keeper": keeper, "server": queue_server}[what].main())  # type: ignore[attr-defined]  # both have one


if __name__ == "__main__":
    main()
