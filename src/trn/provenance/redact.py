"""Secrets replaced by `***`, in whatever is about to be written: argv, spec, plan, log lines, reasons.

Three things give a secret away, and each hides it:

    its name     `api_key: ...`, `--hf-token ...`, `Password=...;`          see trn.provenance.secret_names
    its shape    `ghp_...`, `user:password@host`, `?X-Amz-Signature=...`, a private key's armour
    its value    what stands under a secret name in the environment, argv or spec is hidden wherever it stands

Not promised: that a secret without a telling name and without a known shape is found. Hide too much rather than too
little: a masked word costs a reader a moment. Everything here is pure, and redacting twice changes nothing more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from trn.provenance.secret_names import is_reference_name, is_secret_name
from trn.provenance.secret_pairs import MASK, hide_pairs, is_harmless
from trn.provenance.secret_shapes import hide_shapes

__all__ = ["MASK", "Redactor", "changed_paths", "encodable", "redact", "secret_paths"]

_ARGUMENT_NAME = re.compile(r"-{0,2}[A-Za-z_][\w.\[\]-]*")
_BARE_MASK = re.compile(r"(?<=[:,\[{=-] )\*\*\*(?=[ \t]*(?:$|[,}\]\r]| #))", re.MULTILINE)
_SURROGATE = re.compile("[\ud800-\udfff]")
_LONG_LINE = 16
_PATH_LIKE = re.compile(r"(?:/|\./|\.\./|~/|[A-Za-z]:\\)[\w./\\ -]*")


@dataclass(frozen=True)
class Redactor:
    """Hides secrets; `known` are values to hide wherever they stand, found by `knowing`."""

    known: tuple[str, ...] = ()

    @classmethod
    def knowing(cls, environ: Mapping[str, str], argv: Sequence[str] = (), *values: Any) -> Redactor:
        """A redactor that knows each value standing under a secret name in the environment, argv or `values`.

        Values too short or too ordinary to be told from other words (`prod`, `disabled`, paths) are not known.
        """
        found = {text for name, text in environ.items() if is_secret_name(name)}
        found.update(_hidden_arguments(argv))
        for value in values:
            found.update(str(leaf) for _, leaf, after in _changes(value, redact.value(value)) if after == MASK)
        # of a value of several lines (a private key), a log shows each by itself
        found.update(line for text in list(found) for line in text.splitlines() if len(line) >= _LONG_LINE)
        return cls(tuple(sorted(filter(_is_telling, found), key=lambda text: (-len(text), text))))

    def text(self, text: str) -> str:
        """Free text (a log line, a reason, a comment) without its secrets."""
        return hide_pairs(self._hide_values(text), prose=True)

    def value(self, value: Any) -> Any:
        """A JSON value without its secrets: same shape, secret leaves masked, tuples become lists.

        Booleans and null are never secrets. A mapping under a secret name keeps only its references (`file`, `env`).
        """
        if isinstance(value, str):
            return hide_pairs(self._hide_values(value), prose=False)
        if isinstance(value, Mapping):
            return self._mapping(value)
        if isinstance(value, (list, tuple)):
            if all(isinstance(item, str) for item in value) and any(item.startswith("--") for item in value):
                return self.argv(value)
            return [self.value(item) for item in value]
        return value

    def argv(self, argv: Sequence[str]) -> list[str]:
        """Arguments of a command, one for each given, without the values of secret flags and `KEY=VALUE` pairs."""
        shown = []
        is_value_due = False
        for argument in argv:
            if is_value_due and not argument.startswith("--"):
                shown.append(self._hide(argument))
                is_value_due = False
                continue
            shown.append(self._argument(self._hide_values(argument)))
            is_value_due = _is_secret_flag(argument)
        return shown

    def words(self, text: str) -> str:
        """Text in which no name promises anything (a metric's name, what a model wrote): known values and shapes."""
        return self._hide_values(text)

    def source(self, text: str, quoted_after: str) -> str:
        """The text of a YAML, JSON or TOML document, in which `quoted_after` (":" or "=") stands between key and value.

        A mask that is a whole value stands in quotes, since a bare `***` is not YAML. It is not proved here that the
        result can be parsed, or that nothing spread over several lines is left: see trn.provenance.sources.
        """
        masked = self._hide_values(hide_pairs(text, prose=True, quoted_after=quoted_after))
        return _BARE_MASK.sub(f'"{MASK}"', masked)

    def _hide_values(self, text: str) -> str:
        pattern = _known_pattern(self.known)
        return hide_shapes(pattern.sub(MASK, text) if pattern else text, MASK)

    def _mapping(self, value: Mapping[Any, Any]) -> dict[Any, Any]:
        named = value.get("name")
        is_named_secret = isinstance(named, str) and is_secret_name(named)
        shown: dict[Any, Any] = {}
        for key, item in value.items():
            is_secret = is_secret_name(str(key)) or (is_named_secret and key == "value")
            key = self.value(key) if isinstance(key, str) else key
            while key in shown:
                key = f"{key}*"
            shown[key] = self._hide(item) if is_secret else self.value(item)
        return shown

    def _hide(self, value: Any) -> Any:
        """Mask all leaves of what stands under a secret name."""
        if isinstance(value, Mapping):
            return {
                key: self.value(item) if is_reference_name(str(key)) else self._hide(item)
                for key, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self._hide(item) for item in value]
        if value is None or isinstance(value, bool):
            return value
        return self.value(value) if isinstance(value, str) and is_harmless(value) else MASK

    def _argument(self, argument: str) -> str:
        """One argument: `--flag=value`, `key=value`, `--set=key=value` or free text."""
        head = ""
        while True:
            name, sign, rest = argument.partition("=")
            if not sign or not _ARGUMENT_NAME.fullmatch(name):
                return head + hide_pairs(argument, prose=True)
            head += f"{name}="
            if is_secret_name(name.lstrip("-")):
                return head + (rest if is_harmless(rest) else MASK)
            argument = rest


redact = Redactor()
"""Hides by name and by shape only; for places that know neither environment nor argv."""


def secret_paths(value: Any, redactor: Redactor = redact) -> list[str]:
    """Dotted paths of what `redactor` would hide in a JSON value, in order; never the values themselves."""
    return changed_paths(value, redactor.value(value))


def changed_paths(value: Any, shown: Any) -> list[str]:
    """Dotted paths at which `shown`, the redacted form of `value`, differs from it."""
    return [path for path, _, _ in _changes(value, shown)]


def encodable(text: str) -> str:
    """`text` as UTF-8 can hold it: bytes of argv or the environment that are no UTF-8 become U+FFFD."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def _is_secret_flag(argument: str) -> bool:
    is_flag = argument.startswith("-") and _ARGUMENT_NAME.fullmatch(argument) is not None
    return is_flag and is_secret_name(argument.lstrip("-"))


def _hidden_arguments(argv: Sequence[str]) -> Iterator[str]:
    """What `redact.argv` masks in `argv`: the value of a flag, or what follows the `=` of a secret name."""
    for argument, shown in zip(argv, redact.argv(argv), strict=True):
        if shown == MASK:
            yield argument
        elif shown.endswith(f"={MASK}"):
            yield argument[len(shown) - len(MASK) :]


def _changes(before: Any, after: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for (key, old), new in zip(before.items(), after.values(), strict=True):
            yield from _changes(old, new, f"{path}.{redact.value(str(key))}" if path else redact.value(str(key)))
    elif isinstance(before, (list, tuple)) and isinstance(after, list):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from _changes(old, new, f"{path}[{index}]")
    elif type(before) is not type(after) or (isinstance(before, str) and before != after):
        yield path, before, after


def _is_telling(text: str) -> bool:
    """Whether finding `text` somewhere else can hardly be an accident."""
    if is_harmless(text) or _PATH_LIKE.fullmatch(text):
        return False
    if text.isalpha():
        return len(text) >= 16
    has_letter_and_digit = re.search(r"[A-Za-z]", text) and re.search(r"\d", text)
    return len(text) >= (6 if has_letter_and_digit else 8)


@lru_cache(maxsize=16)
def _known_pattern(known: tuple[str, ...]) -> re.Pattern[str] | None:
    """Each known value as it is, as a part of a URL and as the inside of a JSON string; the longest first.

    A short one must stand alone, lest it be found inside a digest.
    """
    forms = {form for text in known for form in (text, quote(text, safe=""), json.dumps(text)[1:-1])}
    longest_first = sorted(forms, key=lambda form: (-len(form), form))
    patterns = (
        re.escape(form) if len(form) >= 16 else rf"(?<![A-Za-z0-9]){re.escape(form)}(?![A-Za-z0-9])"
        for form in longest_first
    )
    return re.compile("|".join(patterns)) if forms else None
