"""The ending of a job whose runner is gone: completed in the run's folder where the runner could not."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from support.door import row_of
from support.stand_in import Job, outcome_of_job, publish
from trn import files
from trn.errors import exit_code
from trn.files import AppendLog, Lock, write_atomic
from trn.jobs import outcome_of
from trn.jobs.ending import Ending, settle
from trn.records import JobRow, json_line, pretty_json, read_json, read_lines

KILLED = -signal.SIGKILL


@pytest.fixture
def row(tmp_path: Path) -> JobRow:
    return row_of(tmp_path, "demo", state="running", started_at="2026-01-01T00:00:00.000000Z")


def begun(row: JobRow, *, steps: int = 4) -> Job:
    """A job that trained some steps; its runner holds nothing any more."""
    publish(Path(row.run_dir), row.job_id).release()
    job = Job(Path(row.run_dir), row.job_id)
    job.begin(10, 0)
    job.train(steps)
    return job


def endings(row: JobRow) -> list[tuple[str, str, int]]:
    events = read_lines(Path(row.run_dir) / "reports" / "events.jsonl")
    return [(e["event"], e["outcome"], e["exit_code"]) for e in events if "outcome" in e]


def test_a_killed_runner_leaves_a_crashed_run_that_can_be_resumed(row: JobRow) -> None:
    begun(row)
    ending = settle(row, KILLED)
    assert (ending.state, ending.exit_code) == ("crashed", 71)
    outcome = outcome_of(Path(row.run_dir), row.job_id)
    assert outcome == ending.outcome
    assert outcome is not None
    assert outcome.reason == "the runner was killed by SIGKILL without an outcome"
    assert (outcome.step, outcome.resumable, outcome.plan_fingerprint) == (4, True, "f" * 64)
    assert outcome.checkpoint == {"file": "checkpoints/step-00000004.pt", "sha256": "a" * 64, "step": 4}
    assert endings(row) == [("failed", "crashed", 71)]


def test_the_seq_of_the_ending_follows_the_last_whole_line(row: JobRow) -> None:
    job = begun(row)
    events = Path(row.run_dir) / "reports" / "events.jsonl"
    with open(events, "ab") as stream:
        stream.write(b'{"event":"checkpoint","seq":99')
    settle(row, KILLED)
    lines = list(read_lines(events))
    assert [line["seq"] for line in lines] == list(range(1, job.events.seq + 2))
    assert lines[-1]["event"] == "failed"


def test_settling_twice_says_the_same_once(row: JobRow) -> None:
    begun(row)
    assert settle(row, KILLED) == settle(row, KILLED)
    assert len(endings(row)) == 1


def test_an_outcome_is_believed_over_the_exit_status(row: JobRow) -> None:
    begun(row).end("completed")
    assert settle(row, -signal.SIGSEGV).exit_code == 0
    assert endings(row) == [("completed", "completed", 0)]


def test_an_outcome_without_its_event_gets_it(row: JobRow) -> None:
    begun(row)
    path = Path(row.run_dir) / "reports" / "outcome.json"
    write_atomic(path, pretty_json(outcome_of_job(Path(row.run_dir), row.job_id, "preempted", 4).to_json()))
    before = path.read_bytes()
    assert settle(row, KILLED).state == "preempted"
    assert endings(row) == [("preempted", "preempted", 75)]
    assert path.read_bytes() == before


def test_an_event_without_its_outcome_gets_it(row: JobRow) -> None:
    begun(row).end("completed", "max_steps reached")
    (Path(row.run_dir) / "reports" / "outcome.json").unlink()
    ending = settle(row, KILLED)
    assert (ending.state, ending.exit_code, ending.reason) == ("completed", 0, "max_steps reached")
    assert outcome_of(Path(row.run_dir), row.job_id) == ending.outcome
    assert len(endings(row)) == 1


def test_a_run_published_but_not_begun_is_crashed(row: JobRow) -> None:
    publish(Path(row.run_dir), row.job_id).release()
    assert settle(row, KILLED).outcome is not None
    assert endings(row) == [("failed", "crashed", 71)]


def test_the_outcome_of_an_earlier_job_moves_aside(row: JobRow, tmp_path: Path) -> None:
    begun(row).end("preempted")
    later = row_of(tmp_path, "demo", state="running")
    Job(tmp_path / "demo", later.job_id).begin(10, 4)
    assert settle(later, KILLED).state == "crashed"
    assert outcome_of(tmp_path / "demo", "") == outcome_of(tmp_path / "demo", later.job_id)
    earlier = outcome_of(tmp_path / "demo", row.job_id)
    assert earlier is not None
    assert earlier.status == "preempted"
    assert [one[0] for one in endings(row)] == ["preempted", "failed"]


def test_the_checkpoint_named_is_the_newest_with_a_good_meta(row: JobRow) -> None:
    job = begun(row)
    job.train(4)
    metas = Path(row.run_dir) / "checkpoints"
    (metas / "step-00000008.meta.json").write_bytes(b"{}")
    (metas / "step-00000012.meta.json").write_bytes(b"torn")
    ending = settle(row, KILLED)
    assert ending.outcome is not None
    assert ending.outcome.checkpoint == {"file": "checkpoints/step-00000004.pt", "sha256": "a" * 64, "step": 4}


def test_a_run_that_another_job_holds_is_left_alone(row: JobRow, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(row)
    monkeypatch.setattr("trn.jobs.ending._LOCK_WAIT_S", 0.0)
    holder = Lock(Path(row.run_dir) / ".lock")
    assert holder.acquire()
    assert settle(row, KILLED).state == "crashed"
    assert outcome_of(Path(row.run_dir), row.job_id) is None
    assert endings(row) == []


def test_a_folder_that_cannot_be_written_is_said_and_changes_no_ending(row: JobRow) -> None:
    begun(row)
    files.set_fault("op=write,n=1,do=enospc,path=outcome.json")
    ending = settle(row, KILLED)
    files.set_fault(None)
    assert (ending.state, ending.exit_code) == ("crashed", 71)
    assert "outcome.json" in ending.problem


def test_a_disk_that_refused_the_outcome_is_an_io_error(row: JobRow) -> None:
    begun(row)
    assert settle(row, 74).state == "io_error"


def test_an_interrupt_that_killed_the_runner_cancelled_it(row: JobRow) -> None:
    begun(row)
    assert settle(row, -signal.SIGINT, [signal.SIGINT, signal.SIGINT]).exit_code == 92


@pytest.mark.parametrize(
    ("returncode", "forwarded", "state", "exit_code"),
    [
        (78, (), "rejected", 78),
        (2, (), "rejected", 2),
        (65, (), "rejected", 65),
        (78, (signal.SIGTERM,), "rejected", 78),
        (KILLED, (), "crashed", 71),
        (0, (), "crashed", 71),
        (1, (), "crashed", 71),
        (-signal.SIGTERM, (signal.SIGTERM,), "preempted", 75),
        (-signal.SIGINT, (signal.SIGINT,), "cancelled", 92),
        (1, (signal.SIGINT,), "cancelled", 92),
        (75, (), "preempted", 75),
        (92, (), "cancelled", 92),
    ],
)
def test_a_runner_that_never_began_leaves_nothing(
    row: JobRow, returncode: int, forwarded: tuple[int, ...], state: str, exit_code: int
) -> None:
    ending = settle(row, returncode, forwarded)
    assert (ending.state, ending.exit_code, ending.outcome) == (state, exit_code, None)
    assert not Path(row.run_dir).exists()


@pytest.mark.parametrize(
    ("failure", "returncode", "expected"),
    [
        ((KILLED, "rank 1 was killed by SIGKILL"), 137, ("rank_lost", 87, "rank 1 was killed by SIGKILL", True)),
        ((87, "rank 1: rank 0 is gone"), 87, ("rank_lost", 87, "rank 1: rank 0 is gone", True)),
        ((88, "rank 1: no step ended"), 88, ("hang", 88, "rank 1: no step ended", True)),
        ((74, "rank 0: no space"), 74, ("io_error", 74, "rank 0: no space", False)),
        ((1, "rank 0 ended with exit status 1"), 1, ("crashed", 71, "rank 0 ended with exit status 1", False)),
        (None, 137, ("crashed", 71, "the runner exited with 137 without an outcome", False)),
        (None, KILLED, ("crashed", 71, "the runner was killed by SIGKILL without an outcome", True)),
    ],
)
def test_of_several_ranks_the_first_that_failed_tells_how_it_ended(
    row: JobRow, failure: tuple[int, str] | None, returncode: int, expected: tuple[str, int, str, bool]
) -> None:
    begun(row)
    ending = settle(row, returncode, (), failure)
    assert (ending.state, ending.exit_code, ending.reason, ending.is_lost) == expected
    assert ending.outcome is not None
    assert (ending.outcome.resumable, ending.outcome.step) == (True, 4)
    assert endings(row) == [("failed", expected[0], expected[1])]


def test_rank_0s_own_outcome_is_believed_over_what_the_launcher_saw(row: JobRow) -> None:
    begun(row).end("rank_lost", "rank 1 gave no sign of life")
    ending = settle(row, 137, (), (KILLED, "rank 1 was killed by SIGKILL"))
    assert (ending.state, ending.reason, ending.is_lost) == ("rank_lost", "rank 1 gave no sign of life", True)
    begun_again = Job(Path(row.run_dir), row.job_id)
    begun_again.end("trainer_raised")
    assert not settle(row, 70, (), (70, "rank 0: ValueError")).is_lost


@pytest.mark.parametrize(
    ("failure", "forwarded", "state", "exit_code"),
    [
        ((78, "rank 0: refused"), (), "rejected", 78),
        ((65, "rank 0: no such file"), (), "rejected", 65),
        ((87, "rank 1 of 2 did not come"), (), "rank_lost", 87),
        ((KILLED, "rank 1 was killed by SIGKILL"), (), "rank_lost", 87),
        ((-signal.SIGTERM, "rank 1 was killed by SIGTERM"), (signal.SIGTERM,), "preempted", 75),
        (None, (signal.SIGTERM,), "preempted", 75),
    ],
)
def test_ranks_that_never_began_leave_nothing(
    row: JobRow, failure: tuple[int, str] | None, forwarded: tuple[int, ...], state: str, exit_code: int
) -> None:
    ending = settle(row, 128 + signal.SIGTERM, forwarded, failure)
    assert (ending.state, ending.exit_code, ending.outcome) == (state, exit_code, None)
    assert not Path(row.run_dir).exists()


def test_a_finished_run_that_is_resumed_tells_its_outcome_again(row: JobRow, tmp_path: Path) -> None:
    begun(row).end("completed")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    later = row_of(tmp_path, "demo")
    Lock(tmp_path / "demo" / ".lock").acquire(note=f"pid=1 job={later.job_id}")
    ending = settle(later, 0)
    assert ending == Ending("completed", 0, "the run had ended before, and its outcome stands", ending.outcome)
    assert ending.outcome is not None
    assert ending.outcome.job_id == row.job_id
    assert {path: path.read_bytes() for path in before} == before


def test_a_killed_look_at_a_finished_run_changes_nothing(row: JobRow, tmp_path: Path) -> None:
    begun(row).end("completed")
    later = row_of(tmp_path, "demo")
    Lock(tmp_path / "demo" / ".lock").acquire(note=f"pid=1 job={later.job_id}")
    assert settle(later, KILLED).state == "crashed"
    assert [one[0] for one in endings(row)] == ["completed"]


def test_a_refused_resume_of_a_lost_run_is_no_crash(row: JobRow, tmp_path: Path) -> None:
    begun(row)
    later = row_of(tmp_path, "demo")
    Lock(tmp_path / "demo" / ".lock").acquire(note=f"pid=1 job={later.job_id}")
    assert settle(later, 78).state == "rejected"
    assert outcome_of(tmp_path / "demo", "") is None


def test_damaged_and_hostile_journals_are_settled_all_the_same(row: JobRow) -> None:
    job = begun(row)
    log = AppendLog(Path(row.run_dir) / "reports" / "events.jsonl")
    log.append(b"\xff\xfe not json\n")
    log.append(b'["a list"]\n')
    log.append(json_line({"event": "checkpoint", "job_id": row.job_id, "step": 9, "file": "../../../etc/passwd"}))
    log.append(json_line({"event": "failed", "job_id": row.job_id, "outcome": "no such word"}))
    log.append(json_line({"event": ["failed"], "job_id": row.job_id, "outcome": {"a": 1}, "step": []}))
    log.append(json_line({"event": "epoch", "job_id": [row.job_id], "epoch": "first"}))
    job.metrics.append(b'{"step":"five"}\n')
    ending = settle(row, KILLED)
    assert ending.state == "crashed"
    assert ending.outcome is not None
    assert ending.outcome.step == 5
    assert ending.outcome.checkpoint is not None
    assert ending.outcome.checkpoint["step"] == 4


def put_plan(row: JobRow, fingerprint: str, steps_per_epoch: int, name: str = "resolved_config.json") -> None:
    path = Path(row.run_dir) / "reports" / name
    files.make_folder(path.parent)
    plan = {"fingerprint": fingerprint, "budget": {"max_steps": 100, "steps_per_epoch": steps_per_epoch}}
    write_atomic(path, pretty_json(plan))


def later_job(row: JobRow, status: str = "") -> JobRow:
    """Another job that took the run up after `row`'s runner died, and ended with `status` if one is given."""
    later = row_of(Path(row.run_dir).parent, row.run_id)
    lock = publish(Path(row.run_dir), later.job_id)
    job = Job(Path(row.run_dir), later.job_id)
    job.events.emit("resumed", from_step=4, checkpoint="step-00000004.pt")
    job.begin(10, 4)
    job.train(2)
    if status:
        job.end(status)
    lock.release()
    return later


