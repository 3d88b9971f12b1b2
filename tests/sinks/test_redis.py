"""A stream of Redis, with a server that is killed, forgets, is full, is slow, or says no."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path

import pytest
import redis

from support.sending import RelayThread, Server, ToyRun, free_port, lines_of, redis_server, send_all, wait_for
from trn.addresses import parse_target
from trn.sinks.redis import RedisSink
from trn.sinks.sink import Refused, Unreachable

ALWAYS = ("--appendonly", "yes", "--appendfsync", "always")
KEY = "trn:exp01"


def seqs(server: Server, key: str = KEY) -> list[int]:
    return [int(entry.partition("-")[0]) for entry, _ in server.entries(key)]


def test_a_stream_has_each_event_once_in_order_and_whole(tmp_path: Path) -> None:
    run = ToyRun(tmp_path / "runs")
    run.emit(700)
    with redis_server(tmp_path) as server:
        relay = send_all(server.url, run.facts)
        entries = server.entries()
    assert relay.is_delivered
    assert [json.loads(fields["data"]) for _, fields in entries] == lines_of(run.events_file)
    assert [entry for entry, _ in entries] == [f"{seq}-0" for seq in range(1, 701)]
    assert entries[6][1].keys() == {"event", "run_id", "job_id", "seq", "ts", "data"}
    assert relay.standing.sent == 700
    assert relay.standing.behind == 0


def test_events_that_come_while_it_sends_follow(tmp_path: Path) -> None:
    run = ToyRun(tmp_path / "runs")
    with redis_server(tmp_path) as server:
        relay = RelayThread(server.url, run.facts)
        for count in (1, 5, 30):
            run.emit(count)
            wait_for(lambda: len(seqs(server)) == run.log.seq, "the events")
        relay.finish()


def test_a_consumer_group_reads_and_acknowledges(tmp_path: Path) -> None:
    run = ToyRun(tmp_path / "runs")
    run.emit(10)
    with redis_server(tmp_path) as server:
        send_all(server.url, run.facts)
        client = server.client
        client.xgroup_create(KEY, "page", id="0")
        [[_, taken]] = client.xreadgroup("page", "one", {KEY: ">"}, count=4)
        client.xack(KEY, "page", *[entry for entry, _ in taken])
        [[_, rest]] = client.xreadgroup("page", "two", {KEY: ">"}, count=100)
        assert len(taken) == 4
        assert len(rest) == 6
        assert client.xpending(KEY, "page")["pending"] == 6


def test_sent_again_nothing_is_doubled_even_without_a_position(tmp_path: Path) -> None:
    run = ToyRun(tmp_path / "runs")
    run.emit(50)
    with redis_server(tmp_path) as server:
        send_all(server.url, run.facts)
        shutil.rmtree(tmp_path / "runs" / ".trn" / "sinks")
        run.emit(5)
        relay = send_all(server.url, run.facts, from_start=True)
        assert seqs(server) == list(range(1, 56))
    assert relay.standing.sent == 5


def test_a_repeat_is_refused_by_the_server(tmp_path: Path) -> None:
    run = ToyRun(tmp_path / "runs")
    run.emit(3)
    with redis_server(tmp_path) as server:
        send_all(server.url, run.facts)
        with pytest.raises(redis.ResponseError, match="equal or smaller"):
            server.client.xadd(KEY, {"event": "note"}, id="3-0")


def test_a_stream_may_be_named_and_kept_short(tmp_path: Path) -> None:
    run = ToyRun(tmp_path / "runs")
    run.emit(2000)
    with redis_server(tmp_path) as server:
        relay = send_all(f"{server.url}?stream=lab&maxlen=100", run.facts)
        found = seqs(server, "lab:exp01")
        assert relay.is_delivered
        assert 100 <= len(found) < 400  # the server trims whole nodes
        assert found[-1] == 2000
        run.emit(1)
        send_all(f"{server.url}?stream=lab&maxlen=100", run.facts)
        assert seqs(server, "lab:exp01")[-2:] == [2000, 2001]


def test_a_stream_that_was_trimmed_to_nothing_goes_on(tmp_path: Path) -> None:
    run = ToyRun(tmp_path / "runs")
    run.emit(20)
    with redis_server(tmp_path) as server:
        send_all(server.url, run.facts)
        server.client.xtrim(KEY, maxlen=0, approximate=False)
        run.emit(2)
        send_all(server.url, run.facts)
        assert seqs(server) == [21, 22]


def test_a_stream_that_was_deleted_is_written_anew(tmp_path: Path) -> None:
    run = ToyRun(tmp_path / "runs")
    run.emit(20)
    with redis_server(tmp_path) as server:
        relay = RelayThread(server.url, run.facts)
        wait_for(lambda: len(seqs(server)) == 20, "the events")
        server.client.delete(KEY)
        run.emit(5)
        wait_for(lambda: len(seqs(server)) == 25, "the stream")
        assert relay.finish().is_delivered


def kill_again_and_again(tmp_path: Path, events: int, kills: int, keeps: tuple[str, ...]) -> Server:
    """Send while the server dies and comes back; returns it, alive."""
    run = ToyRun(tmp_path / "runs")
    server = Server(tmp_path, keeps).start()
    relay = RelayThread(server.url, run.facts)
    writer = threading.Thread(target=lambda: [(run.emit(50), time.sleep(0.01)) for _ in range(events // 50)])
    writer.start()
    for number in range(1, kills + 1):
        wait_for(lambda n=number: len(seqs(server)) >= events * n // (kills + 2), "the stream to grow")
        server.kill()
        server.start()
    writer.join()
    assert relay.finish().is_delivered
    assert relay.relay.standing.behind == 0
    assert len(relay.said) == 1
    return server


EACH_SECOND = ("--appendonly", "yes", "--appendfsync", "everysec")
NOTHING = ("--appendonly", "no", "--save", "")


@pytest.mark.slow
@pytest.mark.parametrize("keeps", [ALWAYS, EACH_SECOND, NOTHING], ids=["always", "each second", "nothing"])
def test_a_server_that_is_killed_and_comes_back_has_each_event_once_in_order(
    tmp_path: Path, keeps: tuple[str, ...]
) -> None:
    server = kill_again_and_again(tmp_path, events=10_000, kills=5, keeps=keeps)
    try:
        assert seqs(server) == list(range(1, 10_001))
    finally:
        server.kill()


def test_a_server_that_lost_its_last_events_is_given_them_again(tmp_path: Path) -> None:
    """An older file put back: what a server without fsync finds after the power came back."""
    run = ToyRun(tmp_path / "runs")
    run.emit(30)
    server = Server(tmp_path, ALWAYS).start()
    try:
        relay = RelayThread(server.url, run.facts)
        wait_for(lambda: len(seqs(server)) == 30, "the first events")
        shutil.copytree(tmp_path / "appendonlydir", tmp_path / "older")
        run.emit(30)
        wait_for(lambda: len(seqs(server)) == 60, "the next events")
        server.kill()
        shutil.rmtree(tmp_path / "appendonlydir")
        shutil.move(tmp_path / "older", tmp_path / "appendonlydir")
        server.start()
        assert seqs(server) == list(range(1, 31))
        run.emit(30)
        assert relay.finish().is_delivered
        assert seqs(server) == list(range(1, 91))
    finally:
        server.kill()


@pytest.mark.parametrize("notices", ["while nothing is sent", "at the end"])
def test_a_server_that_lost_everything_after_the_last_event_is_given_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notices: str
) -> None:
    monkeypatch.setattr("trn.sinks.relay._CONFIRM_EVERY_S", 0.1 if notices == "while nothing is sent" else 1e9)
    run = ToyRun(tmp_path / "runs")
    run.emit(30)
    with redis_server(tmp_path) as server:
        relay = RelayThread(server.url, run.facts)
        wait_for(lambda: len(seqs(server)) == 30, "the events")
        server.kill()
        server.start()
        if notices == "while nothing is sent":
            wait_for(lambda: len(seqs(server)) == 30, "the events to be there again")
        assert relay.finish().is_delivered
        assert seqs(server) == list(range(1, 31))


def test_a_full_server_is_asked_until_it_has_room_and_loses_nothing(tmp_path: Path) -> None:
    run = ToyRun(tmp_path / "runs")
    with redis_server(tmp_path, "--maxmemory", "3mb", "--maxmemory-policy", "noeviction") as server:
        run.emit(12000, text="y" * 200)
        relay = RelayThread(server.url, run.facts)
        wait_for(lambda: relay.relay.standing.last_error, "the server to be full")
        assert "maxmemory" in str(relay.relay.standing.last_error)
        assert 0 < len(seqs(server)) < 12000
        server.client.config_set("maxmemory", "0")
        assert relay.finish().is_delivered
        assert seqs(server) == list(range(1, 12001))
    assert len(relay.said) == 1
    assert relay.relay.standing.last_error is None


@pytest.mark.slow
def test_a_server_that_sleeps_longer_than_the_patience_of_a_call_gets_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trn.sinks.redis._TIMEOUT_S", 0.3)
    run = ToyRun(tmp_path / "runs")
    run.emit(100)
    with redis_server(tmp_path) as server:
        relay = RelayThread(server.url, run.facts)
        wait_for(lambda: len(seqs(server)) == 100, "the first events")
        for number, pause in enumerate((["DEBUG", "SLEEP", "1"], ["CLIENT", "PAUSE", "1000", "WRITE"]), 1):
            sleeper = threading.Thread(target=server.client.execute_command, args=pause)
            sleeper.start()
            time.sleep(0.05)
            run.emit(100)
            wait_for(lambda: relay.relay.standing.last_error, "a call to take too long")
            sleeper.join()
            wait_for(lambda n=number: len(seqs(server)) == 100 * (n + 1), "the events")
            wait_for(lambda: relay.relay.standing.last_error is None, "the relay to know")
        assert relay.finish().is_delivered
        assert seqs(server) == list(range(1, 301))


def test_another_type_under_the_key_is_told_once_and_keeps_the_events(tmp_path: Path) -> None:
    run = ToyRun(tmp_path / "runs")
    run.emit(5)
    with redis_server(tmp_path) as server:
        server.client.set(KEY, "no stream")
        relay = RelayThread(server.url, run.facts)
        wait_for(lambda: relay.said, "the refusal")
        assert "WRONGTYPE" in relay.said[0]
        assert not relay.finish(5).is_delivered
        assert relay.relay.standing.behind == 5
        assert relay.relay.standing.dropped == 0
        server.client.delete(KEY)
        assert send_all(server.url, run.facts).is_delivered
        assert seqs(server) == [1, 2, 3, 4, 5]


def test_a_wrong_password_is_told_and_the_right_one_never_is(tmp_path: Path) -> None:
    run = ToyRun(tmp_path / "runs")
    run.emit(5)
    with redis_server(tmp_path, "--requirepass", "violet-tango") as server:
        wrong = RelayThread(f"{server.url}?password_env=PW", run.with_environ(PW="blue-waltz"))
        wait_for(lambda: wrong.said, "the refusal")
        assert not wrong.finish(5).is_delivered
        missing = RelayThread(f"{server.url}?password_env=PW", run.facts)
        wait_for(lambda: missing.said, "the refusal")
        assert "PW (password_env) is not set" in missing.said[0]
        missing.finish(5)
        (tmp_path / "pw").write_text("violet-tango\n")
        right = send_all(f"{server.url}?password_file={tmp_path}/pw", run.facts)
        assert right.is_delivered
        assert redis.Redis(port=server.port, password="violet-tango").xlen(KEY) == 5
    kept = "".join(path.read_text() for path in (tmp_path / "runs").rglob("*.json*")) + str(wrong.said + missing.said)
    assert "violet" not in kept
    assert "waltz" not in kept


def test_a_server_that_repeats_what_it_is_sent_does_not_tell_the_password(tmp_path: Path) -> None:
    run = ToyRun(tmp_path / "runs")
    run.emit(5)
    with redis_server(tmp_path, "--rename-command", "AUTH", "") as server:
        relay = RelayThread(f"{server.url}?password_env=PW", run.with_environ(PW="violet"))
        wait_for(lambda: relay.said, "the refusal")
        relay.finish(5)
    assert "AUTH" in relay.said[0]
    assert "violet" not in relay.said[0]
    assert not any(b"violet" in path.read_bytes() for path in (tmp_path / "runs").rglob("*.json"))


def test_two_runs_of_one_name_that_begin_together_never_share_a_stream(tmp_path: Path) -> None:
    """The other's events come after this one has looked, and before its batch."""
    one, other = ToyRun(tmp_path / "a"), ToyRun(tmp_path / "b", job_id="job-2")
    one.emit(9)
    other.emit(3)
    with redis_server(tmp_path) as server:
        sink = RedisSink(parse_target(server.url), one.facts)
        assert sink.last_seq() == 0
        ask = sink._ask

        def ask_and_lose(client: object) -> int:
            last = ask(client)
            if not seqs(server):
                send_all(server.url, other.facts)
            return last

        sink._ask = ask_and_lose  # type: ignore[method-assign]
        with pytest.raises(Unreachable):
            sink.send(lines_of(one.events_file))
        with pytest.raises(Refused, match="another run with this name"):
            sink.last_seq()
        sink.close()
        assert [fields["job_id"] for _, fields in server.entries()] == ["job-2"] * 3


