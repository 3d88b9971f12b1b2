"""The mirror of the log: what of it lands in logs/train.log, and what may never happen because of it."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.compare import assert_identical, outcome
from support.forkserver import ForkServer
from support.job import command, write_job
from trn.files import set_fault
from trn.runner.console import say
from trn.runner.mirror import Mirror, mirroring
from trn.runner.output import MaskedOutput
from trn.spec.plan_model import LogPlan

SECRET = "planted-in-the-environment-7"
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z ")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    yield
    set_fault(None)


def plan(*, stdout: bool = False, stderr: bool = False, enabled: bool = True) -> LogPlan:
    return LogPlan(enabled=enabled, filename="train.log", capture_stdout=stdout, capture_stderr=stderr)


@contextlib.contextmanager
def mirror(folder: Path, log: LogPlan | None = None) -> Iterator[Mirror]:
    with mirroring(log or plan(), folder) as one:
        assert one is not None
        one.admit()
        yield one


def written(folder: Path) -> list[str]:
    """The lines without their times, which all have one."""
    found = (folder / "logs/train.log").read_text().splitlines()
    assert all(STAMP.match(line) for line in found), found
    return [line[28:] for line in found]


@contextlib.contextmanager
def logger(name: str, **attributes: Any) -> Iterator[logging.Logger]:
    """A logger that is as before afterwards."""
    one = logging.getLogger(name)
    before = {key: getattr(one, key) for key in ("level", "propagate")}
    try:
        for key, value in attributes.items():
            setattr(one, key, value)
        yield one
    finally:
        for key, value in before.items():
            setattr(one, key, value)


# records


def test_records_of_every_logger_land_with_their_level_and_name(tmp_path: Path) -> None:
    with logger("mirrored.alone", propagate=False) as alone, mirror(tmp_path):
        logging.getLogger("mirrored.lib").info("loaded %d of %s", 3, "them")
        logging.getLogger("mirrored.lib").debug("too fine")
        alone.warning("does not propagate")
        logging.getLogger("mirrored.lib").info("")
        logging.getLogger().error("of the root")
    assert written(tmp_path) == [
        "INFO     mirrored.lib: loaded 3 of them",
        "WARNING  mirrored.alone: does not propagate",
        "ERROR    root: of the root",
    ]


def test_a_logger_with_a_level_of_its_own_is_taken_at_its_word(tmp_path: Path) -> None:
    with logger("mirrored.fine", level=logging.DEBUG) as fine, mirror(tmp_path):
        fine.debug("every detail")
    assert written(tmp_path) == ["DEBUG    mirrored.fine: every detail"]


def test_a_record_with_a_traceback_keeps_it(tmp_path: Path) -> None:
    with mirror(tmp_path):
        try:
            raise ValueError(f"with {SECRET}")
        except ValueError:
            logging.getLogger("mirrored").exception("failed")
    text = (tmp_path / "logs/train.log").read_text()
    assert "ERROR    mirrored: failed\nTraceback" in text
    assert text.endswith("ValueError: with ***\n")


def test_a_record_whose_arguments_do_not_fit_does_not_end_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    with mirror(tmp_path):
        logging.getLogger("mirrored").info("%d of %d", 1)
    assert written(tmp_path) == ["INFO     mirrored: '%d of %d'"]


def test_warnings_and_what_the_runner_says_land_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def speak() -> None:
        with mirror(tmp_path):
            warnings.warn("old", UserWarning, stacklevel=1)
            say(f"warning: {SECRET} is short")

    with pytest.warns(UserWarning, match="old"):
        speak()
    found = (tmp_path / "logs/train.log").read_text()
    assert found.count("UserWarning: old") == 1
    assert "WARNING  py.warnings: " in found
    assert found.endswith("SAID     trn: warning: *** is short\n")
    assert "is short" in capsys.readouterr().err


SEEN = """
import logging, sys, warnings
from pathlib import Path
from trn.runner.mirror import mirroring
from trn.runner.output import mask_output
from trn.spec.plan_model import LogPlan

mask_output()
def speak():
    logging.getLogger("lib").info("info")
    logging.getLogger("lib").warning("without a handler")
    warnings.warn("old thing")
    logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")
    logging.getLogger("lib").info("with a handler")
    print("printed")

class Tee:
    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        return self.stream.write(text)

    def flush(self):
        self.stream.flush()

