"""A loop of one's own, and others: `trn cancel` asks it to end, and a run that was taken from it is left alone."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import trn
from support.compare import outcome
from support.own_loop import logged, open_and
from trn.files import Holder, Lock, holder_note
from trn.jobs.cancelling import ask_to_cancel
from trn.records import cancel_path
from trn.runner.fence import RunTaken

Spec = dict[str, Any]


def job_of(tmp_path: Path) -> str:
    return Holder.read((tmp_path / "run/.lock").read_text()).job_id


def test_it_is_cancelled_after_its_step_and_goes_on_where_it_was(spec: Spec, tmp_path: Path) -> None:
    def work(run: trn.Run) -> None:
        for _ in run.feed:
            run.log(train_loss=1.0)
            if run.step == 3:
                ask_to_cancel(tmp_path, job_of(tmp_path), now=False)
                deadline_s = time.monotonic() + 10.0
                while not run.should_stop and time.monotonic() < deadline_s:
                    time.sleep(0.01)

    run = open_and(spec, tmp_path, work)
    assert run.outcome is not None
    assert (run.outcome.status, run.outcome.step, run.outcome.reason) == ("cancelled", 3, "`trn cancel` asked for it")
    assert run.outcome.checkpoint is not None
    assert run.outcome.checkpoint["step"] == 3
    assert not any(thread.name == "trn-cancel" for thread in threading.enumerate())
    assert not cancel_path(tmp_path, run.outcome.job_id).exists()

    assert open_and(spec, tmp_path, logged, resume="must").exit_code == 0


def test_a_run_that_another_one_took_is_not_written_any_more(spec: Spec, tmp_path: Path) -> None:
    taken = Lock(tmp_path / "run/.lock")

    def work(run: trn.Run) -> None:
        for _ in run.feed:
            if run.step == 2:
                shutil.copy(taken.path, tmp_path / "copy")
                os.replace(tmp_path / "copy", taken.path)
                assert taken.acquire(holder_note("job-next"))
                time.sleep(0.3)
            run.log(train_loss=1.0)

    with pytest.raises(RunTaken, match="job=job-next"):
        open_and(spec, tmp_path, work)
    assert not (tmp_path / "run/reports/outcome.json").exists()
    assert (tmp_path / "run/reports/train_metrics.jsonl").read_bytes().count(b"\n") == 1
    taken.release()

    assert open_and(spec, tmp_path, logged, resume="must").exit_code == 0
    assert outcome(tmp_path / "run")["step"] == 8
