"""The relay: what it makes of a sink that fails, of a position that is lost, and of a run that goes back."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from support.sending import DEADLINE_S, RelayThread, ToyRun, send_all, wait_for
from trn.files import Lock, set_fault
from trn.sinks import __main__ as program
from trn.sinks import targets
from trn.sinks.position import last_words, position_file, standings
from trn.sinks.relay import Relay
from trn.sinks.sink import Curve, CurveSink, EventSink, Refused, Unreachable
from trn.sinks.targets import Target, parse_target
from trn.transfer.backoff import Backoff

TARGET = "file:/nowhere/toy"


class Kept(EventSink):
    """Keeps what it is sent; raises each of `failures` once, before it takes anything."""

    batch = 4

    def __init__(self) -> None:
        self.seqs: list[int] = []
        self.failures: list[Exception] = []
        self.tells = False
        self.closed = 0
        self.is_held = threading.Event()
        self.is_held.set()

    def _fail(self) -> None:
        assert self.is_held.wait(DEADLINE_S)
        if self.failures:
            raise self.failures.pop(0)

    def last_seq(self) -> int | None:
        self._fail()
        return max(self.seqs, default=0) if self.tells else None

    def send(self, events: Sequence[dict[str, Any]]) -> None:
        self._fail()
        self.seqs += [event["seq"] for event in events]

    def close(self) -> None:
        self.closed += 1


class Curves(CurveSink):
    """Keeps the newest line of each step, and what it was told."""

    def __init__(self) -> None:
        self.lines: dict[tuple[str, int], dict[str, Any]] = {}
        self.told: list[str] = []
        self.writes = 0
        self.failures: list[Exception] = []

    def _void(self, step: int) -> None:
        self.lines = {key: line for key, line in self.lines.items() if key[1] <= step}

    def begin(self, from_step: int) -> None:
        self.told.append(f"begin {from_step}")
        self._void(from_step)

    def write(self, kind: Curve, lines: Sequence[dict[str, Any]]) -> None:
        if self.failures:
            raise self.failures.pop(0)
        for line in lines:
            assert (kind, line["step"]) not in self.lines, "a step is written once"
            self.lines[kind, line["step"]] = line
            self.writes += 1

    def cut(self, step: int) -> None:
        self.told.append(f"cut {step}")
        self._void(step)

    def close(self) -> None:
        self.told.append("close")

    def steps(self, kind: str = "train") -> list[int]:
        return [step for found, step in self.lines if found == kind]


@pytest.fixture
def run(tmp_path: Path) -> ToyRun:
    return ToyRun(tmp_path / "runs")


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    sink = Kept()
    monkeypatch.setattr("trn.sinks.relay.open_sink", lambda target, run: sink)
    return sink


@pytest.fixture
def curves(monkeypatch: pytest.MonkeyPatch) -> Curves:
    sink = Curves()
    monkeypatch.setattr("trn.sinks.relay.open_sink", lambda target, run: sink)
    return sink


# events


def test_all_events_come_once_in_order(run: ToyRun, kept: Kept) -> None:
    run.emit(11)
    relay = send_all(TARGET, run.facts)
    assert kept.seqs == list(range(1, 12))
    assert (relay.is_delivered, relay.standing.sent, relay.standing.behind, kept.closed) == (True, 11, 0, 1)


@pytest.mark.slow
def test_after_a_failure_nothing_is_left_out_and_the_first_is_told(run: ToyRun, kept: Kept) -> None:
    run.emit(11)
    kept.failures = [Unreachable("away", 0.0), Unreachable("away again", 0.0), KeyError("its own mistake")]
    relay = RelayThread(TARGET, run.facts)
    assert relay.finish().is_delivered
    assert kept.seqs == list(range(1, 12))
    assert len(relay.said) == 1
    assert "away" in relay.said[0]
    assert relay.relay.standing.last_error is None


def test_a_refused_batch_is_left_out_counted_and_told_once(run: ToyRun, kept: Kept) -> None:
    kept.tells = True
    run.emit(12)
    relay = RelayThread(TARGET, run.facts)
    wait_for(lambda: relay.relay.standing.sent == 12, "the events")
    kept.tells = False
    kept.failures = [Refused("no"), Refused("no")]
    run.emit(11)
    done = relay.finish()
    assert done.is_delivered
    assert done.standing.dropped == done.dropped
    assert kept.seqs[-1] == 23
    assert len(kept.seqs) + done.dropped == 23
    assert len(relay.said) == 1
    assert last_words(done.standing, run.dir) is not None


def test_a_target_that_refuses_everything_loses_nothing_and_is_not_waited_for(run: ToyRun, kept: Kept) -> None:
    run.emit(3)
    kept.failures = [Refused("wrong password")] * 99
    relay = RelayThread(TARGET, run.facts)
    wait_for(lambda: relay.said, "the refusal")
    began = time.monotonic()
    done = relay.finish()
    assert time.monotonic() - began < 5
    assert (done.is_delivered, done.standing.dropped, done.standing.behind) == (False, 0, 3)
    kept.failures.clear()
    assert send_all(TARGET, run.facts).is_delivered
    assert kept.seqs == [1, 2, 3]


def test_what_a_target_says_it_has_counts_more_than_the_position(run: ToyRun, kept: Kept) -> None:
    kept.tells = True
    run.emit(10)
    send_all(TARGET, run.facts)
    kept.seqs = [1, 2, 3]
    send_all(TARGET, run.facts)
    assert kept.seqs == list(range(1, 11))


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"schema_version": 1}', b'{"schema_version": 2}', None])
def test_a_position_that_cannot_be_read_is_the_beginning(run: ToyRun, kept: Kept, damage: bytes | None) -> None:
    run.emit(5)
    send_all(TARGET, run.facts)
    path = position_file(run.dir, parse_target(TARGET))
    path.unlink() if damage is None else path.write_bytes(damage)
    send_all(TARGET, run.facts)
    assert kept.seqs == [1, 2, 3, 4, 5] * 2
    send_all(TARGET, run.facts)
    assert len(kept.seqs) == 10


def test_a_position_that_cannot_be_written_is_no_reason_to_stop(run: ToyRun, kept: Kept) -> None:
    run.emit(5)
    set_fault("op=write,n=1,do=enospc,path=.json")
    try:
        assert send_all(TARGET, run.facts).is_delivered
    finally:
        set_fault(None)
    assert kept.seqs == [1, 2, 3, 4, 5]


def test_lines_that_are_no_events_are_left_out_and_a_torn_one_is_waited_for(run: ToyRun, kept: Kept) -> None:
    run.emit(2)
    whole = run.events_file.read_bytes()
    third = whole.splitlines(True)[1].replace(b'"seq":2', b'"seq":5')
    run.events_file.write_bytes(whole + b'nonsense\n[1]\n{"seq":"x"}\n{"seq":2}\n' + third[:20])
    relay = RelayThread(TARGET, run.facts)
    wait_for(lambda: kept.seqs == [1, 2], "the whole events")
    with open(run.events_file, "ab") as stream:
        stream.write(third[20:])
    assert relay.finish().is_delivered
    assert kept.seqs == [1, 2, 5]


def test_two_relays_to_one_target_take_turns(run: ToyRun, kept: Kept) -> None:
    run.emit(4)
    kept.is_held.clear()
    first = RelayThread(TARGET, run.facts)
    path = position_file(run.dir, parse_target(TARGET))
    wait_for(path.exists, "the first relay")
    second = RelayThread(TARGET, run.facts)
    wait_for(lambda: second.relay.standing.last_error, "the second to wait")
    kept.is_held.set()
    assert first.finish().is_delivered
    assert second.finish().is_delivered
    assert kept.seqs == [1, 2, 3, 4]


def test_a_relay_whose_time_is_over_lets_go_of_a_taken_lock(run: ToyRun, kept: Kept) -> None:
    path = position_file(run.dir, parse_target(TARGET))
    path.parent.mkdir(parents=True)
    with Lock(path.with_suffix(".lock")):
        assert not RelayThread(TARGET, run.facts).stop().is_delivered
    assert kept.closed == 0


def test_the_standing_of_a_target_is_as_of_now(run: ToyRun, kept: Kept) -> None:
    run.emit(5)
    send_all(TARGET, run.facts)
    run.emit(3)
    [standing] = standings(run.dir)
    assert (standing.target, standing.sent, standing.behind) == (TARGET, 5, 3)
    words = last_words(standing, run.dir)
    assert words == f"trn: {TARGET}: 3 not delivered, of events; deliver with: trn relay {run.dir} --to {TARGET}"


@pytest.mark.slow
def test_a_sink_that_never_returns_holds_nobody_longer_than_the_time_at_the_end(
    run: ToyRun, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "_AT_THE_END_S", 0.2)
    run.emit(3)
    kept.is_held.clear()
    relay = Relay(parse_target(TARGET), run.facts, print)
    threads = program._start([relay])
    began = time.monotonic()
    program._finish([relay], threads, lambda: 0)
    assert 0.2 < time.monotonic() - began < 5
    assert threads[0].is_alive()
    assert threads[0].daemon
    assert not relay.is_delivered
    kept.is_held.set()


@pytest.mark.slow
def test_who_never_took_anything_is_not_waited_for_as_long_as_who_did(
    run: ToyRun, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "_AT_THE_END_S", 1.5)
    run.emit(3)
    waited: list[float] = []
    for was_there in (False, True):
        relay = RelayThread(TARGET, run.facts)
        if was_there:
            wait_for(lambda one=relay.relay: one.taken == 3, "the events")
            run.emit(1)
        kept.failures = [Unreachable("away")] * 999
        wait_for(lambda one=relay: one.said, "the failure")
        began = time.monotonic()
        program._finish([relay.relay], [relay.thread], lambda: 0, of_the_dead_s=0.2)
        waited.append(time.monotonic() - began)
        assert not relay.relay.is_delivered
        relay.stop()
        kept.failures = []
    assert 0.2 < waited[0] < waited[1]
    assert waited[1] > 1.5


def by_hand(run: ToyRun, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = program.main(["--run-dir", str(run.dir), "--to", TARGET])
    return status, capfd.readouterr().err


def test_a_position_that_cannot_be_kept_is_told_and_nothing_is_sent(
    run: ToyRun, kept: Kept, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "_AT_THE_END_S", 0.3)
    run.emit(3)
    (run.dir.parent / ".trn").mkdir()
    (run.dir.parent / ".trn" / "sinks").write_text("in the way")
    status, told = by_hand(run, capfd)
    assert status == 94
    assert [line.startswith(f"trn: {TARGET}") for line in told.splitlines()] == [True, True]
    assert "its position cannot be kept" in told
    assert "has everything" not in told
    assert kept.seqs == []


def test_who_waits_for_another_sender_in_vain_says_so(
    run: ToyRun, kept: Kept, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "_AT_THE_END_S", 0.3)
    run.emit(3)
    send_all(TARGET, run.facts)
    with Lock(position_file(run.dir, parse_target(TARGET)).with_suffix(".lock")):
        assert by_hand(run, capfd) == (94, f"trn: {TARGET}: another process is sending to it\n")


def test_a_run_that_begins_anew_under_the_same_name_is_sent_from_its_beginning(
    run: ToyRun, kept: Kept, tmp_path: Path
) -> None:
    run.emit(5)
    send_all(TARGET, run.facts)
    shutil.rmtree(run.dir)
    again = ToyRun(tmp_path / "runs", job_id="job-2")
    again.emit(7)
    done = send_all(TARGET, again.facts)
    assert kept.seqs == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 6, 7]
    assert done.standing.sent == 7


@pytest.mark.parametrize("kind", ["events", "curves"])
def test_a_run_that_is_moved_away_is_not_taken_for_delivered_or_empty(
    run: ToyRun, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    sink = Kept() if kind == "events" else Curves()
    monkeypatch.setattr("trn.sinks.relay.open_sink", lambda target, run: sink)
    run.emit(5)
    run.metrics(1, 5)
    relay = RelayThread(TARGET, run.facts)
    wait_for(lambda: relay.relay.taken == 5, "what there is")
    run.dir.rename(run.dir.with_name("moved"))
    wait_for(lambda: relay.said, "the failure")
    assert not relay.stop().is_delivered
    assert "the run's journal is not where it was" in relay.said[0]
    if isinstance(sink, Curves):
        assert sink.told == ["begin 0", "close"]
        assert sink.steps() == [1, 2, 3, 4, 5]
    assert not run.dir.exists()


def test_what_a_target_says_is_told_as_one_clean_line_without_secrets(run: ToyRun, kept: Kept) -> None:
    run.emit(1)
    kept.failures = [Unreachable("\x1b[31mno\nnever to violet " + "x" * 9999, 0.0)]
    relay = RelayThread("redis://h?password_env=PW", run.with_environ(PW="violet"))
    relay.finish()
    assert relay.said[0].endswith("[31mno never to *** " + "x" * 480 + "...")
    assert relay.said[0].isprintable()


# curves


def test_curves_are_written_line_by_line(run: ToyRun, curves: Curves) -> None:
    run.metrics(1, 1200)
    run.metrics(1, 3, kind="val")
    relay = send_all(TARGET, run.facts)
    assert curves.steps() == list(range(1, 1201))
    assert curves.steps("val") == [1, 2, 3]
    assert (relay.is_delivered, relay.standing.sent) == (True, 1203)


def test_a_resume_cuts_the_curves_and_writes_them_again(run: ToyRun, curves: Curves) -> None:
    run.metrics(1, 50)
    run.metrics(10, 10, kind="val")
    relay = RelayThread(TARGET, run.facts)
    wait_for(lambda: curves.writes == 51, "the first lines")
    run.cut(20)
    run.emit(1, "resumed", from_step=20)
    run.metrics(21, 60, again=True)
    assert relay.finish().is_delivered
    assert curves.told == ["begin 0", "cut 20", "close"]
    assert curves.steps() == list(range(1, 61))
    assert curves.steps("val") == [10]
    assert "again" in curves.lines["train", 21]
    assert "again" not in curves.lines["train", 20]


def test_a_cut_that_is_seen_before_it_is_told_is_waited_for(run: ToyRun, curves: Curves) -> None:
    run.metrics(1, 50)
    relay = RelayThread(TARGET, run.facts)
    wait_for(lambda: curves.writes == 50, "the first lines")
    run.cut(20)
    run.metrics(21, 21, again=True)
    time.sleep(0.1)
    assert curves.writes == 50
    run.emit(1, "resumed", from_step=20)
    assert relay.finish().is_delivered
    assert curves.steps() == list(range(1, 22))
    assert curves.told == ["begin 0", "cut 20", "close"]


def test_a_cut_while_nobody_looked_is_made_up_for(run: ToyRun, curves: Curves) -> None:
    run.metrics(1, 50)
    send_all(TARGET, run.facts)
    for back in (30, 10):
        run.cut(back)
        run.emit(1, "resumed", from_step=back)
        run.metrics(back + 1, 40, back=back)
    curves.told.clear()
    assert send_all(TARGET, run.facts).is_delivered
    assert curves.steps() == list(range(1, 41))
    assert {curves.lines["train", step].get("back") for step in range(11, 41)} == {10}
    assert "begin 0" not in curves.told


def test_curves_go_on_above_the_last_step_that_is_certain(run: ToyRun, curves: Curves) -> None:
    run.metrics(1, 50)
    send_all(TARGET, run.facts)
    assert curves.told[0] == "begin 0"
    run.metrics(51, 60)
    run.metrics(55, 55, kind="val")
    curves.lines["train", 51] = {}  # written by a process that was killed before it noted that
    curves.told.clear()
    assert send_all(TARGET, run.facts).is_delivered
    assert curves.told[0] == "begin 50"
    assert curves.steps() == list(range(1, 61))


def test_a_validation_that_may_be_missing_takes_the_curves_back_before_it(run: ToyRun, curves: Curves) -> None:
    run.metrics(1, 50)
    send_all(TARGET, run.facts)
    run.metrics(30, 30, kind="val")  # was there before, and only the position did not say so
    curves.told.clear()
    assert send_all(TARGET, run.facts).is_delivered
    assert curves.told[0] == "begin 29"
    assert curves.steps() == list(range(1, 51))
    assert curves.steps("val") == [30]


def test_curves_that_changed_without_a_word_are_begun_anew(run: ToyRun, curves: Curves) -> None:
    run.metrics(1, 50)
    relay = RelayThread(TARGET, run.facts)
    wait_for(lambda: curves.writes == 50, "the first lines")
    (run.reports / "train_metrics.jsonl").unlink()
    run.metrics(1, 60, other=True)
    wait_for(lambda: curves.steps() == list(range(1, 61)), "the new lines")
    assert relay.finish().is_delivered
    assert all(line["other"] for line in curves.lines.values())


def test_from_start_writes_all_curves_again(run: ToyRun, curves: Curves) -> None:
    run.metrics(1, 5)
    send_all(TARGET, run.facts)
    curves.told.clear()
    send_all(TARGET, run.facts, from_start=True)
    assert curves.told == ["begin 0", "close"]
    assert curves.writes == 10


@pytest.mark.slow
def test_curves_survive_failures_without_a_step_lost_or_doubled(run: ToyRun, curves: Curves) -> None:
    run.metrics(1, 700)
    relay = RelayThread(TARGET, run.facts)
    wait_for(lambda: curves.writes == 700, "the first lines")
    curves.failures = [Unreachable("away", 0.0), ValueError("its own mistake"), Unreachable("away", 0.0)]
    run.metrics(701, 1500)
    assert relay.finish().is_delivered
    assert curves.steps() == list(range(1, 1501))


# patience


def test_waiting_grows_with_each_failure_and_has_full_jitter() -> None:
    backoff = Backoff(0.5, 30.0, random.Random(7))
    ceilings = [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    rounds = [[], *([] for _ in ceilings[1:])]  # type: list[list[float]]
    for _ in range(300):
        backoff.reset()
        for delays in rounds:
            delays.append(backoff.failed())
    for ceiling, delays in zip(ceilings, rounds, strict=True):
        assert max(delays) <= ceiling
        assert max(delays) > 0.9 * ceiling
        assert min(delays) < 0.15 * ceiling + 0.05
        assert 0.4 * ceiling < sum(delays) / len(delays) < 0.6 * ceiling + 0.05


def test_a_wish_is_the_least_and_has_an_end() -> None:
    backoff = Backoff(rng=random.Random(7))
    assert all(10 <= backoff.failed(10.0) <= 11 for _ in range(50))
    assert backoff.failed(1e9) <= 301


def test_a_kind_whose_library_is_missing_says_what_to_install(run: ToyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(targets.SINKS, "redis", "a_module_that_is_not_there:open_redis")  # type: ignore[attr-defined]
    with pytest.raises(Refused, match=r"trn-runtime\[redis\]"):
        targets.open_sink(Target("redis", "redis://h"), run.facts)


def test_every_kind_has_a_module_with_its_maker() -> None:
    for kind, place in targets.SINKS.items():
        module, _, function = place.partition(":")
        source = Path(targets.__file__).with_name(f"{module.rpartition('.')[2]}.py").read_text()
        assert f"def {function}(" in source, kind
