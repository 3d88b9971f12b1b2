"""What this process knows to be secret, for whoever writes down what a trainer says while it runs.

The one place of this room that looks at the process itself: at its arguments, and at its environment each time, since
a trainer may read a token from a file and put it there. What a trainer says is free text of its own, so its words are
no pairs: a metric may be called `token`, and a language model may write `password = ...`. Names, events and samples
are cleaned of known values and of shapes; printed lines, as all prose, of pairs too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from trn.provenance.redact import Redactor, encodable

__all__ = ["clean_event", "clean_name", "clean_sample", "process_redactor"]

_LONGEST_SAMPLE = 1 << 20


def process_redactor() -> Redactor:
    """A redactor that knows the secrets of the environment as it is now, and of the arguments."""
    return _knowing(tuple(sys.argv), tuple(os.environ.items()))


@lru_cache(maxsize=1)
def _knowing(argv: tuple[str, ...], environ: tuple[tuple[str, str], ...]) -> Redactor:
    variables = {encodable(name): encodable(text) for name, text in environ}
    return Redactor.knowing(variables, [encodable(text) for text in argv])


@lru_cache(maxsize=4096)
def clean_name(name: str) -> str:
    """The name of a metric without a secret; looked at once for each name, as a step has no time for more."""
    return process_redactor().words(name)


def clean_event(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an event without a secret in any key or text; what has neither costs next to nothing."""
    cleaned: dict[str, Any] = {}
    for key, value in fields.items():
        key = clean_name(key)
        while key in cleaned:
            key = f"{key}*"
        cleaned[key] = _clean(value)
    return cleaned


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return process_redactor().words(value)
    if isinstance(value, Mapping):
        return clean_event(value)
    return [_clean(item) for item in value] if isinstance(value, (list, tuple)) else value


def clean_sample(content: str | bytes) -> bytes:
    """What is written of a sample: its text without secrets; bytes that are no text, or very long, as they are."""
    data = content.encode(errors="replace") if isinstance(content, str) else content
    try:
        text = data.decode() if len(data) <= _LONGEST_SAMPLE else None
    except UnicodeDecodeError:
        text = None
    if text is None:
        return data
    cleaned = process_redactor().words(text)
    return data if cleaned == text else cleaned.encode()