def test_a_server_that_was_never_there_is_told_once_and_counted(tmp_path: Path) -> None:
    run = ToyRun(tmp_path / "runs")
    run.emit(5)
    relay = RelayThread(f"redis://127.0.0.1:{free_port()}/0", run.facts)
    wait_for(lambda: relay.relay.standing.last_error and relay.relay.standing.behind == 5, "the failure")
    run.emit(1)
    time.sleep(0.3)
    relay.stop()
    assert len(relay.said) == 1
    assert "Connection refused" in relay.said[0]
    assert relay.relay.standing.behind == 6
    assert relay.relay.standing.failing_since


def test_the_stream_of_another_run_of_the_same_name_is_left_alone(tmp_path: Path) -> None:
    one, other = ToyRun(tmp_path / "a"), ToyRun(tmp_path / "b", job_id="job-2")
    one.emit(3)
    other.emit(9)
    with redis_server(tmp_path) as server:
        send_all(server.url, one.facts)
        relay = RelayThread(server.url, other.facts)
        wait_for(lambda: relay.said, "the refusal")
        assert "DEL trn:exp01" in relay.said[0]
        relay.finish(5)
        assert seqs(server) == [1, 2, 3]
        assert send_all(f"{server.url}?stream=other", other.facts).is_delivered