sys.stdout = Tee(sys.stdout)  # as a trainer's module may do it while it is imported
if len(sys.argv) > 1:
    log = LogPlan(enabled=True, filename="train.log", capture_stdout=True, capture_stderr=True)
    with mirroring(log, Path(sys.argv[1])) as mirror:
        mirror.admit()
        speak()
else:
    speak()
"""


@pytest.mark.slow
def test_what_is_seen_outside_is_the_same_with_the_mirror_and_without(tmp_path: Path) -> None:
    def seen(*arguments: str) -> tuple[str, str]:
        done = subprocess.run(
            [sys.executable, "-c", SEEN, *arguments], capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout, done.stderr

    plain, mirrored = seen(), seen(str(tmp_path))
    assert mirrored == plain
    assert "without a handler\n" in plain[1]
    assert "lib with a handler\n" in plain[1]
    assert "lib info" not in plain[1]
    found = written(tmp_path)
    assert "INFO     lib: info" in found
    assert "stdout   printed" in found
    assert sum("old thing" in line for line in found) == 1


# what is printed


@contextlib.contextmanager
def streams() -> Iterator[None]:
    """Both streams as the runner has them, masked."""
    before = sys.stdout, sys.stderr
    masked: Any = [MaskedOutput(io.BytesIO()) for _ in before]
    sys.stdout, sys.stderr = (io.TextIOWrapper(one, "utf-8", write_through=True) for one in masked)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def test_what_is_printed_lands_line_by_line_where_it_was_asked_for(tmp_path: Path) -> None:
    with streams(), mirror(tmp_path, plan(stdout=True)):
        print(f"with {SECRET}")
        print("in", end=" ", flush=True)
        print("pieces\nand two lines")
        for percent in range(0, 101, 10):
            print(f"\r{percent}%", end="", flush=True)
        print(" done")
        print("not asked for", file=sys.stderr)
        print("no end", end="", flush=True)
    assert written(tmp_path) == [
        "stdout   with ***",
        "stdout   in pieces",
        "stdout   and two lines",
        "stdout   100% done",
        "stdout   no end",
    ]


def test_both_streams_may_be_captured_and_nothing_is_doubled(tmp_path: Path) -> None:
    with streams(), mirror(tmp_path, plan(stdout=True, stderr=True)):
        print("out")
        print("err", file=sys.stderr)
        say("said")
    assert written(tmp_path) == ["stdout   out", "stderr   err", "SAID     trn: said"]


def test_afterwards_nothing_lands_any_more(tmp_path: Path) -> None:
    before = logging.getLogRecordFactory(), logging.getLogger().level, warnings.showwarning
    with streams():
        with mirror(tmp_path, plan(stdout=True)):
            pass
        print("late")
        logging.getLogger("mirrored").error("late")
    assert written(tmp_path) == []
    assert (logging.getLogRecordFactory(), logging.getLogger().level, warnings.showwarning) == before


# the file


def test_a_job_that_goes_on_appends_after_a_torn_line(tmp_path: Path) -> None:
    with mirror(tmp_path) as one:
        one.text("INFO", "first", "job")
    with open(tmp_path / "logs/train.log", "ab") as stream:
        stream.write(f"{'2026-11-22T09:16:44.608308Z'} INFO     killed with".encode())
    with mirror(tmp_path) as one:
        one.text("INFO", "second", "job")
    assert written(tmp_path) == ["INFO     first: job", "INFO     killed with", "INFO     second: job"]


def test_before_the_job_is_admitted_nothing_is_written(tmp_path: Path) -> None:
    with mirroring(plan(), tmp_path):
        logging.getLogger("mirrored").error("refused soon")
    assert list(tmp_path.iterdir()) == []
    with mirroring(plan(), tmp_path) as one:
        logging.getLogger("mirrored").error("early")
        assert one is not None
        one.admit()
    assert written(tmp_path) == ["ERROR    mirrored: early"]


def test_a_mirror_that_is_not_wanted_takes_nothing(tmp_path: Path) -> None:
    with mirroring(plan(enabled=False), tmp_path) as one:
        logging.getLogger("mirrored").error("x")
    assert one is None
    assert list(tmp_path.iterdir()) == []


def test_a_real_full_disk_turns_it_off_once_with_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_full(path: Path, flags: int) -> int:
        return os.open("/dev/full", os.O_RDWR)  # every write to it is refused by the system: ENOSPC

    monkeypatch.setattr("trn.runner.mirror.open_file", open_full)
    with streams(), mirror(tmp_path, plan(stdout=True, stderr=True)):
        stderr: Any = sys.stderr.buffer
        for number in range(3):
            logging.getLogger("mirrored").error("record %d", number)
            print("printed")
        shown = stderr._target.getvalue().decode()
    assert shown.count("is written no more, and the run goes on: No space left on device") == 1


@pytest.mark.parametrize("operation", ["open", "write"])
def test_a_failed_operation_turns_it_off(tmp_path: Path, capsys: pytest.CaptureFixture[str], operation: str) -> None:
    set_fault(f"op={operation},n=1,do=eio,path=train.log")
    with mirror(tmp_path) as one:
        for number in range(3):
            one.text("INFO", "some", f"record {number}")
    assert capsys.readouterr().err.count("is written no more") == 1
    assert (tmp_path / "logs/train.log").exists() == (operation == "write")


def test_a_log_that_is_a_link_is_not_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine\n")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/train.log").symlink_to(elsewhere)
    with mirror(tmp_path) as one:
        one.text("INFO", "some", "record")
    assert elsewhere.read_text() == "mine\n"
    assert "is written no more" in capsys.readouterr().err


def test_no_line_of_any_thread_is_lost_or_torn_and_a_forked_child_writes_none(tmp_path: Path) -> None:
    def write(name: str) -> None:
        for number in range(100):
            logging.getLogger(f"mirrored.{name}").warning("line %d", number)

    with logger("mirrored", propagate=False), mirror(tmp_path):
        threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        pid = os.fork()
        if not pid:
            logging.getLogger("mirrored").warning("from the child")
            os._exit(0)
        os.waitpid(pid, 0)
        for thread in threads:
            thread.join(30)
    expected = [f"WARNING  mirrored.{name}: line {number}" for name in "abc" for number in range(100)]
    assert sorted(written(tmp_path)) == sorted(expected)


def test_a_forked_child_that_leaves_the_block_ends_no_line_of_its_parent(tmp_path: Path) -> None:
    with streams(), mirror(tmp_path, plan(stdout=True)) as one:
        print("in", end=" ", flush=True)
        pid = os.fork()
        if not pid:
            one.close()
            os._exit(0)
        os.waitpid(pid, 0)
        print("pieces")
    assert written(tmp_path) == ["stdout   in pieces"]


# whole runs

SPEAKS = """
    def setup(self, ctx):
        import logging
        logging.getLogger("of.the.trainer").info("step by step")
        print("hello from setup")
        super().setup(ctx)
