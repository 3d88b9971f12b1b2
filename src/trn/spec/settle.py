"""What a document means by itself, before it meets another one.

Relative paths become absolute by the folder of whoever wrote them, and the spellings of `precision` become one, so
that a stronger layer wins over a weaker one whichever spelling either used.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path as FilePath

from trn.addresses import absolute_target
from trn.errors import Problem
from trn.spec.nodes import Node, Path
from trn.spec.words import dotted, found

__all__ = ["settle"]

_PATHS: tuple[Path, ...] = (
    ("dataset", "parquet_paths"),
    ("dataset", "manifest"),
    ("dataset", "cache"),
    ("validation", "parquet_paths"),
    ("validation", "manifest"),
    ("runs_dir",),
    ("weights", "path"),
)
_PRECISION_KEYS = ("precision", "amp", "use_amp")
_GLOB = re.compile(r"[*?\[]")


def settle(tree: Node, folder: FilePath, problems: list[Problem]) -> Node:
    """The document with absolute paths and one spelling of `precision`, in its profiles too."""
    tree = _settle_one(tree, folder, problems, ())

    def settle_profiles(profiles: Node) -> Node:
        if not isinstance(profiles.value, Mapping):
            return profiles
        settled = {
            name: _settle_one(overlay, folder, problems, ("profiles", name)) for name, overlay in profiles.value.items()
        }
        return replace(profiles, value=settled)

    return _changed(tree, ("profiles",), settle_profiles)


def _settle_one(tree: Node, folder: FilePath, problems: list[Problem], path: Path) -> Node:
    for place in _PATHS:
        tree = _changed(tree, place, lambda node: _absolute(node, folder))
    tree = _changed(tree, ("inputs",), lambda node: _absolute_files(node, folder))
    tree = _changed(tree, ("events",), lambda node: _absolute_targets(node, folder))
    return _one_precision(tree, problems, path)


def _absolute_files(node: Node, folder: FilePath) -> Node:
    if not isinstance(node.value, Mapping):
        return node
    settled = {name: item if _is_file_url(item) else _absolute(item, folder) for name, item in node.value.items()}
    return replace(node, value=settled)


def _is_file_url(node: Node) -> bool:
    return isinstance(node.value, str) and node.value.startswith("file:/")


def _absolute_targets(node: Node, folder: FilePath) -> Node:
    if isinstance(node.value, tuple):
        return replace(node, value=tuple(_absolute_targets(item, folder) for item in node.value))
    return replace(node, value=absolute_target(node.value, str(folder))) if isinstance(node.value, str) else node


def _changed(tree: Node, path: Path, change: Callable[[Node], Node]) -> Node:
    """The tree with `change` applied to the node at `path`, if there is one."""
    if not path:
        return change(tree)
    if not isinstance(tree.value, Mapping) or path[0] not in tree.value:
        return tree
    key = str(path[0])
    return replace(tree, value={**tree.value, key: _changed(tree.value[key], path[1:], change)})


def _absolute(node: Node, folder: FilePath) -> Node:
    if isinstance(node.value, tuple):
        return replace(node, value=tuple(_absolute(item, folder) for item in node.value))
    text = node.value
    if not isinstance(text, str) or not text.strip() or "://" in text:
        return node
    # a folder called `run[1]` must not become part of the pattern; `..` stays, as a link may lie before it
    above = glob.escape(str(folder)) if _GLOB.search(text) else str(folder)
    return replace(node, value=str(FilePath(above) / text))


def _one_precision(tree: Node, problems: list[Problem], path: Path) -> Node:
    """`amp` and `use_amp` as `precision`; the problem where two spellings say different things."""
    if not isinstance(tree.value, Mapping):
        return tree
    written = {key: tree.value[key] for key in _PRECISION_KEYS if key in tree.value}
    if not set(written) - {"precision"}:
        return tree
    said = {key: _as_precision(key, node, problems, path) for key, node in written.items()}
    given = [node for node in said.values() if node.value is not None] or list(said.values())
    if len({str(node.value) for node in given}) > 1:
        what = ", ".join(f"{key}: {found(node.value)}" for key, node in written.items())
        message = f"expected one precision, found {what}; keep one of them"
        problems.append(Problem(dotted((*path, "precision")), message, given[-1].file, given[-1].line))
    others = {key: node for key, node in tree.value.items() if key not in _PRECISION_KEYS}
    return replace(tree, value={**others, "precision": given[0]})


def _as_precision(key: str, node: Node, problems: list[Problem], path: Path) -> Node:
    if key != "use_amp" or node.value is None:
        return node
    if not isinstance(node.value, bool):
        message = f"expected true (fp16) or false (none), found {found(node.value)}"
        problems.append(Problem(dotted((*path, key)), message, node.file, node.line))
    return replace(node, value="fp16" if node.value is True else "none")
