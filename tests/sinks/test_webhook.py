"""A web hook, with a receiver that fails, asks for patience, refuses, redirects, or is not there."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from email.utils import formatdate
from pathlib import Path

import jsonschema
import pytest

from support.sending import Receiver, RelayThread, ToyRun, free_port, lines_of, receiver, send_all, wait_for
from trn.addresses import parse_target
from trn.sinks.sink import Refused, Unreachable
from trn.sinks.webhook import WebhookSink, signature

ENVELOPE = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["specversion", "id", "source", "type", "time", "data", "datacontenttype", "subject"],
        "additionalProperties": False,
        "properties": {
            "specversion": {"const": "1.0"},
            "id": {"type": "string", "minLength": 1},
            "source": {"type": "string", "minLength": 1, "format": "uri-reference"},
            "type": {"type": "string", "pattern": "^trn\\.[a-z_]+$"},
            "subject": {"type": "string", "minLength": 1},
            "time": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+Z$"},
            "datacontenttype": {"const": "application/json"},
            "data": {"type": "object"},
        },
    },
}
"""What CloudEvents 1.0 requires of these attributes, and names of lower-case letters and digits alone."""


@pytest.fixture
def run(tmp_path: Path) -> ToyRun:
    return ToyRun(tmp_path / "runs")


def keys(kept: Receiver) -> list[str]:
    return [headers["idempotency-key"] for headers, _ in kept.requests]


def test_events_come_in_order_in_batches_of_cloud_events(run: ToyRun) -> None:
    run.emit(150)
    with receiver() as kept:
        assert send_all(kept.url, run.facts).is_delivered
    assert kept.ids == list(range(1, 151))
    assert [one["data"] for one in kept.taken] == lines_of(run.events_file)
    for headers, body in kept.requests:
        assert headers["content-type"].startswith("application/cloudevents-batch+json")
        jsonschema.validate(json.loads(body), ENVELOPE)
    assert len(set(keys(kept))) == len(kept.requests) == 3


def test_a_signature_is_that_of_the_body_and_the_time(run: ToyRun) -> None:
    run.emit(1)
    with receiver() as kept:
        send_all(f"{kept.url}?secret_env=HOOK&token_env=TOKEN", run.with_environ(HOOK="violet", TOKEN="tango"))
    [(headers, body)] = kept.requests
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    digest = base64.b64encode(hmac.digest(b"violet", signed, hashlib.sha256)).decode()
    assert headers["webhook-signature"] == f"v1,{digest}"
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    assert headers["authorization"] == "Bearer tango"
    assert headers["webhook-id"] == headers["idempotency-key"]
    assert "violet" not in str(headers)


def test_the_signature_is_the_one_of_the_published_example() -> None:
    """The example of the specification of Standard Webhooks."""
    body = b'{"test": 2432232314}'
    made = signature("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("status", [408, 429, 503])
def test_a_passing_failure_is_tried_again_with_the_same_key(run: ToyRun, status: int) -> None:
    run.emit(10)
    with receiver(status, status) as kept:
        relay = send_all(kept.url, run.facts)
    assert relay.is_delivered
    assert kept.ids == list(range(1, 11))
    assert len(kept.requests) == 3
    assert len(set(keys(kept))) == 1


def test_retry_after_is_kept_whether_seconds_or_a_date(run: ToyRun) -> None:
    run.emit(1)
    date = formatdate(time.time() + 100, usegmt=True)
    cases = (("7", 7.0), (date, 100.0), ("soon", None), ("", None), ("-3", None))
    for value, expected in cases:
        with receiver((503, {"Retry-After": value})) as kept:
            sink = WebhookSink(parse_target(kept.url), run.facts)
            with pytest.raises(Unreachable) as caught:
                sink.send(lines_of(run.events_file))
        assert caught.value.retry_after_s == (pytest.approx(expected, abs=2) if expected else None)


def test_a_batch_that_is_refused_is_left_out_counted_and_told_once(run: ToyRun) -> None:
    run.emit(64 * 3)
    with receiver(400, 422) as kept:
        relay = RelayThread(kept.url, run.facts)
        done = relay.finish()
    assert kept.ids == list(range(129, 193))
    assert done.standing.dropped == done.dropped == 128
    assert done.standing.sent == 64
    assert len(relay.said) == 1
    assert "400" in relay.said[0]


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_an_address_or_token_that_is_wrong_costs_no_event(run: ToyRun, status: int) -> None:
    run.emit(5)
    with receiver(*[status] * 9) as kept:
        relay = RelayThread(kept.url, run.facts)
        wait_for(lambda: relay.said, "the refusal")
        assert not relay.finish(5).is_delivered
        assert relay.relay.standing.dropped == 0
        kept.answers.clear()
        assert send_all(kept.url, run.facts).is_delivered
    assert kept.ids == [1, 2, 3, 4, 5]


def test_a_batch_that_is_too_large_is_halved(run: ToyRun) -> None:
    run.emit(9)
    with receiver(413, 413) as kept:
        assert send_all(kept.url, run.facts).is_delivered
    assert kept.ids == list(range(1, 10))
    assert len(set(keys(kept))) == len(kept.requests)


def test_an_event_that_is_too_large_costs_no_other(run: ToyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run.emit(20)
    run.emit(1, text="y" * 100_000)
    run.emit(20)

    def answer(self: Receiver, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str]]:
        if len(body) > 50_000:
            return 413, {}
        self.taken += json.loads(body)
        return 200, {}

    monkeypatch.setattr(Receiver, "answer", answer)
    with receiver() as kept:
        relay = RelayThread(kept.url, run.facts)
        done = relay.finish()
    assert sorted(kept.ids) == [one for one in range(1, 42) if one != 21]
    assert (done.standing.sent, done.standing.dropped, done.is_delivered) == (40, 1, True)
    assert len(relay.said) == 1


def test_a_redirection_is_not_followed_and_the_token_goes_nowhere_else(run: ToyRun) -> None:
    run.emit(1)
    with receiver() as elsewhere:
        for status in (301, 302, 303, 307, 308):
            with receiver((status, {"Location": elsewhere.url})) as kept:
                sink = WebhookSink(parse_target(f"{kept.url}?token_env=T"), run.with_environ(T="violet"))
                with pytest.raises(Refused, match="no redirection is followed") as caught:
                    sink.send(lines_of(run.events_file))
                assert caught.value.of_target
        assert elsewhere.requests == []


def test_a_proxy_of_the_environment_gets_nothing_that_is_not_encrypted(
    run: ToyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.emit(1)
    with receiver() as proxy, receiver() as kept:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert send_all(kept.url, run.facts).is_delivered
        assert proxy.requests == []


def test_a_receiver_that_was_never_there_gets_all_when_it_comes(run: ToyRun) -> None:
    run.emit(5)
    relay = RelayThread(f"http://127.0.0.1:{free_port()}/x", run.facts)
    wait_for(lambda: relay.said, "the failure")
    relay.stop()
    assert "Connection refused" in relay.said[0]
    with receiver() as kept:
        send_all(kept.url, run.facts)
    assert kept.ids == [1, 2, 3, 4, 5]


def test_a_position_that_is_lost_means_all_again_and_a_kept_one_does_not(run: ToyRun, tmp_path: Path) -> None:
    run.emit(5)
    with receiver() as kept:
        send_all(kept.url, run.facts)
        run.emit(2)
        send_all(kept.url, run.facts)
        assert kept.ids == [1, 2, 3, 4, 5, 6, 7]
        [position] = (tmp_path / "runs/.trn/sinks/exp01").glob("*.json")
        position.write_bytes(position.read_bytes()[:-20])
        send_all(kept.url, run.facts)
        assert kept.ids[7:] == [1, 2, 3, 4, 5, 6, 7]
        send_all(kept.url, run.facts, from_start=True)
        assert kept.ids[14:] == [1, 2, 3, 4, 5, 6, 7]


def test_a_secret_is_never_written_or_told(run: ToyRun, tmp_path: Path) -> None:
    run.emit(1)
    with receiver(500, 400) as kept:
        relay = RelayThread(f"{kept.url}?secret_env=HOOK&token_env=T", run.with_environ(HOOK="violet", T="tango"))
        relay.finish()
    written = "".join(path.read_text() for path in (tmp_path / "runs" / ".trn").rglob("*.json"))
    assert "violet" not in written + str(relay.said)
    assert "tango" not in written + str(relay.said)
