"""`defaulted`: values that were filled in where a job file is silent, as the weakest layer of a document.

    defaulted: {seed: 0, device: auto, dataset.end: stop}      dotted paths, in a spec that was made of a job file

Whatever else is said about these keys wins. Those that are still standing in the end are recorded with the plan, so
that nobody takes them for somebody's choice. No other key can be filled in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trn.errors import Problem
from trn.spec.nodes import Node, lookup, merge, plain
from trn.spec.words import dotted, found, one_of

__all__ = ["DEFAULTED_KEYS", "lay_defaulted", "still_standing"]

DEFAULTED_KEYS = ("seed", "device", "precision", "ddp", "dataset.batch_size", "dataset.end", "dataset.shuffle")
"""What a job file may leave open although a spec may not, or means otherwise."""

_ORIGIN = "defaulted"


def lay_defaulted(tree: Node, node: Node | None, problems: list[Problem]) -> Node:
    """`tree` over what `node`, the value of its key `defaulted`, says.

    A key may stand in both with the same value: then it was filled in, too.
    """
    if node is None or node.value is None:
        return tree
    if not isinstance(node.value, Mapping):
        message = f"expected a mapping of keys to values, found {found(node.value)}"
        problems.append(Problem(_ORIGIN, message, node.file, node.line))
        return tree
    for key, child in node.value.items():
        if key not in DEFAULTED_KEYS:
            message = f"this key cannot be filled in; {one_of(DEFAULTED_KEYS)} can"
            problems.append(Problem(dotted((_ORIGIN, key)), message, child.file, child.line))
            continue
        path = tuple(key.split("."))
        written = lookup(tree, path)
        filled = Node(child.value, _ORIGIN, None)
        for step in reversed(path):
            filled = Node({step: filled}, tree.file, None)
        is_same = written is not None and repr(plain(written)) == repr(plain(child))
        tree = merge(tree, filled) if is_same else merge(filled, tree)
    return tree


def still_standing(tree: Node) -> dict[str, Any]:
    """Dotted path and value of each key that only `defaulted` gave."""
    nodes = {key: lookup(tree, tuple(key.split("."))) for key in DEFAULTED_KEYS}
    return {key: plain(node) for key, node in nodes.items() if node is not None and node.file == _ORIGIN}
