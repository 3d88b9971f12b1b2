"""The keys of a job file that a worker obeys, and no spec has: where its inputs are, where its artifacts go.

    inputs: {base_model_ref, dataset_parquet_urls: [...], resume_checkpoint_url}  -> Input(name, source, sha256, size)
    uploads: {metrics_url, checkpoint_url, sample_url, terminal_url}              -> {metrics: ..., ...}
    resume_from_latest, resume_checkpoint_path, orchestrated, cancel_file_path

A `_ref` is a path or a URL, a `_url` is a URL; a relative path belongs to the folder of the job file. No URL may hold
a secret. An empty value is the same as none. Nothing is opened or asked for here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from trn.addresses import names_user, secret_parameters
from trn.errors import Problem
from trn.spec.nodes import Node
from trn.spec.words import dotted, found, nearest, one_of

__all__ = [
    "INPUT_KEYS",
    "UPLOAD_KEYS",
    "WORKER_KEYS",
    "Input",
    "WorkerKeys",
    "is_empty",
    "names_data",
    "read_worker_keys",
]

WORKER_KEYS = (
    "inputs",
    "uploads",
    "resume_from_latest",
    "resume_checkpoint_path",
    "orchestrated",
    "cancel_file_path",
)

_DATA = "dataset_parquet"
INPUT_KEYS = (
    *("base_model_ref", "base_model_url"),
    *(f"{_DATA}_refs", f"{_DATA}_urls"),
    *("resume_checkpoint_ref", "resume_checkpoint_url"),
)
UPLOAD_KEYS = ("metrics_url", "checkpoint_url", "sample_url", "terminal_url")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s]+|file:/[^\s]*")
_MOST_SUGGESTIONS = 20  # hostile documents have thousands of keys


@dataclass(frozen=True)
class Input:
    """Something to fetch before the run: `base_model`, `dataset/0000` and so on, or `resume_checkpoint`."""

    name: str
    source: str
    """An absolute path, or a URL without secrets."""
    sha256: str | None = None
    size_bytes: int | None = None


@dataclass(frozen=True)
class WorkerKeys:
    """What a job file says to the worker, beside the training itself."""

    inputs: tuple[Input, ...] = ()
    """In the order base model, data, checkpoint; data in their own order."""
    uploads: Mapping[str, str] = field(default_factory=dict)
    """http(s) URLs without secrets for `metrics`, `checkpoint`, `sample`, `terminal`; without one it is not sent."""
    resume_from_latest: bool = False
    resume_checkpoint_path: str | None = None
    """Absolute."""
    orchestrated: bool = False
    cancel_file_path: str | None = None
    """Absolute."""


def is_empty(node: Node) -> bool:
    """Whether a value says nothing: null, false, "", or a mapping or list of nothing else."""
    if isinstance(node.value, Mapping):
        return all(is_empty(child) for child in node.value.values())
    if isinstance(node.value, tuple):
        return all(is_empty(child) for child in node.value)
    return node.value is None or node.value is False or node.value == ""


def names_data(nodes: Mapping[str, Node]) -> bool:
    """Whether the worker keys of a job name its training data."""
    inputs = nodes.get("inputs")
    if inputs is None or not isinstance(inputs.value, Mapping):
        return False
    return any(key.startswith(_DATA) and not is_empty(child) for key, child in inputs.value.items())


def read_worker_keys(nodes: Mapping[str, Node], folder: Path, problems: list[Problem]) -> WorkerKeys:
    """The values of a job's worker keys; what is wrong with them is added to `problems`."""
    read = _Reader(folder, problems)
    inputs = tuple(read.inputs(nodes.get("inputs")))
    resume_path = read.path(nodes.get("resume_checkpoint_path"), "resume_checkpoint_path")
    if resume_path is not None and any(one.name == "resume_checkpoint" for one in inputs):
        read.note(
            nodes["resume_checkpoint_path"],
            ("resume_checkpoint_path",),
            "expected one checkpoint, found inputs.resume_checkpoint too; keep one of them",
        )
    return WorkerKeys(
        inputs=inputs,
        uploads=read.uploads(nodes.get("uploads")),
        resume_from_latest=read.switch(nodes.get("resume_from_latest"), "resume_from_latest"),
        resume_checkpoint_path=resume_path,
        orchestrated=read.switch(nodes.get("orchestrated"), "orchestrated"),
        cancel_file_path=read.path(nodes.get("cancel_file_path"), "cancel_file_path"),
    )