def test_a_late_door_leaves_the_outcome_of_a_later_job(row: JobRow) -> None:
    begun(row)
    later = later_job(row, "completed")
    current = Path(row.run_dir) / "reports" / "outcome.json"
    before = current.read_bytes()
    ending = settle(row, KILLED)
    assert (ending.state, ending.exit_code, ending.problem) == ("crashed", 71, "")
    assert current.read_bytes() == before
    assert ending.outcome is not None
    assert read_json(current.parent / "outcomes" / f"{row.job_id}.json") == ending.outcome.to_json()
    assert ending.outcome.step == 4, "not where the later job is"
    assert ending.outcome.checkpoint is not None
    assert ending.outcome.checkpoint["step"] == 4
    assert [one[0] for one in endings(row)] == ["completed", "failed"]
    assert settle(row, KILLED) == ending
    assert settle(later, 0).state == "completed"
    assert len(endings(row)) == 2


def test_a_late_door_writes_no_outcome_in_the_place_of_a_later_job_that_has_none_yet(row: JobRow) -> None:
    begun(row)
    later = later_job(row)
    assert settle(row, KILLED).state == "crashed"
    assert outcome_of(Path(row.run_dir), "") is None
    assert settle(later, KILLED).state == "crashed"
    last = outcome_of(Path(row.run_dir), "")
    assert last is not None
    assert last.job_id == later.job_id
    assert outcome_of(Path(row.run_dir), row.job_id) is not None


