"""A file and all that it extends, as one tree: `extends: base.yaml` or a list, each relative to the file that says it.

A later base wins over an earlier one, the file wins over its bases. Lists replace, so two bases that both have the
same list are refused, unless the file has its own: which of the two was meant cannot be seen.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trn.errors import Problem
from trn.records import pretty_json
from trn.spec.documents import tree_of
from trn.spec.nodes import Node, Refusal, leaves, lookup, merge, plain
from trn.spec.settle import settle
from trn.spec.sources import MAX_FILES, Reader, Source
from trn.spec.words import dotted, found, printable

__all__ = ["MAPPING_NAME", "Files", "without"]

MAPPING_NAME = "spec-mapping.json"
"""What the source of a mapping is called; no such file was read."""


@dataclass
class Files:
    """Reads files over their bases, each file once; what is wrong with them gathers in `problems`."""

    reader: Reader = field(default_factory=Reader)
    problems: list[Problem] = field(default_factory=list)
    _trees: dict[str, Node | None] = field(default_factory=dict)
    _named: int = 0

    def read(self, path: Path) -> Node | None:
        """The document in `path` over all that it extends; None where one of them cannot be read."""
        shown = printable(str(path))
        try:
            return self._read(path, shown, ())
        except Refusal as refusal:
            self.problems.append(refusal.problem)
            return None

    def take(self, value: Mapping[str, Any], folder: Path) -> Node | None:
        """A mapping of Python as if it were a file in `folder`; None where it is none of JSON values and paths."""
        shown = "the mapping"
        try:
            root = tree_of(_as_json(value), shown)
            self.reader.take(Source(folder / MAPPING_NAME, pretty_json(plain(root))), shown)
            return self._over_bases(root, folder / MAPPING_NAME, shown, ())
        except Refusal as refusal:
            self.problems.append(refusal.problem)
        except ValueError:
            self.problems.append(Problem("", "expected finite numbers and text of UTF-8", shown))
        return None

    def _read(self, path: Path, shown: str, trail: tuple[str, ...]) -> Node | None:
        """As `read`; `trail` are the real paths of the files that led here. Raises Refusal."""
        if "\0" in str(path):
            raise Refusal(Problem("", "a file name cannot hold a NUL", shown))
        real = os.path.realpath(path)
        if real in trail:
            raise Refusal(Problem("", f"extends itself, {'directly' if real == trail[-1] else 'in a circle'}", shown))
        if real not in self._trees:
            document = self.reader.read(path, shown)
            self.problems += document.problems
            self._trees[real] = self._over_bases(document.root, path, shown, (*trail, real))
        return self._trees[real]

    def _over_bases(self, root: Node | None, path: Path, shown: str, trail: tuple[str, ...]) -> Node | None:
        if root is None or not isinstance(root.value, dict):
            what = "an empty document" if root is None or root.value is None else found(root.value)
            raise Refusal(Problem("", f"expected a mapping (key: value), found {what}", shown))
        folder = Path(os.path.abspath(path)).parent
        own = settle(without(root, "extends"), folder, self.problems)
        names = _names(root)
        self._named += len(names)
        if self._named > MAX_FILES:
            raise Refusal(Problem("extends", f"more than {MAX_FILES} names of files in one spec", shown))
        bases = [self._base(name, folder, shown, trail) for name in names]
        found_bases = [base for base in bases if base is not None]
        return self._merged(found_bases, own) if len(found_bases) == len(bases) else None

    def _base(self, name: Node, folder: Path, shown: str, trail: tuple[str, ...]) -> Node | None:
        """The tree of one base; None, and a problem that names the line which extends it, where it cannot be read."""
        text = str(name.value)
        seen = os.path.normpath(os.path.join(os.path.dirname(shown), printable(text)))
        try:
            return self._read(folder / text, seen, trail)
        except Refusal as refusal:
            problem = refusal.problem
            if problem.file == seen and problem.line is None:
                problem = Problem("extends", f"{seen}: {problem.message}", name.file, name.line)
            self.problems.append(problem)
            return None

    def _merged(self, bases: Sequence[Node], own: Node) -> Node:
        if not bases:
            return own
        merged = bases[0]
        for base in bases[1:]:
            for path, node in leaves(base):
                other = lookup(merged, path)
                if _is_another_list(node, other) and lookup(own, path) is None:
                    assert other is not None, "another list is there"
                    where = f"{other.file}:{other.line} and {node.file}:{node.line}"
                    message = f"two bases have this list, {where}; write it in the file that extends them"
                    self.problems.append(Problem(dotted(path), message, own.file))
            merged = merge(merged, base)
        return merge(merged, own)


def _as_json(value: object) -> object:
    """The value with its paths as text; whoever makes a tree of it refuses what is left."""
    if isinstance(value, Mapping):
        return {key: _as_json(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(child) for child in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def without(tree: Node, key: str) -> Node:
    """The mapping without one key."""
    assert isinstance(tree.value, dict), "only mappings have keys"
    return replace(tree, value={name: child for name, child in tree.value.items() if name != key})


def _is_another_list(node: Node, other: Node | None) -> bool:
    """Whether both are lists, written in different places: one list that reaches here on two ways is fine."""
    if other is None or not isinstance(node.value, tuple) or not isinstance(other.value, tuple):
        return False
    return (node.file, node.line) != (other.file, other.line)


def _names(root: Node) -> Sequence[Node]:
    """The nodes of the file names in `extends`. Raises Refusal."""
    node = lookup(root, ("extends",))
    if node is None or node.value is None:
        return ()
    items = node.value if isinstance(node.value, tuple) else (node,)
    for item in items:
        if not isinstance(item.value, str) or not item.value:
            message = f"expected a file name or a list of them, found {found(item.value)}"
            raise Refusal(Problem("extends", message, item.file, item.line))
    return items
