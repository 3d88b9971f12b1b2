"""`name: value` and `name=value` in any text, and the values masked where the name promises a secret.

Written for text that nobody parsed: log lines, comments, connection strings, documents of three formats. Where it
is unclear how far a value goes, it goes further.
"""

from __future__ import annotations

import re

from trn.provenance.secret_names import is_secret_name

__all__ = ["MASK", "hide_pairs", "is_harmless"]

MASK = "***"

_HARMLESS = frozenset({"", MASK, "true", "false", "null", "none", "~", "auto"})
_REFERENCE = re.compile(r"\$\{?[A-Z_][A-Z0-9_]*\}?|env:[A-Z_][A-Z0-9_]*|file:\S+")
_PIECE_OF_TEXT = re.compile(r"<[^<>\s]{0,32}>|\[[A-Za-z_]{1,16}\]")
"""A special token of a tokenizer, `<|user|>` or `[SEP]`, whatever its key is called."""

_NAME = re.compile(r"(?<!\w)-{0,3}(?P<name>[A-Za-z_][\w.-]{0,255})(?P<join>(?:\\?[\"'])?[ \t]*(?P<sign>=>|=|:)[ \t]*)")
_QUOTED = re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\n]|'')*'")
_UNTIL_SPACE = re.compile(r"\S+")
_UNTIL_AMPERSAND = re.compile(r"[^\s&#\"'<>]+")
_UNTIL_COMMA = re.compile(r"[^\n,}\]]+")
_UNTIL_COMMENT = re.compile(r"[&!*|>\"'\[{][^\n]*|(?:(?!\s#)[^\n])+")
"""A plain YAML scalar; whatever is not plain may hold a # and goes to the end of the line."""

_LINE_HEAD = re.compile(r"[\s\-#{\[,\"']*")
_MODULE_NAME = re.compile(r"[a-z_][a-z0-9_.]*")
_CLASS_NAME = re.compile(r"[A-Z][A-Za-z]*(?![^\s,\"'])")
_LINE_BACK = 4096
"""How far back the start of a line is looked for: a longer line counts as if it started there."""


def is_harmless(text: str) -> bool:
    """Whether a value is no secret, whatever its name: empty, a switch, a reference, a special token."""
    return (
        text.strip().lower() in _HARMLESS
        or _REFERENCE.fullmatch(text) is not None
        or _PIECE_OF_TEXT.fullmatch(text) is not None
    )


def hide_pairs(text: str, *, prose: bool, quoted_after: str = "") -> str:
    """Mask the values of `name: value` and `name=value`.

    Without `prose` the text is one value, not a document: a pair then is one that starts a line, or `name=value`
    without spaces, so that a sentence about "the next token: ..." stays.
    """
    if "=" not in text and ":" not in text:
        return text
    shown: list[str] = []
    done = 0
    for match in _NAME.finditer(text):
        if match.start() < done or not is_secret_name(match["name"]):
            continue
        line = text.rfind("\n", max(0, match.start() - _LINE_BACK), match.start()) + 1
        if not prose and match["join"] != "=" and not _LINE_HEAD.fullmatch(text, line, match.start()):
            continue
        span = _value_span(text, match, is_flow=text.find("{", line, match.start()) >= 0)
        if span is None:
            continue
        start, end, is_quoted = span
        mask = f'"{MASK}"' if match["sign"] == quoted_after and not is_quoted else MASK
        shown += (text[done:start], mask)
        done = end
    return "".join((*shown, text[done:])) if done else text


def _value_span(text: str, match: re.Match[str], *, is_flow: bool) -> tuple[int, int, bool] | None:
    """Start and end of the value of a secret name, and whether it stands in quotes; None where nothing is to hide."""
    at = match.end()
    if quoted := _QUOTED.match(text, at):
        start, end = quoted.start() + 1, quoted.end() - 1
        return None if is_harmless(text[start:end]) else (start, end, True)
    bare = _bare_value(match, is_flow=is_flow).match(text, at)
    value = bare[0].rstrip() if bare else ""
    if is_harmless(value) or _is_class_reference(match, value):
        return None
    return at, at + len(value), False


def _bare_value(match: re.Match[str], *, is_flow: bool) -> re.Pattern[str]:
    if match["sign"] == ":":
        return _UNTIL_COMMA if is_flow else _UNTIL_COMMENT
    is_url_parameter = match.string[match.start() - 1 : match.start()] in ("?", "&")
    return _UNTIL_AMPERSAND if is_url_parameter else _UNTIL_SPACE


def _is_class_reference(match: re.Match[str], value: str) -> bool:
    """Whether this is `module:Class`, of a module that is called like a secret."""
    is_tight = match["join"] == ":"
    return is_tight and bool(_MODULE_NAME.fullmatch(match["name"])) and bool(_CLASS_NAME.match(value))
