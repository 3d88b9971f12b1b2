"""What the schema refuses, in plain words: one problem a field, with its place and the nearest known name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from trn.errors import Problem
from trn.spec.json_schema import DOCUMENT_KEYS
from trn.spec.nodes import Node, Path, lookup, plain
from trn.spec.rules import broken_rules
from trn.spec.schema import Spec
from trn.spec.words import dotted, found, nearest, one_of

__all__ = ["check", "field_problems"]

_MOST_SUGGESTIONS = 20  # a suggestion costs up to a millisecond, and hostile documents have thousands of keys
_MOST_NAMES = 12

_KINDS = {
    "bool_type": "true or false",
    "dict_type": "a mapping (key: value)",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_type": "a whole number",
    "model_type": "a mapping (key: value)",
    "string_too_short": "text",
    "string_type": "text",
    "string_unicode": "text that UTF-8 can hold",
    "tuple_type": "a list such as [a, b]",
}
_BOUNDS = {
    "greater_than": ("more than {}", "gt"),
    "greater_than_equal": ("at least {}", "ge"),
    "less_than": ("less than {}", "lt"),
    "less_than_equal": ("at most {}", "le"),
    "string_too_long": ("at most {} characters", "max_length"),
}
_PATTERNS = {
    "[key]": "a lower-case name such as base_model",
    "backend": "the name of a backend such as inductor",
    "device": "a device such as cpu, cuda or cuda:1",
    "kind": "the name of a schedule such as warmup_cosine or CosineAnnealingLR",
    "mode": "the name of a mode such as max-autotune",
    "name": "a lower-case name such as adamw",
    "trainer": "the name of an entry point, or module:Class",
}


def check(tree: Node) -> Spec | list[Problem]:
    """The Spec of a merged document, or all that is wrong with it, one problem a field."""
    document = _document(tree)
    problems = field_problems(tree) + [_at(tree, path, message) for path, message in broken_rules(document)]
    if not problems:
        return Spec.model_validate(document)
    first: dict[str, Problem] = {}
    for problem in problems:
        first.setdefault(problem.path, problem)
    return list(first.values())


def field_problems(tree: Node, *, is_overlay: bool = False) -> list[Problem]:
    """What is wrong with single fields: unknown, missing (not in an overlay), of another type, out of bounds."""
    try:
        Spec.model_validate(_document(tree))
    except ValidationError as error:
        passed_over = {"rules", "missing"} if is_overlay else {"rules"}
        details = [one for one in error.errors(include_url=False) if one["type"] not in passed_over]
        suggestions = {id(one): _suggestion(one) for one in _unknown(details)[:_MOST_SUGGESTIONS]}
        return [_problem(tree, one, suggestions.get(id(one), "")) for one in details]
    return []


def _document(tree: Node) -> dict[str, object]:
    document = plain(tree)
    assert isinstance(document, dict), "a document is a mapping before it is checked"
    return document


def _unknown(details: Iterable[ErrorDetails]) -> list[ErrorDetails]:
    return [one for one in details if one["type"] == "extra_forbidden"]


def _problem(tree: Node, error: ErrorDetails, suggestion: str) -> Problem:
    kind, path = error["type"], tuple(part for part in error["loc"] if part != "[key]")
    if kind == "extra_forbidden":
        return _at(tree, path, f"unknown key{suggestion}")
    if kind == "missing":
        return _at(tree, path, f"required, never defaulted{_example(path)}")
    if kind == "told":  # in full, since what was found may be no one else's business
        return _at(tree, path, str(error.get("ctx", {})["told"]))
    message = f"expected {_expectation(error)}, found {found(error['input'])}"
    if kind == "string_type" and isinstance(error["input"], (int, float)):
        message += "; put it in quotes"
    return _at(tree, path, message)


def _expectation(error: ErrorDetails) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "expected":
        return str(context["what"])
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        bound = context[key]
        return words.format(int(bound) if bound == int(bound) else bound)
    if kind == "literal_error":
        choices = re.findall(r"'([^']+)'", str(context["expected"]))
        given = error["input"]
        near = nearest(given, choices) if isinstance(given, str) else None
        return one_of(choices) + (f" (did you mean {near}?)" if near else "")
    if kind == "string_pattern_mismatch":
        return _PATTERNS[str(error["loc"][-1])]
    return _KINDS.get(kind, "another value")


def _at(tree: Node, path: Path, message: str) -> Problem:
    """The problem at `path`; for a key that is not there, in the file of the mapping that misses it."""
    node = lookup(tree, path)
    if node is None:
        parent = lookup(tree, path[:-1]) or tree
        return Problem(dotted(path), message, parent.file, parent.line if path[:-1] else None)
    return Problem(dotted(path), message, node.file, node.line)


def _example(path: Path) -> str:
    field = Spec.model_fields.get(str(path[0])) if len(path) == 1 else None
    if field is None or not field.examples:
        return "; add it"
    return f"; write for example `{path[0]}: {_yaml(field.examples[0])}`"


def _yaml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_yaml(child)}" for key, child in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(f'"{child}"' for child in value) + "]"
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _suggestion(error: ErrorDetails) -> str:
    """`; did you mean ...?`, from the keys of the same section, or the same key in another section."""
    *section, name = (str(step) for step in error["loc"] if not isinstance(step, int))  # one of a list is any of it
    model: type[BaseModel] = Spec
    for step in section:
        model = _sections(model)[step]
    known = [*model.model_fields, *(() if section else DOCUMENT_KEYS)]
    if near := nearest(name, known):
        return f"; did you mean {near}?"
    if name in Spec.model_fields:
        return f"; did you mean {name}, as a key of the document itself?"
    elsewhere = [part for part, other in _sections(Spec).items() if name in other.model_fields]
    if elsewhere:
        return f"; did you mean {elsewhere[0]}.{name}?"
    return f"; known here: {one_of(sorted(known))}" if len(known) <= _MOST_NAMES else "; `trn schema` has all keys"


def _sections(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The fields of a model that are models themselves, also where they may be null."""
    sections = {}
    for name, field in model.model_fields.items():
        for option in getattr(field.annotation, "__args__", (field.annotation,)):
            if isinstance(option, type) and issubclass(option, BaseModel):
                sections[name] = option
    return sections
