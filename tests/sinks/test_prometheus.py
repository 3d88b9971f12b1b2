"""The page of numbers: its format by a strict reader, its values by the files, and who may ask."""

from __future__ import annotations

import http.client
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from support.sending import RelayThread, ToyRun, free_port, send_all, wait_for
from support.stand_in import outcome_of_job
from trn.files import Lock, write_atomic
from trn.records import pretty_json
from trn.sinks.prometheus import PrometheusSink
from trn.sinks.sink import RunFacts, Unreachable
from trn.sinks.targets import open_sink, parse_target

_SAMPLE = re.compile(r"([a-z_][a-z0-9_]*)\{(.*)\} (\S+)")
_LABEL = re.compile(r'([a-z_][a-z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(?:,|$)')
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?")

Sample = tuple[str, frozenset[tuple[str, str]]]


def parsed(page: str) -> dict[Sample, float]:
    """The samples by name and labels. Refuses what the format does: lines of a name stand together, after its type."""
    assert page.endswith("\n")
    samples: dict[Sample, float] = {}
    seen: list[str] = []
    for line in page.splitlines():
        if line.startswith("# HELP "):
            name = line.split()[2]
            assert name not in seen, f"{name} stands in two places"
            seen.append(name)
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name == seen[-1]
            assert kind in ("gauge", "counter")
            assert name.endswith("_total") == (kind == "counter")
        else:
            found = _SAMPLE.fullmatch(line)
            assert found, line
            assert found[1] == seen[-1], line
            assert _NUMBER.fullmatch(found[3]), line
            key = found[1], frozenset(labels_of(found[2]))
            assert key not in samples, line
            samples[key] = float(found[3])
    return samples


def labels_of(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(text):
        found = _LABEL.match(text, at)
        assert found, text[at:]
        yield found[1], re.sub(r"\\(.)", lambda mark: {"n": "\n"}.get(mark[1], mark[1]), found[2])
        at = found.end()


def asked(address: str, path: str = "/metrics", host: str | None = None) -> tuple[int, dict[str, str], str]:
    place = urlsplit(address)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=20)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, dict(answer.headers), body


@contextmanager
def serving(run: RunFacts, text: str = "prometheus://127.0.0.1:0") -> Iterator[PrometheusSink]:
    sink: Any = open_sink(parse_target(text), run)
    assert isinstance(sink, PrometheusSink)
    sink.begin(0)
    try:
        yield sink
    finally:
        sink.close()


@pytest.fixture
def run(tmp_path: Path) -> ToyRun:
    return ToyRun(tmp_path / "runs")


def value(samples: dict[Sample, float], name: str, **labels: str) -> float | None:
    return samples.get((name, frozenset({"run_id": "exp01", **labels}.items())))


def test_the_page_says_how_the_run_stands_now(run: ToyRun) -> None:
    run.log.emit("started", step=0, max_steps=500)
    run.emit(3, "checkpoint")
    run.metrics(1, 7, epoch=2, lr=1e-5, samples_per_sec=2048.5, wall_ms=5.0, gpu_util_pct=None, mae=0.25)
    run.metrics(6, 6, "val", val_mae=0.125)
    with serving(run.facts) as sink:
        status, headers, body = asked(sink.address)
        assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
        samples = parsed(body)
        assert value(samples, "trn_step") == 7
        assert value(samples, "trn_max_steps") == 500
        assert value(samples, "trn_epoch") == 2
        assert value(samples, "trn_train_loss") == 1 / 7
        assert value(samples, "trn_learning_rate") == 1e-5
        assert value(samples, "trn_samples_per_second") == 2048.5
        assert value(samples, "trn_step_seconds") == 0.005
        assert value(samples, "trn_accelerator_utilisation_ratio") is None
        assert value(samples, "trn_metric", curve="train", metric="mae") == 0.25
        assert value(samples, "trn_metric", curve="val", metric="mae") == 0.125
        assert value(samples, "trn_val_step") == 6
        assert value(samples, "trn_val_loss") == 1 / 6
        assert value(samples, "trn_events_total", event="checkpoint") == 3
        changed_s = value(samples, "trn_last_step_timestamp_seconds")
        assert changed_s is not None
        assert abs(changed_s - time.time()) < 600
        run.metrics(8, 9)
        run.emit(2, "checkpoint")
        later = parsed(asked(sink.address)[2])
        assert value(later, "trn_step") == 9
        assert value(later, "trn_learning_rate") is None
        assert value(later, "trn_events_total", event="checkpoint") == 5
        run.cut(4)
        assert value(parsed(asked(sink.address)[2]), "trn_step") == 4


