"""`redis://HOST:PORT/DB`: one stream of Redis for each run, `trn:RUN_ID`, or `NAME:RUN_ID` with `stream=NAME`.

    XADD trn:exp01 17-0 event checkpoint run_id exp01 job_id job-... seq 17 ts 2026-... data {...the whole event...}

The id of an entry is the event's `seq`, so the server itself refuses a repeat, and the last id that it has is how far
the stream is: asked at each connection, and before each batch, since a server may come back with less than it had. A
batch is one transaction: the server has all of it or nothing, also when its memory is full or somebody else writes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError, OutOfMemoryError
from redis.retry import Retry

from trn.records import json_line
from trn.sinks.reader import find_event
from trn.sinks.secrets import secret_of
from trn.sinks.sink import EventSink, Json, Refused, RunFacts, Unreachable
from trn.sinks.targets import Target

__all__ = ["RedisSink", "open_redis"]

_TIMEOUT_S = 5.0
_ATTEMPTS = 10
_PASSING = ("READONLY", "You can't write against a read only", "MISCONF", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN")
"""Beginnings of answers that another answer follows by itself; a wrong type under the key stays."""
_HEAD = ("event", "run_id", "job_id", "seq", "ts")


class RedisSink(EventSink):
    """Adds events to a stream; a new connection after each failure, with the secret as it then is."""

    def __init__(self, target: Target, run: RunFacts) -> None:
        self._target = target
        self._run = run
        self.key = f"{target.options.get('stream', 'trn')}:{run.run_id}"
        self._longest = int(target.options["maxlen"]) if "maxlen" in target.options else None
        self._client: Any = None
        self._last = 0

    def last_seq(self) -> int:
        self.close()
        password = secret_of(self._target, self._run, "password")
        with _told():
            self._client = redis.Redis.from_url(
                self._target.url,
                username=self._target.options.get("username"),
                password=password,
                socket_timeout=_TIMEOUT_S,
                socket_connect_timeout=_TIMEOUT_S,
                retry=Retry(NoBackoff(), 0),  # patience is the relay's
                protocol=2,  # which servers since 5.0 speak, the first that have streams
                client_name="trn",
            )
            self._last = self._ask(self._client)
            self._check_last()
        return self._last

    def _ask(self, client: Any) -> int:
        """The last id that the stream ever had, 0 where there is no stream; also of one that was trimmed to nothing."""
        try:
            information = client.xinfo_stream(self.key)
        except redis.ResponseError as error:
            if "no such key" in str(error):
                return 0
            raise
        return _seq_of(information["last-generated-id"])

    def _check_last(self) -> None:
        """Refuse a stream of the same name that is another run's, or was written by another hand."""
        newest = self._client.xrevrange(self.key, count=1) if self._last else []
        if not newest or _seq_of(newest[0][0]) != self._last:
            return
        fields = {name.decode(): value.decode(errors="replace") for name, value in newest[0][1].items()}
        event = find_event(self._run.reports / "events.jsonl", self._last)
        if event is None or any(fields.get(name) != str(event.get(name)) for name in _HEAD):
            raise Refused(
                f"the stream {self.key} holds events of another run with this name: delete it (DEL {self.key}) or "
                "name another with stream=NAME",
                of_target=True,
            )

    def send(self, events: Sequence[Json]) -> None:
        with _told():
            for _ in range(_ATTEMPTS):
                if self._add(events):
                    self._last = events[-1]["seq"]
                    return
        raise Unreachable("somebody else keeps changing the stream", retry_after_s=0.0)

    def _add(self, events: Sequence[Json]) -> bool:
        """Whether it was done; not where the stream was changed meanwhile, by another writer or a trim."""
        try:
            with self._client.pipeline(transaction=True) as batch:
                batch.watch(self.key)
                if self._ask(batch) != self._last:
                    raise Unreachable("the stream is not what it was: the server has lost something", 0.0)
                batch.multi()
                for event in events:
                    batch.xadd(self.key, _fields(event), id=f"{event['seq']}-0", maxlen=self._longest, approximate=True)
                batch.execute()
        except redis.WatchError as error:
            if isinstance(lost := error.__context__, redis.ConnectionError | redis.TimeoutError):
                raise lost from None  # the client calls it so where the connection goes after the WATCH
            return False
        return True

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(redis.RedisError, OSError):
                client.close()


def _fields(event: Json) -> dict[str, str | bytes]:
    head = {name: str(event.get(name, "")) for name in _HEAD}
    return {**head, "data": json_line(event)[:-1]}


def _seq_of(entry_id: bytes | str) -> int:
    text = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
    return int(text.partition("-")[0])


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What the client raises, as one of the two errors of a sink."""
    try:
        yield
    except (AuthenticationError, AuthorizationError, NoPermissionError) as error:
        raise Refused(f"the server refuses the name or password: {error}", of_target=True) from error
    except (redis.ConnectionError, redis.TimeoutError, OutOfMemoryError) as error:
        raise Unreachable(str(error)) from error
    except redis.ResponseError as error:
        if str(error).startswith(_PASSING):
            raise Unreachable(f"the server says: {error}") from error
        raise Refused(f"the server says: {error}", of_target=True) from error
    except OSError as error:
        raise Unreachable(str(error)) from error


def open_redis(target: Target, run: RunFacts) -> EventSink:
    return RedisSink(target, run)
