"""The three formats, each read into one tree of nodes: YAML 1.2, JSON, TOML.

None of them runs anything: YAML is read event by event, tags are refused and plain scalars have the meaning of the
YAML 1.2 core schema (`1e-3` is a number, `no` is text, `012` is 12), whatever a document's own directive says.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from trn.errors import Problem
from trn.spec.nodes import MAX_DEPTH, Node, Refusal, Room, Scalar, TreeBuilder, plain
from trn.spec.words import found, printable

__all__ = ["READERS", "Document", "read_document", "read_value", "tree_of"]


class Document(NamedTuple):
    """A tree, None for an empty document, and the problems that did not stop its reading."""

    root: Node | None
    problems: list[Problem]


def read_document(text: str, suffix: str, file: str, room: Room | None = None) -> Document:
    """Read by the file's suffix. Raises Refusal for what is no document of that format, or is too large or deep."""
    builder = TreeBuilder(file, room)
    try:
        READERS[suffix](text, builder)
    except RecursionError:
        raise Refusal(Problem("", f"nested deeper than {MAX_DEPTH}", file)) from None
    return Document(builder.root, builder.problems)


# ruamel's scanner takes quadratic time over a tag; nothing that a spec needs has one
_LONG_TAG = re.compile(r"![^\s]{256}")

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
_INTEGER = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"([-+]?)\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_MOST_DIGITS = 400


def _read_yaml(text: str, builder: TreeBuilder) -> None:
    if (tag := _LONG_TAG.search(text)) is not None:
        raise builder.refusal("a '!' and 256 characters without a space are not read", _line_at(text, tag.start()))
    try:
        _build_yaml(text, builder)
    except ReaderError as error:
        message = f"the character {error.character:#x} is not allowed in YAML"
        raise builder.refusal(message, _line_at(text, error.position)) from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = ", ".join(str(part) for part in (error.context, error.problem) if part)
        raise builder.refusal(f"not YAML: {printable(message)}", mark.line + 1 if mark else None) from error
    except YAMLError as error:
        raise builder.refusal(f"not YAML: {printable(str(error))}", None) from error
    except (ValueError, OverflowError) as error:  # ruamel converts escapes and versions without a check of its own
        raise builder.refusal("not YAML: an escape or a version with too large a number", None) from error


def _build_yaml(text: str, builder: TreeBuilder) -> None:
    documents = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        line = event.start_mark.line + 1
        if isinstance(event, DocumentStartEvent):
            documents += 1
            _check_document_start(event, documents, builder, line)
        elif isinstance(event, AliasEvent):
            builder.alias(event.anchor, line)
        elif isinstance(event, (MappingEndEvent, SequenceEndEvent)):
            builder.close()
        elif isinstance(event, (MappingStartEvent, SequenceStartEvent)):
            _check_tag(event.tag, builder, line)
            builder.open(dict if isinstance(event, MappingStartEvent) else list, line, event.anchor)
        elif isinstance(event, ScalarEvent):
            _check_tag(event.tag, builder, line)
            value = event.value if event.style else yaml_scalar(event.value)
            if value == "<<" and builder.expects_key and not event.style:
                builder.note((*builder.path, "<<"), "merge keys are not read; use extends or a profile", line)
            builder.scalar(value, line, event.anchor)


def _check_document_start(event: DocumentStartEvent, number: int, builder: TreeBuilder, line: int) -> None:
    if number > 1:
        raise builder.refusal("expected one document, found another one after ---", line)
    if event.version is not None and tuple(event.version) != (1, 2):
        raise builder.refusal("expected YAML 1.2, found a %YAML directive for another version", line)


def _check_tag(tag: object, builder: TreeBuilder, line: int) -> None:
    if tag is not None:
        written = str(tag).replace("tag:yaml.org,2002:", "!!")
        raise builder.refusal(f"tags are not read, found {found(written)}; remove it, or quote the text", line)


def yaml_scalar(text: str) -> Scalar:
    """The value of a plain scalar by the core schema of YAML 1.2 (yaml.org/spec/1.2.2, section 10.3.2)."""
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if text[0] not in "+-.0123456789":
        return text
    if _INTEGER.fullmatch(text) or _BASED.fullmatch(text):
        return _whole_number(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if special := _SPECIAL.fullmatch(text):
        return math.nan if special[1] is None else math.copysign(math.inf, -1 if special[1] == "-" else 1)
    return text


def _whole_number(text: str) -> int | float:
    """An integer; infinite when it is so long that only reading it would cost time (no field takes either)."""
    if len(text) > _MOST_DIGITS:
        return -math.inf if text[0] == "-" else math.inf
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"|[{}\[\],:]|[^\s{}\[\],:"]++')