def test_a_run_without_a_line_has_a_page(run: ToyRun) -> None:
    with serving(run.facts) as sink:
        samples = parsed(asked(sink.address)[2])
        assert value(samples, "trn_run_state", state="lost") == 1
        assert value(samples, "trn_step") is None


def test_the_state_is_that_of_the_lock_and_then_of_the_outcome(run: ToyRun) -> None:
    lock = Lock(run.dir / ".lock")
    assert lock.acquire(note="pid=1 job=job-1")
    with serving(run.facts) as sink:
        assert value(parsed(asked(sink.address)[2]), "trn_run_state", state="running") == 1
        lock.release()
        outcome = outcome_of_job(run.dir, "job-1", "early_stopped", 3)
        write_atomic(run.reports / "outcome.json", pretty_json(outcome.to_json()))
        samples = parsed(asked(sink.address)[2])
        assert value(samples, "trn_run_state", state="early_stopped") == 1
        assert value(samples, "trn_run_state", state="running") is None


def test_names_that_a_trainer_chose_are_escaped(run: ToyRun) -> None:
    odd = 'acc "top\\5"\n{a="b"} 1'
    run.metrics(1, 1, **{odd: 0.5, "é": 2})
    facts = replace(run.facts, plan={"trainer": {"name": 'my"mod\\ule:A\nB'}, "device": "cpu"})
    with serving(facts) as sink:
        samples = parsed(asked(sink.address)[2])
    assert value(samples, "trn_metric", curve="train", metric=odd) == 0.5
    assert value(samples, "trn_metric", curve="train", metric="é") == 2
    assert value(samples, "trn_run_info", job_id="job-1", trainer='my"mod\\ule:A\nB', device="cpu") == 1


def test_the_page_says_how_far_all_other_targets_are(run: ToyRun, tmp_path: Path) -> None:
    run.emit(5)
    target = f"file:{tmp_path / 'events.jsonl'}"
    assert send_all(target, run.facts).is_delivered
    run.emit(2)
    with serving(run.facts) as sink:
        samples = parsed(asked(sink.address)[2])
    assert value(samples, "trn_sink_sent_total", target=target) == 5
    assert value(samples, "trn_sink_behind", target=target) == 2
    assert value(samples, "trn_sink_dropped_total", target=target) == 0
    assert value(samples, "trn_sink_failing", target=target) == 0


def test_only_this_host_is_answered_and_only_with_the_page(run: ToyRun) -> None:
    with serving(run.facts) as sink:
        port = urlsplit(sink.address).port
        assert asked(sink.address, host=f"localhost:{port}")[0] == 200
        assert asked(sink.address, host=f"evil.example:{port}")[0] == 403
        assert asked(sink.address, path="/metrics?name=x")[0] == 200
        assert asked(sink.address, path="/reports/resolved_config.json")[0] == 404
        with socket.create_connection(("127.0.0.1", port or 0), timeout=20) as connection:
            connection.sendall(f"POST /metrics HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            assert connection.recv(64).startswith(b"HTTP/1.0 501")


@pytest.mark.slow
def test_readers_that_say_nothing_do_not_keep_others_waiting_for_long(
    run: ToyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trn.sinks.prometheus._Handler.timeout", 0.3)
    with serving(run.facts) as sink:
        place = ("127.0.0.1", urlsplit(sink.address).port or 0)
        silent = [socket.create_connection(place, timeout=20) for _ in range(20)]
        threads = threading.active_count()

        def is_answered() -> bool:
            try:
                return asked(sink.address)[0] == 200
            except (OSError, http.client.HTTPException):
                return False

        wait_for(is_answered, "a page beside silent readers")
        assert threads < 20
        for connection in silent:
            connection.close()


def test_a_port_that_is_taken_is_asked_for_again_and_given_back_at_the_end(run: ToyRun) -> None:
    run.metrics(1, 3)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        sink: Any = open_sink(parse_target(f"prometheus://127.0.0.1:{port}"), run.facts)
        with pytest.raises(Unreachable, match=f"127.0.0.1:{port}: Address already in use"):
            sink.begin(0)
        thread = RelayThread(f"prometheus://127.0.0.1:{port}", run.facts)
        wait_for(lambda: thread.said, "a word about the port")
    wait_for(lambda: thread.relay.standing.sent == 3, "the port")
    assert value(parsed(asked(f"http://127.0.0.1:{port}/metrics")[2]), "trn_step") == 3
    assert thread.finish().is_delivered
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_another_address_of_loopback_will_do(run: ToyRun) -> None:
    port = free_port()
    with serving(run.facts, f"prometheus://localhost:{port}") as sink:
        assert asked(sink.address)[0] == 200