def test_a_later_job_that_comes_and_goes_while_the_door_waits_for_the_lock_is_seen(
    row: JobRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(row)
    acquire = Lock.acquire

    def slow(lock: Lock, note: str = "", wait_s: float = 0.1) -> bool:
        monkeypatch.setattr(Lock, "acquire", acquire)
        later_job(row, "completed")
        return acquire(lock, note, wait_s)

    monkeypatch.setattr(Lock, "acquire", slow)
    assert settle(row, KILLED).state == "crashed"
    last = outcome_of(Path(row.run_dir), "")
    assert last is not None
    assert last.status == "completed"


def test_a_late_door_of_a_job_without_an_event_writes_nothing(row: JobRow, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(Path(row.run_dir), row.job_id).release()
    acquire = Lock.acquire

    def slow(lock: Lock, note: str = "", wait_s: float = 0.1) -> bool:
        monkeypatch.setattr(Lock, "acquire", acquire)
        later_job(row, "completed")
        return acquire(lock, note, wait_s)

    monkeypatch.setattr(Lock, "acquire", slow)
    assert settle(row, KILLED).state == "crashed"
    assert outcome_of(Path(row.run_dir), row.job_id) is None
    assert [one[0] for one in endings(row)] == ["completed"]


def test_the_outcome_of_a_late_door_names_the_plan_that_its_job_ran(row: JobRow) -> None:
    begun(row)
    put_plan(row, "f" * 64, 2, "plans/0.json")
    put_plan(row, "e" * 64, 1)
    later_job(row, "completed")
    outcome = settle(row, KILLED).outcome
    assert outcome is not None
    assert (outcome.plan_fingerprint, outcome.step, outcome.epochs_completed) == ("f" * 64, 4, 2)


def test_a_run_killed_before_it_announced_its_plan_names_it_all_the_same(row: JobRow) -> None:
    publish(Path(row.run_dir), row.job_id).release()
    put_plan(row, "e" * 64, 2)
    outcome = settle(row, KILLED).outcome
    assert outcome is not None
    assert (outcome.plan_fingerprint, outcome.step, outcome.epochs_completed) == ("e" * 64, 0, 0)


def test_epochs_are_counted_in_steps_and_not_from_events_that_a_resume_went_behind(row: JobRow) -> None:
    job = begun(row)
    put_plan(row, "f" * 64, 3)
    job.events.emit("epoch", epoch=7)
    job.metrics.append(b'{"step":5')
    outcome = settle(row, KILLED).outcome
    assert outcome is not None
    assert (outcome.step, outcome.epochs_completed) == (4, 1)


def test_a_job_whose_run_was_taken_by_another_is_told_so_and_the_other_one_s_ending_stands(tmp_path: Path) -> None:
    run_dir = tmp_path / "demo"
    zombie, following = row_of(tmp_path, "demo"), row_of(tmp_path, "demo")
    publish(run_dir, zombie.job_id).release()
    Job(run_dir, zombie.job_id).begin(3, 0)
    second = Job(run_dir, following.job_id)
    second.begin(3, 0)
    second.end("completed")
    before = (run_dir / "reports/outcome.json").read_bytes()
    ending = settle(zombie, exit_code("resume_refused"))
    assert (ending.state, ending.is_lost) == ("crashed", False)
    assert ending.reason == "another process took the run meanwhile, and this one wrote nothing more"
    assert (run_dir / "reports/outcome.json").read_bytes() == before
