"""The files that a spec was made from, as they are kept in the run's folder: verbatim, unless they hold a secret.

    verbatim    byte for byte
    masked      the same text, comments and all, with `***` in the place of the secrets
    rewritten   the values only, where masking inside the text could not be proved to hide everything

What is kept reads back as the redacted value of the original: that is checked, not assumed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

from trn.provenance.redact import Redactor, encodable
from trn.provenance.resolved import plain_yaml
from trn.records import pretty_json
from trn.spec.documents import READERS, read_document
from trn.spec.nodes import Refusal, plain

__all__ = ["Form", "KeptSource", "SourceText", "keep_sources", "read_sources"]

Form = Literal["verbatim", "masked", "rewritten"]

_UNREAD = object()


@dataclass(frozen=True)
class SourceText:
    """A source and its parsed value, null where it is no document of its suffix's format."""

    path: str
    text: str
    """Bytes that are not UTF-8 stand in it as lone surrogates."""
    suffix: str
    value: Any
    is_read: bool


@dataclass(frozen=True)
class KeptSource:
    """What is stored of one source: `name` in the run's folder, the `path` it came from, and how it was treated."""

    name: str
    path: str
    data: bytes
    form: Form


def read_sources(sources: Sequence[tuple[str | PurePath, bytes]]) -> list[SourceText]:
    """The sources, parsed by the spec's own reader."""
    texts = []
    for path, data in sources:
        text = data.decode("utf-8", "surrogateescape")
        suffix = PurePath(path).suffix
        value = _parse(text, suffix)
        is_read = value is not _UNREAD
        texts.append(SourceText(str(path), text, suffix, value if is_read else None, is_read))
    return texts


def keep_sources(sources: Sequence[SourceText], redactor: Redactor) -> list[KeptSource]:
    """The files to write: `config_source` for the first, `base_config_source`, `base_config_source-2`, ... after it.

    Each keeps its own suffix.
    """
    kept = []
    for index, source in enumerate(sources):
        stem = "config_source" if index == 0 else "base_config_source" if index == 1 else f"base_config_source-{index}"
        text, form = _without_secrets(source, redactor)
        path = redactor.text(encodable(source.path))
        kept.append(KeptSource(stem + _safe(source.suffix), path, text.encode("utf-8", "surrogateescape"), form))
    return kept


def _safe(suffix: str) -> str:
    return suffix if suffix[1:].isascii() and suffix[1:].isalnum() and len(suffix) <= 9 else ""


def _without_secrets(source: SourceText, redactor: Redactor) -> tuple[str, Form]:
    masked = redactor.source(source.text, "=" if source.suffix.lower() == ".toml" else ":")
    if not source.is_read:
        return masked, "verbatim" if masked == source.text else "masked"
    clean = redactor.value(source.value)
    if masked == source.text and clean == source.value:
        return masked, "verbatim"
    if _parse(masked, source.suffix) == clean and _has_only_own_comments(masked, source):
        return masked, "masked"
    return _write(clean, source.suffix.lower()), "rewritten"


def _has_only_own_comments(masked: str, source: SourceText) -> bool:
    """Whether all lines that are comments in `masked` were comments before.

    A secret of several lines whose first line was masked may go on with a line that starts with #: then the original
    has another value without that line.
    """
    lines, shown = source.text.split("\n"), masked.split("\n")
    if len(lines) != len(shown):
        return False
    left = [line for line, now in zip(lines, shown, strict=True) if not now.lstrip().startswith("#")]
    return bool(_parse("\n".join(left), source.suffix) == source.value)


def _parse(text: str, suffix: str) -> Any:
    """The value of a document, `_UNREAD` where it is not of its kind."""
    if suffix.lower() not in READERS:
        return _UNREAD
    try:
        root = read_document(text, suffix.lower(), "").root
    except Refusal:
        return _UNREAD
    return None if root is None else plain(root)


def _write(value: Any, suffix: str) -> str:
    if suffix == ".json":
        return pretty_json(value).decode()
    if suffix == ".toml":
        return "".join(f"{json.dumps(key)} = {_toml(item)}\n" for key, item in value.items())
    return plain_yaml(value)


def _toml(value: Any) -> str:
    """A TOML value on one line: its strings are those of JSON, its tables inline."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if isinstance(value, str) else repr(value)
