"""What comes of a request: an answer, a reason to ask again later, or a refusal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Answer", "Refused", "Unreachable"]


@dataclass(frozen=True)
class Answer:
    """A whole answer; names of `headers` are found in any case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def document(self) -> dict[str, Any]:
        """The body as a JSON object. Raises Refused where it is none."""
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise Refused(self.status, f"it answered {self.status} with what is no JSON object", answer=self)
        return found


class Unreachable(Exception):
    """No answer, or one that means "later": the same request may be sent again.

    `retry_after_s` is the server's own wish, None where it has none; `status` is 0 where nothing was answered.
    """

    def __init__(self, reason: str, retry_after_s: float | None = None, *, status: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.status = status


class Refused(Exception):
    """A final no, or an answer that makes no sense: to ask again would change nothing.

    `status` is 0 where nothing was asked or answered: an address that is not taken, a certificate that is not trusted.
    `retry_after_s` is there for the protocols in which a refusal (409) has an end. `has_seen_token`: it was shown one.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        *,
        answer: Answer | None = None,
        retry_after_s: float | None = None,
        has_seen_token: bool = False,
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.answer = answer
        self.retry_after_s = retry_after_s
        self.has_seen_token = has_seen_token
