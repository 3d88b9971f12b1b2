"""How long to wait before a server is asked again: ever longer, and never in step with others."""

from __future__ import annotations

import random

__all__ = ["Backoff"]


class Backoff:
    """Exponential with full jitter: after n failures in a row, anything up to `first_s` doubled n times.

    A wish of the server counts as the least, with up to a second on top, so that those it sent away do not come back
    at once; beyond `longest_wish_s` it is cut. Source: M. Brooker, "Exponential Backoff And Jitter" (2015).
    """

    longest_wish_s = 300.0

    def __init__(self, first_s: float = 0.5, longest_s: float = 30.0, rng: random.Random | None = None) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._rng = rng or random.Random()
        self.failures = 0

    def failed(self, wish_s: float | None = None) -> float:
        """Count a failure; returns how many seconds to wait."""
        ceiling_s = min(self._longest_s, self._first_s * 2.0 ** min(self.failures, 32))
        self.failures += 1
        delay_s = max(0.05, self._rng.uniform(0.0, ceiling_s))
        if wish_s is None:
            return delay_s
        return min(max(wish_s, 0.0), self.longest_wish_s) + self._rng.uniform(0.0, min(1.0, ceiling_s))

    def reset(self) -> None:
        self.failures = 0