def _read_json(text: str, builder: TreeBuilder) -> None:
    """The library decides what is JSON; a second look at the tokens of what is gives lines, limits and duplicates."""
    try:
        json.loads(text, parse_int=_whole_number)
    except json.JSONDecodeError as error:
        raise builder.refusal(f"not JSON: {error.msg}", error.lineno) from error
    line, position = 1, 0
    for token in _JSON_TOKEN.finditer(text):
        line += text.count("\n", position, token.start())
        position = token.start()
        _take_json_token(token[0], builder, line)


def _take_json_token(token: str, builder: TreeBuilder, line: int) -> None:
    if token in "{[":
        builder.open(dict if token == "{" else list, line)
    elif token in "}]":
        builder.close()
    elif token not in ",:":
        builder.scalar(json.loads(token, parse_int=_whole_number), line)


_TOML_PART = r"""(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')"""
# tomllib takes quadratic time and memory over the parts of one dotted key
_LONG_TOML_KEY = re.compile(rf"(?<![A-Za-z0-9_-]){_TOML_PART}(?:[ \t]*+\.[ \t]*+{_TOML_PART}){{{MAX_DEPTH},}}")
_TOML_PLACE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


def _read_toml(text: str, builder: TreeBuilder) -> None:
    if (key := _LONG_TOML_KEY.search(text)) is not None:
        raise builder.refusal(f"nested deeper than {MAX_DEPTH}", _line_at(text, key.start()))
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        place = _TOML_PLACE.search(message)
        line = int(place[1]) if place and place[1] else None
        message = message[: place.start()] if place else message
        raise builder.refusal(f"not TOML: {printable(message)}", line) from error
    except ValueError as error:  # a number of more than 4300 digits
        raise builder.refusal("a number with more digits than any field takes", None) from error
    if value:
        _take_value(value, builder)


def tree_of(value: object, origin: str) -> Node:
    """The tree of a Python value: mappings with text as keys, lists, tuples and scalars. Raises Refusal."""
    builder = TreeBuilder(origin)
    _take_value(value, builder)
    if builder.problems:
        raise Refusal(builder.problems[0])
    assert builder.root is not None, "a value makes a tree"
    return builder.root


def _take_value(value: object, builder: TreeBuilder) -> None:
    if isinstance(value, Mapping):
        builder.open(dict, None)
        for key, child in value.items():
            builder.scalar(key, None)
            _take_value(child, builder)
        builder.close()
    elif isinstance(value, (list, tuple)):
        builder.open(list, None)
        for child in value:
            _take_value(child, builder)
        builder.close()
    elif value is None or isinstance(value, (str, int, float)):
        builder.scalar(value, None)
    else:
        what = f"{found(str(value))} ({type(value).__name__}); put it in quotes"
        raise builder.refusal(f"expected text, a number, true, false, a list or a mapping, found {what}", None)


def read_value(text: str, origin: str) -> Node:
    """The value of `--set KEY=VALUE`: a plain or quoted YAML scalar, or a flow list or mapping; nothing is null.

    Raises Refusal also where YAML reads less than what is written: a comment, an anchor, a block.
    """
    builder = TreeBuilder(origin)
    _read_yaml(text, builder)
    if builder.problems:
        raise Refusal(builder.problems[0])
    value = None if builder.root is None else plain(builder.root)
    first = text.strip()[:1]
    is_whole = first in "[{" if isinstance(value, (dict, list)) else first in "'\"" or _is_same(value, text.strip())
    if first and not is_whole:
        message = f"expected a value such as 3, text, [a, b] or {{a: b}}, found {found(text)}; put it in quotes"
        raise builder.refusal(message, None)
    return tree_of(value, origin)


def _is_same(value: object, text: str) -> bool:
    """Whether the plain scalar `text` has this value; by repr, as NaN equals nothing."""
    return repr(yaml_scalar(text)) == repr(value)


def _line_at(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


READERS: Mapping[str, Callable[[str, TreeBuilder], None]] = {
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
    ".json": _read_json,
    ".toml": _read_toml,
}