"""


@pytest.mark.slow
def test_a_run_whose_mirror_has_no_room_ends_as_one_that_has(server: ForkServer, tmp_path: Path) -> None:
    spec, log = write_job(tmp_path / "job", max_steps=12, checkpoint_every=5), tmp_path / "log"
    trainer = spec.parent / "noisy.py"
    trainer.write_text(trainer.read_text() + SPEAKS)
    spec.write_text(spec.read_text() + "log: {capture_stdout: true}\n")
    assert server.run(command(spec, tmp_path, "oracle"), log) == 0, log.read_text()
    text = (tmp_path / "oracle/logs/train.log").read_text()
    assert "INFO     of.the.trainer: step by step" in text
    assert "stdout   hello from setup" in text
    assert "INFO     trn: completed at step 12: every step of the budget is made" in text
    for path in ("train.log", "train_heartbeat"):
        run_id = path.replace(".", "-")
        code = server.run(command(spec, tmp_path, run_id), log, fault=f"op=write,n=1,do=enospc,path={path}")
        assert code == 0, log.read_text()
        assert_identical(tmp_path / run_id, tmp_path / "oracle")
    assert log.read_text().count("the run goes on") == 2


@pytest.mark.slow
def test_why_a_run_failed_is_in_its_folder(server: ForkServer, tmp_path: Path) -> None:
    spec, log = write_job(tmp_path / "job", max_steps=12), tmp_path / "log"
    trainer = spec.parent / "noisy.py"
    trainer.write_text(
        trainer.read_text().replace("    def loss(self, model, batch):", "    def loss(self, model, b):")
    )
    assert server.run(command(spec, tmp_path, "run"), log) == outcome(tmp_path / "run")["exit_code"] == 70
    text = (tmp_path / "run/logs/train.log").read_text()
    assert "SAID     trn: Traceback" in text
    assert "NameError: name 'batch' is not defined" in text
