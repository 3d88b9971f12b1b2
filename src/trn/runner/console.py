"""What the runner says and logs to whoever reads its log: on a full disk it falls silent, and nothing else happens."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping

from trn.ranks import World

__all__ = ["VERBOSE", "is_own", "listen", "own_output", "say", "set_up_logging", "speak_as"]

VERBOSE = "TRN_VERBOSE"
"""The variable by which `--verbose` reaches every rank."""
_ON = frozenset({"1", "true", "yes", "on"})

_speaker = [""]
_listeners: list[Callable[[str], None]] = []
_printing = threading.local()


def speak_as(name: str) -> None:
    """From now on every line begins with `name`: one log holds what several ranks say."""
    _speaker[0] = name


def say(text: str) -> None:
    """One message on stderr, and to whoever listens."""
    text = "\n".join(f"{_speaker[0]}{line}" for line in text.splitlines()) if _speaker[0] else text
    with own_output(), contextlib.suppress(OSError, ValueError):
        print(text.encode(errors="backslashreplace").decode(), file=sys.stderr, flush=True)
    for listener in tuple(_listeners):
        listener(text)


@contextlib.contextmanager
def listen(listener: Callable[[str], None]) -> Iterator[None]:
    """Inside, `listener` is given what is said."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextlib.contextmanager
def own_output() -> Iterator[None]:
    """Inside, what this thread prints is our own: it reaches the mirror by another way, see `is_own`."""
    before, _printing.is_own = is_own(), True
    try:
        yield
    finally:
        _printing.is_own = before


def is_own() -> bool:
    return getattr(_printing, "is_own", False)


def set_up_logging(world: World, environ: Mapping[str, str] = os.environ) -> None:
    """Who logs: rank 0 as Python does it, the others errors only; with TRN_VERBOSE all of them, from INFO on."""
    if environ.get(VERBOSE, "").lower() in _ON:
        root = logging.getLogger()
        root.addHandler(_OnStderr(f"rank {world.rank}: " if world.world_size > 1 else ""))
        root.setLevel(min(root.level, logging.INFO))
    elif world.rank:
        logging.disable(logging.WARNING)  # rank 0 says the same; what went wrong here alone must still be seen


class _OnStderr(logging.Handler):
    """To whatever stderr is at the time, each line with the rank before it."""

    def __init__(self, prefix: str) -> None:
        super().__init__(logging.INFO)
        self._prefix = prefix
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = "".join(f"{self._prefix}{line}\n" for line in self.format(record).splitlines())
            with own_output():
                sys.stderr.write(text.encode(errors="backslashreplace").decode())
                sys.stderr.flush()
        except Exception:  # noqa: BLE001 - as every handler of logging does: a record must not end a run
            self.handleError(record)
