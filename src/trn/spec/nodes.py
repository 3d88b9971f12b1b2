"""A document as a tree of values that remember where they were written, and the builder that keeps it small.

The readers of the three formats feed a `TreeBuilder`; it refuses what is too large or too deep *while* it is read,
so that no hostile document is ever held as a whole. An alias stands for a shared subtree and is counted at its
expanded size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from trn.errors import Problem
from trn.spec.words import dotted, found

__all__ = [
    "MAX_ALIASES",
    "MAX_DEPTH",
    "MAX_NODES",
    "Node",
    "Path",
    "Refusal",
    "Room",
    "TreeBuilder",
    "leaves",
    "lookup",
    "merge",
    "plain",
]

MAX_DEPTH = 32
MAX_NODES = 10_000
"""Keys and values of a spec and all that it extends; ruamel.yaml takes about 50 microseconds for one."""
MAX_ALIASES = 1000

Scalar = str | int | float | bool | None
Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it stands; `line` is that of its key, or its own in a list, and None where unknown."""

    value: Scalar | Mapping[str, Node] | tuple[Node, ...]
    file: str | None
    line: int | None


class Refusal(Exception):
    """A document, or a part that the rest depends on, that cannot be read at all."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def plain(node: Node) -> object:
    """The value without its places: dicts, lists and scalars."""
    if isinstance(node.value, Mapping):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, tuple):
        return [plain(child) for child in node.value]
    return node.value


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def lookup(node: Node, path: Path) -> Node | None:
    """The node at `path`, None where the tree has none."""
    for step in path:
        if isinstance(node.value, Mapping) and step in node.value:
            node = node.value[str(step)]
        elif isinstance(node.value, tuple) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
        else:
            return None
    return node


def merge(low: Node, high: Node) -> Node:
    """`high` over `low`: mappings merge key by key, everything else is replaced."""
    if not isinstance(low.value, Mapping) or not isinstance(high.value, Mapping):
        return high
    merged = dict(low.value)
    for key, child in high.value.items():
        merged[key] = merge(merged[key], child) if key in merged else child
    return replace(high, value=merged)


def leaves(node: Node, path: Path = ()) -> Iterator[tuple[Path, Node]]:
    """Every node that is no mapping, with its path; a list counts as one."""
    if not isinstance(node.value, Mapping):
        yield path, node
        return
    for key, child in node.value.items():
        yield from leaves(child, (*path, key))


@dataclass(slots=True)
class Room:
    """How many of the MAX_NODES keys and values are used up, also by documents that were refused."""

    used: int = 0


@dataclass(slots=True)
class _Frame:
    """A mapping or list that is being read; `items` is one of the two."""

    items: dict[str, Node] | list[Node]
    line: int | None
    anchor: str | None
    nodes_before: int
    aliases_before: int
    key: str | None = None
    key_line: int | None = None
    is_dropped: bool = False
    height: int = 0


@dataclass(frozen=True, slots=True)
class _Anchored:
    node: Node
    nodes: int
    aliases: int
    height: int


class TreeBuilder:
    """Makes one tree of a stream of openings, scalars, aliases and closings; in a mapping, keys come as scalars.

    It uses up `room`, which several documents may share. What can be passed over (a duplicate key, a key that is no
    text) is collected in `problems`; what cannot raises Refusal. `root` is None until a value has come.
    """

    def __init__(self, file: str | None, room: Room | None = None) -> None:
        self.file = file
        self._room = Room() if room is None else room
        self.root: Node | None = None
        self.problems: list[Problem] = []
        self._frames: list[_Frame] = []
        self._anchors: dict[str, _Anchored] = {}
        self._aliases = 0

    @property
    def path(self) -> Path:
        """Where the next value goes, or the mapping whose next key is still to come."""
        steps = (len(frame.items) if isinstance(frame.items, list) else frame.key for frame in self._frames)
        return tuple(step for step in steps if step is not None)

    @property
    def expects_key(self) -> bool:
        return bool(self._frames) and isinstance(self._frames[-1].items, dict) and self._frames[-1].key is None

    def open(self, kind: type[dict[str, Node]] | type[list[Node]], line: int | None, anchor: str | None = None) -> None:
        if self.expects_key:
            raise self.refusal("expected a key, which is text, found a mapping or a list", line)
        self._check_depth(1, line)
        self._frames.append(_Frame(kind(), line, anchor, self._room.used, self._aliases))
        self._count(1, line)

    def close(self) -> None:
        frame = self._frames.pop()
        value = frame.items if isinstance(frame.items, dict) else tuple(frame.items)
        height = frame.height + 1
        node = Node(value, self.file, frame.line)
        if frame.anchor is not None:
            size, aliases = self._room.used - frame.nodes_before, self._aliases - frame.aliases_before
            self._anchors[frame.anchor] = _Anchored(node, size, aliases, height)
        self._put(node, height)

    def scalar(self, value: Scalar, line: int | None, anchor: str | None = None) -> None:
        if isinstance(value, str) and not _is_encodable(value):
            raise self.refusal("text with half of a surrogate pair, which UTF-8 cannot hold", line)
        node = Node(value, self.file, line)
        if anchor is not None:
            self._anchors[anchor] = _Anchored(node, 1, 0, 0)
        self._count(1, line)
        if self.expects_key:
            self._take_key(value, line)
        else:
            self._put(node, 0)

    def alias(self, name: str, line: int | None) -> None:
        if self.expects_key:
            raise self.refusal("expected a key, which is text, found an alias", line)
        anchored = self._anchors.get(name)
        if anchored is None:
            raise self.refusal(f"alias *{found(name, quoted=False)} has no anchor that ends before it", line)
        self._aliases += 1 + anchored.aliases
        if self._aliases > MAX_ALIASES:
            raise self.refusal(f"more than {MAX_ALIASES} aliases, counted as often as they are expanded", line)
        self._check_depth(anchored.height, line)
        self._count(anchored.nodes, line)
        self._put(replace(anchored.node, line=line), anchored.height)

    def note(self, path: Path, message: str, line: int | None) -> None:
        """Report something that can be passed over."""
        self.problems.append(Problem(dotted(path), message, self.file, line))

    def refusal(self, message: str, line: int | None) -> Refusal:
        return Refusal(Problem(dotted(self.path), message, self.file, line))

    def _take_key(self, value: Scalar, line: int | None) -> None:
        frame = self._frames[-1]
        assert isinstance(frame.items, dict), "keys only come in mappings"
        path = self.path
        frame.key, frame.key_line = value if isinstance(value, str) else found(value), line
        if not isinstance(value, str):
            self.note(
                (*path, frame.key), f"expected a key, which is text, found {found(value)}; put it in quotes", line
            )
        first = frame.items.get(frame.key)
        frame.is_dropped = first is not None or not isinstance(value, str)
        if first is not None:
            also = f" (first in line {first.line})" if first.line else ""
            self.note((*path, frame.key), f"the key stands here twice{also}; remove one", line)

    def _put(self, node: Node, height: int) -> None:
        if not self._frames:
            self.root = node
            return
        frame = self._frames[-1]
        frame.height = max(frame.height, height)
        if isinstance(frame.items, list):
            frame.items.append(node)
            return
        assert frame.key is not None, "a value in a mapping follows its key"
        if not frame.is_dropped:
            frame.items[frame.key] = replace(node, line=frame.key_line)
        frame.key = None

    def _count(self, nodes: int, line: int | None) -> None:
        self._room.used += nodes
        if self._room.used > MAX_NODES:
            message = f"more than {MAX_NODES} keys and values, counting what aliases and bases bring"
            raise self.refusal(message, line)

    def _check_depth(self, height: int, line: int | None) -> None:
        if len(self._frames) + height > MAX_DEPTH:
            raise self.refusal(f"nested deeper than {MAX_DEPTH}", line)
