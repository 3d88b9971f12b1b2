"""The right to run: claimed from an orchestrator, renewed while the run goes on, lost for good when it is lost.

    claim ──> Lease ──Renewing──> asks each third of its time; a wish to cancel, and the loss, are told once each
                          │
                          └─ headers(): what every request carries; raises once the lease is over

A lease lasts from when its request was *sent*, by a clock that goes on while this process is stopped and the machine
asleep; so it ends here no later than there. Whoever was stopped for longer finds out before it sends anything, and what
was on its way is turned away by its generation (docs/orchestrator.md). Not here: what a loss or a wish means for the
run (worker/company).
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from trn.errors import PlanRefused, Stopped, TrnError, Unauthorized
from trn.transfer.backoff import Backoff
from trn.transfer.client import Answer, Client, Refused, Unreachable

__all__ = ["Lease", "LeaseLost", "Renewing", "claim", "clock_s"]

_LEASE_ID = re.compile(r"[A-Za-z0-9._~-]{1,128}")
_LONGEST_S = 86_400.0
_OVER = frozenset({404, 409, 410})
"""Answers that say that the lease is somebody else's, or nobody's."""
_UNANSWERED_S = 60.0
"""How long a claim is tried where nobody answers at all, however short the wait for the run itself."""
_CLAIM_TIMEOUT_S = 10.0
_RELEASE_S = 5.0
_LOOK_S = 0.2
_WAKE_S = 1.0
"""How late a loss may be noticed after the machine was asleep: waiting does not count that time, the clock does."""


def clock_s() -> float:
    """Seconds that also pass while the machine is asleep, where the system can tell."""
    return time.clock_gettime(_CLOCK)


_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class LeaseLost(Stopped):
    """The lease is over, so nothing more may be sent with it."""

    def __init__(self, reason: str) -> None:
        super().__init__("preempted", f"the lease is lost: {reason}")


@dataclass(frozen=True)
class Lease:
    """The right to speak for a run, for `ttl_s` after `sent_s`. `generation` is higher than that of all before it."""

    lease_id: str
    generation: int
    ttl_s: float
    url: str
    sent_s: float
    client: Client = field(repr=False, compare=False)
    cancel_reason: str | None = None
    """Why the run is to be cancelled, where that was said at once."""

    @property
    def headers(self) -> Mapping[str, str]:
        return {"Lease-Id": self.lease_id, "Lease-Generation": str(self.generation)}


def claim(
    client: Client,
    base_url: str,
    run_id: str,
    *,
    worker_id: str,
    job_id: str,
    wait_s: float,
    is_stopped: Callable[[], bool],
    host: str = "",
) -> Lease:
    """The lease of the run. Waits up to `wait_s` while somebody else holds it, and a minute while nobody answers.

    Raises Stopped (`preempted`: the same again later may succeed) when that time is over or `is_stopped` says so;
    Unauthorized where the token is not taken; PlanRefused where the run is unknown or the answer makes no sense.
    """
    url = f"{base_url.rstrip('/')}/runs/{quote(run_id, safe='')}/lease"
    asker = client.with_timeout(_CLAIM_TIMEOUT_S)
    body = _json({"worker_id": worker_id, "job_id": job_id, "host": host or "unknown"})
    backoff, began_s = Backoff(), clock_s()
    while True:
        sent_s = clock_s()
        patience_s, wish_s = wait_s, None
        try:
            answer = asker.request("POST", url, body=body, headers=_JSON)
            return _lease_of(answer, url, sent_s, client)
        except Unreachable as error:
            reason, wish_s, patience_s = error.reason, error.retry_after_s, max(wait_s, _UNANSWERED_S)
        except Refused as error:
            if error.status != 409:
                raise _refusal(error, run_id) from error
            reason, wish_s = "another worker holds the run", error.retry_after_s
        left_s = began_s + patience_s - clock_s()
        if left_s <= 0:
            raise Stopped("preempted", f"no lease of the run {run_id}: {reason} (waited {patience_s:g} s)")
        _sleep(min(left_s, backoff.failed(wish_s)), is_stopped)


def _sleep(seconds: float, is_stopped: Callable[[], bool]) -> None:
    end_s = clock_s() + seconds
    while (left_s := end_s - clock_s()) > 0:
        if is_stopped():
            raise Stopped("preempted", "it was asked to stop while it waited for a lease")
        time.sleep(min(_LOOK_S, left_s))


def _refusal(error: Refused, run_id: str) -> TrnError:
    where = "TRAINER_ORCHESTRATOR_URL"
    if error.status in (401, 403):
        return Unauthorized(f"the lease of the run {run_id} was not given: {error.reason}.", where=where)
    found = "it does not know the run" if error.status == 404 else error.reason
    return PlanRefused(
        f"expected a lease of the run {run_id}; {found}.",
        where=where,
        hint="docs/orchestrator.md says what it answers.",
    )


def _lease_of(answer: Answer, url: str, sent_s: float, client: Client) -> Lease:
    """Raises Refused where the answer is no lease."""
    found = answer.document()
    lease_id, generation = found.get("lease_id"), found.get("generation")
    if not isinstance(lease_id, str) or not _LEASE_ID.fullmatch(lease_id):
        raise Refused(answer.status, "its answer has no lease_id", answer=answer)
    if type(generation) is not int or not 0 <= generation < 2**63:
        raise Refused(answer.status, "its answer has no generation", answer=answer)
    ttl_s, wish = _standing(found, answer)
    return Lease(lease_id, generation, ttl_s, f"{url}/{lease_id}", sent_s, client, wish)


def _standing(found: Mapping[str, Any], answer: Answer) -> tuple[float, str | None]:
    """Of a claim's or a renewal's answer: for how long, and why the run is to be cancelled, if it is."""
    ttl_s, cancel, reason = found.get("ttl_seconds"), found.get("cancel", False), found.get("reason")
    if isinstance(ttl_s, bool) or not isinstance(ttl_s, int | float) or not 0 < ttl_s <= _LONGEST_S:
        raise Refused(answer.status, "its answer has no ttl_seconds", answer=answer)
    if not isinstance(cancel, bool):
        raise Refused(answer.status, "its answer's cancel is neither true nor false", answer=answer)
    if not cancel:
        return float(ttl_s), None
    text = reason if isinstance(reason, str) else ""
    told = " ".join("".join(one if one.isprintable() else " " for one in text[:200]).split())
    return float(ttl_s), told or "the orchestrator asked for it"


class Renewing:
    """Keeps a lease from `start` to `end`, in two threads: one asks, one watches the clock and tells.

    `report` gives what a renewal says, `{"step", "state"}`, and must be quick. `on_cancel` and `on_lost` are called
    once at most, with the reason, from the thread that watches; `say` has a line for the operator.
    """

    def __init__(
        self,
        lease: Lease,
        *,
        report: Callable[[], Mapping[str, object]],
        on_cancel: Callable[[str], None],
        on_lost: Callable[[str], None],
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._lease, self._report, self._say = lease, report, say
        self._on_cancel, self._on_lost = on_cancel, on_lost
        # one answer that never comes must leave time for another question
        self._client = lease.client.with_timeout(max(0.2, lease.ttl_s / 4))
        self._changed = threading.Condition()
        self._until_s = lease.sent_s + lease.ttl_s
        self._wish = lease.cancel_reason
        self._lost: str | None = None
        self._is_over = False
        self._threads = [
            threading.Thread(target=self._renew, name="trn-lease-renew", daemon=True),
            threading.Thread(target=self._watch, name="trn-lease-watch", daemon=True),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def is_lost(self) -> bool:
        with self._changed:
            return self._reason_lost() is not None

    def require(self) -> None:
        """Return while the lease is held. Raises LeaseLost from its end on, also where nobody has noticed yet."""
        with self._changed:
            if (reason := self._reason_lost()) is not None:
                raise LeaseLost(reason)

    def headers(self) -> Mapping[str, str]:
        """What a request is to carry, asked right before it is sent. Raises LeaseLost."""
        self.require()
        return self._lease.headers

    def end(self) -> None:
        """Ask no more. The lease goes on by itself until its time is over; `release` ends it now."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(_RELEASE_S)

    def release(self) -> bool:
        """Give the lease back, so that nobody has to wait for its end; whether that was heard."""
        self.end()
        backoff, began_s = Backoff(first_s=0.2), clock_s()
        while clock_s() < began_s + _RELEASE_S:
            try:
                headers = self.headers()
                self._client.request("DELETE", self._lease.url, headers=headers)
                return True
            except Unreachable as error:
                time.sleep(min(1.0, backoff.failed(error.retry_after_s)))
            except (Refused, TrnError):
                return False
        return False

    def _reason_lost(self) -> str | None:
        """With the lock held: what time does to a lease is done here, whoever asks first."""
        if self._lost is None and clock_s() >= self._until_s:
            self._lost = f"it was not renewed within {self._lease.ttl_s:g} s"
            self._changed.notify_all()
        return self._lost

    def _renew(self) -> None:
        lease, backoff = self._lease, Backoff(first_s=self._lease.ttl_s / 30, longest_s=self._lease.ttl_s / 6)
        next_s = lease.sent_s + lease.ttl_s / 3
        while self._waited_until(next_s):
            sent_s = clock_s()
            try:
                ttl_s, wish = self._ask()
            except Unreachable as error:
                reason, wish_s = error.reason, error.retry_after_s
            except Refused as error:
                if error.status in _OVER:
                    self._lose(f"the orchestrator answered {error.status}")
                    return
                reason, wish_s = error.reason, error.retry_after_s
            except TrnError as error:  # of the token, which may be there again in a moment
                reason, wish_s = error.message, None
            else:
                self._renewed(sent_s + ttl_s, wish)
                backoff.reset()
                next_s = sent_s + ttl_s / 3
                continue
            if backoff.failures == 0:
                self._say(f"trn: the lease is not renewed yet: {reason}")
            next_s = clock_s() + min(lease.ttl_s / 6, backoff.failed(wish_s))

    def _ask(self) -> tuple[float, str | None]:
        body = _json(self._report())
        answer = self._client.request("PUT", self._lease.url, body=body, headers={**_JSON, **self.headers()})
        return _standing(answer.document(), answer)

    def _waited_until(self, when_s: float) -> bool:
        """Whether the lease is still held then, and to be renewed."""
        with self._changed:
            while not self._is_over and self._reason_lost() is None:
                if (left_s := when_s - clock_s()) <= 0:
                    return True
                self._changed.wait(min(left_s, _WAKE_S))
        return False

    def _renewed(self, until_s: float, wish: str | None) -> None:
        with self._changed:
            if self._reason_lost() is None:  # an answer that comes after the end changes nothing
                self._until_s = until_s
                self._wish = self._wish or wish
                self._changed.notify_all()

    def _lose(self, reason: str) -> None:
        with self._changed:
            self._lost = self._lost or reason
            self._changed.notify_all()

    def _watch(self) -> None:
        is_told = False
        while True:
            with self._changed:
                while not self._is_over and self._reason_lost() is None and (is_told or self._wish is None):
                    self._changed.wait(min(max(0.0, self._until_s - clock_s()), _WAKE_S))
                lost, wish, is_over = self._lost, self._wish, self._is_over
            if is_over:
                return
            if wish is not None and not is_told:
                is_told = True
                self._on_cancel(wish)
            if lost is not None:
                self._on_lost(lost)
                return


_JSON = {"Content-Type": "application/json"}


def _json(document: Mapping[str, object]) -> bytes:
    return json.dumps(document, allow_nan=False).encode()
