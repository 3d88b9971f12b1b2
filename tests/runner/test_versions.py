"""Versions of a named run: numbers that nobody else is given, and ids that every verb takes."""

from __future__ import annotations

import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support.job import write_job
from trn.doors import work
from trn.doors.cli import main
from trn.doors.targets import find
from trn.doors.versions import choose_version, claim_version
from trn.errors import UsageError
from trn.records import version_name, version_of

NAME = re.compile(r"exp-v(\d+)-\d{8}-\d{6}")


def make_run(runs_dir: Path, run_id: str) -> str:
    reports = runs_dir / run_id / "reports"
    reports.mkdir(parents=True)
    (reports / "resolved_config.json").write_text("{}")
    return run_id


def test_a_version_is_told_from_other_runs_by_its_name() -> None:
    assert version_of(version_name("exp", 12), "exp") == 12
    assert version_of(version_name("exp-v3", 0), "exp-v3") == 0
    for name in ("exp", "exp-v1", "exp-v1-20261122", "exp-vx-20261122-093000", "exp2-v1-20261122-093000"):
        assert version_of(name, "exp") is None
    assert version_of(version_name("exp-v3", 0), "exp") is None


def test_numbers_rise_from_zero_over_what_is_there_and_what_was_given_out(tmp_path: Path) -> None:
    names = [claim_version(tmp_path, "exp") for _ in range(3)]
    assert [int(NAME.fullmatch(name)[1]) for name in names if NAME.fullmatch(name)] == [0, 1, 2]
    make_run(tmp_path, "exp-v7-20200101-000000")  # copied from elsewhere
    assert version_of(claim_version(tmp_path, "exp"), "exp") == 8
    (tmp_path / ".trn/versions.json").write_text("{")  # damaged by hand: the folders still count
    assert version_of(claim_version(tmp_path, "exp"), "exp") == 8
    assert version_of(claim_version(tmp_path, "other"), "other") == 0


def test_to_look_gives_out_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        name, is_new = choose_version(tmp_path / "runs", "exp", continues=False)
        assert (version_of(name, "exp"), is_new) == (0, True)
    assert not (tmp_path / "runs").exists()


def test_what_continues_takes_the_run_itself_then_its_newest_version_then_a_new_one(tmp_path: Path) -> None:
    assert choose_version(tmp_path, "exp", continues=True)[1]
    for name in ("exp-v2-20200101-000000", "exp-v10-20200101-000000"):
        make_run(tmp_path, name)
    (tmp_path / "exp-v11-20200101-000000").mkdir()  # no run: it has no plan
    assert choose_version(tmp_path, "exp", continues=True) == ("exp-v10-20200101-000000", False)
    assert choose_version(tmp_path, "exp-v2-20200101-000000", continues=True) == ("exp-v2-20200101-000000", False)
    make_run(tmp_path, "exp")
    assert choose_version(tmp_path, "exp", continues=True) == ("exp", False)


def test_a_name_that_leaves_no_room_for_a_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be the id of a run"):
        claim_version(tmp_path, "e" * 60)
    assert not (tmp_path / ".trn/versions.json").exists()


def _claim(runs_dir: str) -> list[str]:
    return [claim_version(Path(runs_dir), "exp") for _ in range(10)]


def test_no_number_is_given_out_twice_to_many_at_once(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("fork")) as pool:
        given = [name for names in pool.map(_claim, [str(tmp_path)] * 4) for name in names]
    assert sorted(number for name in given if (number := version_of(name, "exp")) is not None) == list(range(40))


# the command line


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the verb would have started."""
    found: list[Any] = []
    monkeypatch.setattr(work, "stay_with", lambda start, launcher, as_json: found.append(start) or 0)
    return found


def test_the_option_and_the_key_begin_versions(tmp_path: Path, started: list[Any]) -> None:
    spec, runs = write_job(tmp_path / "job"), tmp_path / "runs"
    options = ["--config", str(spec), "--runs-dir", str(runs), "--run-id", "exp"]
    assert main(["run", *options, "--add-version"]) == 0
    spec.write_text(spec.read_text() + "add_version: true\n")
    assert main(["run", *options]) == 0
    assert main(["run", *options, "--set", "add_version=false"]) == 0
    ids = [start.run_id for start in started]
    assert [version_of(one, "exp") for one in ids] == [0, 1, None]
    assert [start.arguments[start.arguments.index("--run-id") + 1] for start in started] == ids
    for run_id in ids[:2]:
        make_run(runs, run_id)
    assert find(ids[1], runs).run_dir == runs / ids[1]
    assert main(["run", *options, "--resume"]) == 0
    assert main(["run", *options, "--auto-resume"]) == 0
    assert main(["run", *options, "--resume-from", "last"]) == 0
    assert {start.run_id for start in started[3:]} == {ids[1]}


def test_what_cannot_be_a_version_is_refused_in_one_line(
    tmp_path: Path, started: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    spec = write_job(tmp_path / "job")
    options = ["run", "--config", str(spec), "--runs-dir", str(tmp_path / "runs"), "--add-version"]
    refused = {
        (): "needs a run_id, below which the versions are",
        ("--run-id", "exp", "--resume"): "it begins a new version, and --resume goes on with one that is there",
        ("--run-id", "../exp"): "cannot be the id of a run",
    }
    for more, says in refused.items():
        assert main([*options, *more]) == 2
        said = capsys.readouterr().err
        assert says in said
        assert len(said.splitlines()) == 1
    assert started == []
    assert not (tmp_path / "runs").exists()


def test_verbose_reaches_every_process_by_the_environment(
    tmp_path: Path, started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    environ: dict[str, str] = {}
    monkeypatch.setattr(work.os, "environ", environ)
    spec = write_job(tmp_path / "job")
    options = ["run", "--config", str(spec), "--runs-dir", str(tmp_path), "--run-id", "exp"]
    assert main(options) == 0
    assert environ == {}
    assert main([*options, "--verbose"]) == 0
    assert environ == {"TRN_VERBOSE": "1"}
