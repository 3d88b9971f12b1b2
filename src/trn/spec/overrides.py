"""What is laid over the files: a profile, then `--set KEY=VALUE`, then flags."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from trn.errors import Problem
from trn.spec.documents import read_value, tree_of
from trn.spec.nodes import Node, Refusal, lookup, merge
from trn.spec.settle import settle
from trn.spec.words import dotted, found, nearest, one_of

__all__ = ["MAX_PROFILES", "lay_flag", "lay_profile", "lay_set", "profiles_of"]

MAX_PROFILES = 32

_SET = "--set"
_FLAG = "command line"
_FILE_KEYS = ("extends", "profiles")
_KEY = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")


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


def lay_flag(tree: Node, key: str, value: object, folder: Path, problems: list[Problem]) -> Node:
    """A flag's value over the tree; relative paths belong to `folder`."""
    try:
        node = tree_of(os.fspath(value) if isinstance(value, os.PathLike) else value, _FLAG)
    except Refusal as refusal:
        problems.append(Problem(key, refusal.problem.message, _FLAG))
        return tree
    return _lay(tree, key, node, folder, problems)


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