@dataclass(frozen=True)
class _Reader:
    folder: Path
    problems: list[Problem]

    def note(self, node: Node, path: tuple[str | int, ...], message: str) -> None:
        self.problems.append(Problem(dotted(path), message, node.file, node.line))

    def switch(self, node: Node | None, key: str) -> bool:
        if node is None or node.value is None or isinstance(node.value, bool):
            return node is not None and node.value is True
        self.note(node, (key,), f"expected true or false, found {found(node.value)}")
        return False

    def path(self, node: Node | None, key: str) -> str | None:
        if node is None or node.value is None or node.value == "":
            return None
        if not isinstance(node.value, str) or not node.value.strip() or "\0" in node.value:
            self.note(node, (key,), f"expected a path, found {found(node.value)}")
            return None
        return str(self.folder / node.value)

    def uploads(self, node: Node | None) -> dict[str, str]:
        given: dict[str, str] = {}
        for key, child in self._section(node, "uploads", UPLOAD_KEYS):
            if child.value is None or child.value == "":
                continue
            source = self._address(child, ("uploads", key), is_url=True)
            if source is not None and not source.lower().startswith(("https://", "http://")):
                self.note(child, ("uploads", key), f"expected an address of https or http, found {found(source)}")
            elif source is not None:
                given[key.removesuffix("_url")] = source
        return given

    def inputs(self, node: Node | None) -> Iterator[Input]:
        by_stem: dict[str, tuple[str, Node]] = {}
        for key, child in self._section(node, "inputs", INPUT_KEYS):
            if is_empty(child):
                continue
            stem = key.rpartition("_")[0]
            if stem in by_stem:
                self.note(child, ("inputs", key), f"expected one source, found {by_stem[stem][0]} too; keep one")
            by_stem[stem] = (key, child)
        for stem in ("base_model", _DATA, "resume_checkpoint"):
            if stem in by_stem:
                key, child = by_stem[stem]
                yield from self._many(child, key) if stem == _DATA else self._one(child, ("inputs", key), stem)

    def _many(self, node: Node, key: str) -> Iterator[Input]:
        if not isinstance(node.value, tuple):
            self.note(node, ("inputs", key), f"expected a list such as [a, b], found {found(node.value)}")
            return
        seen: dict[str, int] = {}
        for index, item in enumerate(node.value):
            for one in self._one(item, ("inputs", key, index), f"dataset/{index:04}"):
                if one.source in seen:
                    self.note(item, ("inputs", key, index), f"the same as number {seen[one.source]}; name it once")
                seen.setdefault(one.source, index)
                yield one

    def _one(self, node: Node, path: tuple[str | int, ...], name: str) -> Iterator[Input]:
        is_url = str(path[1]).rstrip("s").endswith("_url")
        if not isinstance(node.value, Mapping):
            source = self._address(node, path, is_url=is_url)
            if source is not None:
                yield Input(name, source)
            return
        parts = dict(self._section(node, path, ("ref", "url", "sha256", "size_bytes")))
        given = [key for key in ("ref", "url") if key in parts and not is_empty(parts[key])]
        if len(given) != 1:
            self.note(node, path, f"expected one of ref and url, found {'both' if given else 'neither'}")
            return
        source = self._address(parts[given[0]], (*path, given[0]), is_url=is_url or given[0] == "url")
        sha256, size_bytes = self._sha256(parts.get("sha256"), path), self._size(parts.get("size_bytes"), path)
        if source is not None:
            yield Input(name, source, sha256, size_bytes)

    def _section(
        self, node: Node | None, path: str | tuple[str | int, ...], known: tuple[str, ...]
    ) -> Iterator[tuple[str, Node]]:
        """The known keys of a mapping; the others are problems."""
        place = (path,) if isinstance(path, str) else path
        if node is None or node.value is None:
            return
        if not isinstance(node.value, Mapping):
            self.note(node, place, f"expected a mapping (key: value), found {found(node.value)}")
            return
        for key, child in node.value.items():
            if key in known:
                yield key, child
                continue
            near = nearest(key, known) if len(self.problems) < _MOST_SUGGESTIONS else None
            hint = f"did you mean {near}?" if near else f"known here: {one_of(known)}"
            self.note(child, (*place, key), f"unknown key; {hint}")

    def _address(self, node: Node, path: tuple[str | int, ...], *, is_url: bool) -> str | None:
        """A path made absolute, or a URL. What may hold a secret is never repeated."""
        text = node.value
        if not isinstance(text, str) or not text.strip() or not text.isprintable():
            self.note(node, path, f"expected {'a URL' if is_url else 'a path or a URL'}, found {_shape(text)}")
            return None
        parts = _split(text) if _URL.fullmatch(text) else None
        if parts is not None and (secret := _secret_in(parts)):
            self.note(node, path, f"expected no secret in what is written down, and {secret} looks like one")
            return None
        if (is_url or "://" in text) if parts is None else not _leads_somewhere(parts):
            self.note(node, path, "expected a URL such as https://host/file, found something else")
            return None
        return text if parts is not None else str(self.folder / text)

    def _sha256(self, node: Node | None, path: tuple[str | int, ...]) -> str | None:
        if node is None or node.value is None:
            return None
        if isinstance(node.value, str) and _SHA256.fullmatch(node.value):
            return node.value
        self.note(node, (*path, "sha256"), f"expected 64 of 0-9 a-f, found {found(node.value)}")
        return None

    def _size(self, node: Node | None, path: tuple[str | int, ...]) -> int | None:
        if node is None or node.value is None:
            return None
        if isinstance(node.value, int) and not isinstance(node.value, bool) and 0 <= node.value < 2**53:
            return node.value
        self.note(node, (*path, "size_bytes"), f"expected a whole number from 0 on, found {found(node.value)}")
        return None


def _shape(value: object) -> str:
    """As `found`, of what is no line of text."""
    return "control characters" if isinstance(value, str) and value.strip() else found(value)


def _split(url: str) -> SplitResult | None:
    try:
        return urlsplit(url)
    except ValueError:  # brackets that hold no address
        return None


def _leads_somewhere(parts: SplitResult) -> bool:
    """Whether a URL of the web is one that can be asked; how a store calls its places is its own business."""
    if parts.scheme.lower() not in ("http", "https"):
        return True
    try:
        return bool(parts.hostname) and parts.port != 0 and not parts.fragment and parts.geturl().isascii()
    except ValueError:  # a port that is none
        return False


def _secret_in(parts: SplitResult) -> str | None:
    """What of a URL looks like a secret."""
    if names_user(parts.scheme, parts.netloc):
        return "what stands before the @"
    names = secret_parameters(f"{parts.query}&{parts.fragment}")
    return f"{found(names[0], quoted=False)}=" if names else None
