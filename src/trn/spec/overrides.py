"""What is laid over the files: a profile, then `--set KEY=VALUE`, then flags."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trn.errors import Problem
from trn.spec.documents import read_value, tree_of, yaml_scalar
from trn.spec.nodes import Node, Refusal, lookup, merge
from trn.spec.settle import settle
from trn.spec.words import dotted, found, nearest, one_of

__all__ = ["MAX_PROFILES", "Flag", "lay_flags", "lay_profile", "lay_set", "profiles_of", "read_number"]

MAX_PROFILES = 32

_SET = "--set"
_FILE_KEYS = ("extends", "profiles")
_KEY = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_TAKES_THE_PLACE_OF = {"max_steps": "epochs", "epochs": "max_steps", "optimizer.lr": "schedule.lr_max"}
"""The other key that says the same thing: a flag wins over it too, instead of contradicting it."""


@dataclass(frozen=True)
class Flag:
    """What a flag of the command line says: the name by which a message calls it, a dotted key, and its value."""

    name: str
    key: str
    value: object


def profiles_of(tree: Node, problems: list[Problem]) -> Mapping[str, Node]:
    """The profiles of a document that can be laid over it."""
    node = lookup(tree, ("profiles",))
    if node is None or node.value is None:
        return {}
    if not isinstance(node.value, Mapping) or len(node.value) > MAX_PROFILES:
        message = f"expected a mapping of at most {MAX_PROFILES} names to mappings, found {found(node.value)}"
        problems.append(Problem("profiles", message, node.file, node.line))
        return {}
    profiles: dict[str, Node] = {}
    for name, overlay in node.value.items():
        place = dotted(("profiles", name))
        if not isinstance(overlay.value, Mapping):
            message = f"expected a mapping (key: value), found {found(overlay.value)}"
            problems.append(Problem(place, message, overlay.file, overlay.line))
            continue
        for key in _FILE_KEYS:
            if (inner := overlay.value.get(key)) is not None:
                message = "a profile cannot have it; write it in the document"
                problems.append(Problem(f"{place}.{key}", message, inner.file, inner.line))
        kept = {key: child for key, child in overlay.value.items() if key not in _FILE_KEYS}
        profiles[name] = replace(overlay, value=kept)
    return profiles


def lay_profile(tree: Node, profiles: Mapping[str, Node], name: str, problems: list[Problem]) -> Node:
    """The named profile over the tree."""
    if name in profiles:
        return merge(tree, profiles[name])
    near = nearest(name, profiles)
    known = [dotted((one,)) for one in ([near] if near else sorted(profiles))]
    hint = f"did you mean {known[0]}?" if near else f"there is {one_of(known)}" if known else "this spec has none"
    problems.append(Problem("profiles", f"no profile is called {found(name)}; {hint}", tree.file))
    return tree


def lay_set(tree: Node, text: str, folder: Path, problems: list[Problem]) -> Node:
    """`KEY=VALUE` over the tree; relative paths belong to `folder`."""
    key, equals, value = text.partition("=")
    if not equals or not _KEY.fullmatch(key):
        message = f"expected KEY=VALUE such as optimizer.lr=1e-3, found {found(text)}"
        problems.append(Problem("", message, _SET))
        return tree
    try:
        node = read_value(value, _SET)
    except Refusal as refusal:
        problems.append(Problem(key, refusal.problem.message, _SET))
        return tree
    return _lay(tree, key, node, folder, problems)


def lay_flags(tree: Node, flags: Sequence[Flag], folder: Path, problems: list[Problem]) -> Node:
    """The values of flags over the tree; relative paths belong to `folder`."""
    given = {flag.key for flag in flags}
    for flag in flags:
        value = os.fspath(flag.value) if isinstance(flag.value, os.PathLike) else flag.value
        try:
            tree = _lay(tree, flag.key, tree_of(value, flag.name), folder, problems)
        except Refusal as refusal:
            problems.append(Problem(flag.key, refusal.problem.message, flag.name))
        rival = _TAKES_THE_PLACE_OF.get(flag.key)
        if rival is not None and rival not in given and lookup(tree, tuple(rival.split("."))) is not None:
            tree = _lay(tree, rival, tree_of(None, flag.name), folder, problems)
    return tree


def read_number(text: str) -> int | float | str:
    """The number that `text` is, as a document would have it; else the text, for the schema to refuse."""
    value = yaml_scalar(text)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else text


def _lay(tree: Node, key: str, value: Node, folder: Path, problems: list[Problem]) -> Node:
    path = tuple(key.split("."))
    message = None
    if path[0] in _FILE_KEYS:
        message = "is read from files only"
    elif any(_is_list(lookup(tree, path[:end])) for end in range(1, len(path))):
        message = "a list is set as a whole, such as a.b=[x, y]; its items have no names"
    if message is not None:
        problems.append(Problem(key, message, value.file))
        return tree
    for step in reversed(path):
        value = Node({step: value}, value.file, None)
    return merge(tree, settle(value, folder, problems))


def _is_list(node: Node | None) -> bool:
    return node is not None and isinstance(node.value, tuple)
