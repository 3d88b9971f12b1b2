"""Secrets that a target names by a variable or a file: read when they are needed, and taken out of what is told."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from trn.sinks.sink import Refused, RunFacts
from trn.sinks.targets import Target

__all__ = ["secret_of", "told"]

_LARGEST_BYTES = 64 << 10
_STEMS = ("password", "token", "secret")
_LONGEST_TOLD = 500


def secret_of(target: Target, run: RunFacts, stem: str) -> str | None:
    """What `STEM_env=` or `STEM_file=` of the target names; None where neither is given.

    Raises Refused where it names nothing, or something empty; the message never holds the secret.
    """
    if name := target.options.get(f"{stem}_env"):
        if value := run.environ.get(name, ""):
            return value
        raise Refused(f"the environment variable {name} ({stem}_env) is not set here", of_target=True)
    if path := target.options.get(f"{stem}_file"):
        return _read(Path(path), stem)
    return None


def told(reason: str, target: Target, run: RunFacts) -> str:
    """A failure as one line that may be shown and written down: a server may repeat what it was sent."""
    for secret in _secrets(target, run):
        reason = reason.replace(secret, "***")
    line = " ".join("".join(one if one.isprintable() else " " for one in reason).split())
    return line if len(line) <= _LONGEST_TOLD else f"{line[:_LONGEST_TOLD]}..."


def _secrets(target: Target, run: RunFacts) -> Iterator[str]:
    for stem in _STEMS:
        with contextlib.suppress(Refused):
            if secret := secret_of(target, run, stem):
                yield secret


def _read(path: Path, stem: str) -> str:
    try:
        with open(path, "rb") as stream:
            value = stream.read(_LARGEST_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{path} ({stem}_file) cannot be read: {error}", of_target=True) from error
    if not value:
        raise Refused(f"{path} ({stem}_file) is empty", of_target=True)
    return value
