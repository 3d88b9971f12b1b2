"""Whatever happens to one rank, all of them end, soon, with one outcome that names it."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from support.compare import assert_identical, outcome
from support.together import ask, ranks, run, write_together
from trn.files import Holder
from trn.jobs.cancelling import ask_to_cancel
from trn.records import read_lines

pytestmark = pytest.mark.slow


def test_the_rank_whose_code_raises_is_named_with_its_reason(tmp_path: Path) -> None:
    spec = write_together(tmp_path)
    ask(spec, 1, "raise", 13)
    with ranks(2, spec, "r") as world:
        assert world.wait() == [70, 70], world.log(0)
        assert "rank 1:" in world.log(0)
        assert "ValueError: a bad day" in world.log(0)
        assert "rank 1: ValueError: a bad day" in world.log(1)
    found = outcome(spec.parent / "runs/r")
    assert found["status"] == "trainer_raised"
    assert "rank 1" in found["reason"]
    assert "a bad day" in found["reason"]
    beats = [list(read_lines(spec.parent / f"runs/r/reports/train_heartbeat.rank{rank}.jsonl")) for rank in (0, 1)]
    assert [one[0]["event"] for one in beats] == ["heartbeat_enabled"] * 2
    assert [one[0]["rank"] for one in beats] == [0, 1]
    # both made 12 steps; the rank that raised says what, the other one that it was a peer
    assert [(one[-1]["event"], one[-1]["step"]) for one in beats] == [("failed", 12)] * 2
    assert [one[-1]["exc_type"] for one in beats] == ["PeerFailed", "ValueError"]


def test_rank_0_raising_ends_the_others_with_its_status(tmp_path: Path) -> None:
    spec = write_together(tmp_path)
    ask(spec, 0, "raise", 13)
    spec.write_text(spec.read_text().replace("batch_size: 8", "batch_size: 9"))
    with ranks(3, spec, "r") as world:
        assert world.wait() == [70, 70, 70], world.log(0)
    assert outcome(spec.parent / "runs/r")["status"] == "trainer_raised"


@pytest.mark.parametrize("rank", [1, 2])
def test_a_rank_that_is_killed_is_named_and_the_run_can_go_on(tmp_path: Path, rank: int) -> None:
    spec = write_together(tmp_path)
    spec.write_text(spec.read_text().replace("batch_size: 8", "batch_size: 9"))
    oracle = run(3, spec, "oracle")
    asked = ask(spec, rank, "die", 23)
    began_s = time.monotonic()
    with ranks(3, spec, "r") as world:
        codes = world.wait()
        assert time.monotonic() - began_s < 30
        assert codes[rank] == -signal.SIGKILL
        assert {code for other, code in enumerate(codes) if other != rank} == {87}, world.log(0)
    found = outcome(spec.parent / "runs/r")
    assert found["status"] == "rank_lost"
    assert f"rank {rank} gave no sign of life" in found["reason"]
    asked.unlink()
    assert_identical(run(3, spec, "r"), oracle)


def test_rank_0_killed_ends_the_others(tmp_path: Path) -> None:
    spec = write_together(tmp_path)
    asked = ask(spec, 0, "die", 23)
    with ranks(2, spec, "r") as world:
        assert world.wait(40) == [-signal.SIGKILL, 87], world.log(1)
    asked.unlink()
    run(2, spec, "r")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_stopped_counts_as_lost(tmp_path: Path, rank: int) -> None:
    spec = write_together(tmp_path, pause_s=0.1, grace_s=5.0, max_steps=400)
    with ranks(2, spec, "r") as world:
        world.wait_for_steps(spec.parent / "runs/r", 12)
        began_s = time.monotonic()
        world.signal(rank, signal.SIGSTOP)
        assert world.processes[1 - rank].wait(30) == 87
        assert time.monotonic() - began_s < 20
    if rank == 1:
        assert outcome(spec.parent / "runs/r")["status"] == "rank_lost"


def test_a_hang_is_told_with_the_stacks_of_all_ranks(tmp_path: Path) -> None:
    spec = write_together(tmp_path, hang_s=3.0)
    ask(spec, 1, "sleep", 13)
    with ranks(2, spec, "r") as world:
        assert world.wait() == [88, 88], world.log(0)
        assert "in train_step" in world.log(1)
        assert "time.sleep" in world.log(1) or "together.py" in world.log(1)
        assert "agreement.py" in world.log(0) or "processes.py" in world.log(0)
    found = outcome(spec.parent / "runs/r")
    assert found["status"] == "hang"
    assert "rank 1 did not come" in found["reason"]


def test_one_process_can_hang_too(tmp_path: Path) -> None:
    spec = write_together(tmp_path, hang_s=2.0, more="heartbeat: {interval_seconds: 1}")
    ask(spec, 0, "sleep", 13)
    with ranks(1, spec, "r") as world:
        assert world.wait() == [88], world.log(0)
        assert "together.py" in world.log(0)
    assert outcome(spec.parent / "runs/r")["status"] == "hang"
    *_, beat, last = read_lines(spec.parent / "runs/r/reports/train_heartbeat.rank0.jsonl")
    assert (beat["event"], beat["step"], beat["doing"]) == ("periodic", 12, "train")
    assert beat["since_step_s"] > 0.5
    assert (last["event"], last["exc_type"]) == ("failed", "Hang")


def test_ranks_that_report_different_numbers_are_stopped(tmp_path: Path) -> None:
    spec = write_together(tmp_path)
    ask(spec, 1, "lie", 9)
    with ranks(2, spec, "r") as world:
        assert world.wait() == [70, 70], world.log(0)
    assert "on rank 1" in outcome(spec.parent / "runs/r")["reason"]


@pytest.mark.parametrize(
    ("what", "step", "code", "said"),
    [
        ("refuse", 9, 70, "came to its"),
        ("eat", 9, 89, "no room for it"),
        ("spoil", 12, 70, "on rank 1"),
    ],
)
def test_what_only_one_rank_meets_ends_all_with_one_word(
    tmp_path: Path, what: str, step: int, code: int, said: str
) -> None:
    spec = write_together(tmp_path)
    ask(spec, 1, what, step)
    with ranks(2, spec, "r") as world:
        assert world.wait() == [code, code], world.log(0)
    assert said in outcome(spec.parent / "runs/r")["reason"]


def test_ranks_that_build_different_weights_are_refused_and_nothing_stays(tmp_path: Path) -> None:
    spec = write_together(tmp_path)
    ask(spec, 1, "unlike")
    with ranks(2, spec, "r") as world:
        assert world.wait() == [78, 78], world.log(0)
        assert "rank 1 built other weights than rank 0" in world.log(0)
    assert not (spec.parent / "runs/r").exists()


def test_a_rank_that_cannot_build_is_named(tmp_path: Path) -> None:
    spec = write_together(tmp_path)
    ask(spec, 1, "unbuilt")
    with ranks(2, spec, "r") as world:
        assert world.wait() == [70, 70], world.log(0)
    assert "no model today" in outcome(spec.parent / "runs/r")["reason"]


def test_a_rank_that_dies_before_it_is_ready_is_named_though_all_are_asked_to_stop(tmp_path: Path) -> None:
    spec = write_together(tmp_path, grace_s=20.0)
    with open(tmp_path / "together.py", "a") as module:
        module.write("\nif os.environ['RANK'] == '1':\n    os.kill(os.getpid(), 9)\n")
    with ranks(2, spec, "r") as world:
        assert world.processes[1].wait(60) == -signal.SIGKILL
        world.signal(0, signal.SIGTERM)  # as torchrun does
        assert world.processes[0].wait(20) == 87, world.log(0)
    assert "rank 1 gave no sign of life" in outcome(spec.parent / "runs/r")["reason"]


def test_a_write_that_fails_on_rank_0_stops_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = write_together(tmp_path)
    monkeypatch.setenv("TRN_FAULT", "op=fsync,n=2,do=enospc")
    with ranks(2, spec, "r") as world:
        assert world.wait() == [74, 74], world.log(0)
        assert "No space left on device" in world.log(0)
        assert world.log(1) == ""
    assert not (spec.parent / "runs/r").exists()


def test_a_second_sigint_on_one_rank_ends_all_at_once(tmp_path: Path) -> None:
    spec = write_together(tmp_path, pause_s=0.2, max_steps=400)
    with ranks(2, spec, "r") as world:
        world.wait_for_steps(spec.parent / "runs/r", 3)
        world.signal(1, signal.SIGINT)
        world.signal(1, signal.SIGINT)
        assert world.wait() == [92, 92], world.log(0)
    assert outcome(spec.parent / "runs/r")["status"] == "cancelled"


def test_a_request_to_cancel_is_seen_by_rank_0_and_ends_all(tmp_path: Path) -> None:
    spec = write_together(tmp_path, pause_s=0.2, max_steps=400)
    runs_dir = spec.parent / "runs"
    with ranks(2, spec, "r") as world:
        world.wait_for_steps(runs_dir / "r", 3)
        job_id = Holder.read((runs_dir / "r/.lock").read_text()).job_id
        ask_to_cancel(runs_dir, job_id, now=False)
        assert world.wait() == [92, 92], world.log(0)
    assert outcome(runs_dir / "r")["reason"] == "`trn cancel` asked for it"


def test_a_second_launcher_on_the_same_run_is_refused(tmp_path: Path) -> None:
    spec = write_together(tmp_path, pause_s=0.1, max_steps=60)
    with ranks(2, spec, "r") as first:
        first.wait_for_steps(spec.parent / "runs/r", 1)
        with ranks(2, spec, "r") as second:
            assert second.wait() == [78, 78]
            assert "another process is running it" in second.log(0)
        assert first.wait() == [0, 0]


@pytest.mark.parametrize(
    ("old", "new", "code", "said"),
    [
        ("ddp: true", "ddp: false", 78, "2 processes were started"),
        ("batch_size: 8", "batch_size: 7", 78, "cannot be shared out evenly among 2 ranks"),
        ("together:Together", "together:Sharded", 78, "does not say that its ranks train together"),
        ("lr: 0.01}", "lr: 0.01, accumulate: 8}", 78, "micro-batches"),
        ("train.parquet", "absent.parquet", 65, "absent.parquet"),
    ],
)
def test_what_cannot_run_on_several_ranks_is_refused_by_all_in_one_line(
    tmp_path: Path, old: str, new: str, code: int, said: str
) -> None:
    spec = write_together(tmp_path)
    spec.write_text(spec.read_text().replace(old, new))
    with ranks(2, spec, "r") as world:
        assert world.wait() == [code, code], world.log(0)
        assert said in world.log(0)
        assert world.log(0).count("\n") == 1
        assert world.log(1) == ""
    assert not (spec.parent / "runs/r").exists()
