"""From a job file to an ordinary document: the flat keys in their places, and what the form leaves open filled in.

    {"trainer_api_version": "v1", "mock_batches": [...], "max_runtime_seconds": 60, "uploads": {...}, ...}
        -> {config_version: 1, dataset: {mock_batches}, limits: {max_runtime_seconds}, defaulted: {...}, ...}
           and the worker's own keys beside it

Every value keeps its file and line. All keys of a spec may stand in a job file too, but for `extends` and `profiles`.
Not here: what the worker's keys mean (`job_keys.py`), and whether what comes out is a spec (`explain.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from trn.errors import Problem
from trn.spec.defaulted import DEFAULTED_KEYS
from trn.spec.job_keys import WORKER_KEYS, is_empty, names_data
from trn.spec.mock_batches import rows_of
from trn.spec.nodes import Node, lookup, plain
from trn.spec.schema import Spec
from trn.spec.words import dotted, found, nearest

__all__ = ["MOVED", "JobTree", "as_written", "is_job_form", "read_job_tree", "refused_here"]

MOVED = {"mock_batches": "dataset.mock_batches", "max_runtime_seconds": "limits.max_runtime_seconds"}
"""Flat keys, and where they stand in a spec."""

_TOKEN = "capability_token"
_SPELLINGS = ("amp", "use_amp")
_MOST_SUGGESTIONS = 20  # one costs up to a millisecond, and hostile documents have thousands of keys


@dataclass(frozen=True)
class JobTree:
    """A job file, taken apart."""

    tree: Node
    """The document, with `defaulted` and without the worker's keys."""
    worker: Mapping[str, Node]
    moved: Mapping[str, str]
    """Dotted path in the document of each flat key that is written elsewhere there."""


def is_job_form(tree: Node) -> bool:
    """Whether a document means to be a job: it says `trainer_api_version`, and nothing that only a spec says."""
    assert isinstance(tree.value, Mapping), "a document is a mapping"
    return "trainer_api_version" in tree.value and not {"config_version", "profiles"} & set(tree.value)


def read_job_tree(tree: Node, problems: list[Problem]) -> JobTree:
    """The parts of a job file; what has no place in one is added to `problems`."""
    assert isinstance(tree.value, Mapping), "a document is a mapping"
    keys = dict(tree.value)
    worker = {key: keys.pop(key) for key in WORKER_KEYS if key in keys}
    _refuse_version(keys["trainer_api_version"], problems)
    if (token := keys.pop(_TOKEN, None)) is not None:
        message = "a token stands in no file that is written down; set TRAINER_CAPABILITY_TOKEN_FILE instead"
        problems.append(Problem(_TOKEN, message, token.file, token.line))
    for key in _unknown(keys, problems):
        del keys[key]
    moved = {key: path for key, path in MOVED.items() if key in keys}
    nodes = {key: keys.pop(key) for key in moved}
    whole = replace(tree, value={"config_version": Node(1, tree.file, None), **keys})
    for key, node in nodes.items():
        whole = _placed(whole, key, node, problems)
    return JobTree(_with_defaulted(whole, has_data=names_data(worker)), worker, moved)


def refused_here(worker: Mapping[str, Node]) -> list[Problem]:
    """One problem for each key that nobody but a worker would obey."""
    message = "only a worker obeys it; start the job with `trn worker`, or remove the key"
    return [Problem(key, message, node.file, node.line) for key, node in worker.items() if not is_empty(node)]


def as_written(problems: Sequence[Problem], job: JobTree) -> list[Problem]:
    """The problems, each under the name that its key has in the job file."""
    return [replace(one, path=_flat(one.path, job.moved)) for one in problems]


def _flat(path: str, moved: Mapping[str, str]) -> str:
    for key, place in moved.items():
        if path == place or path.startswith((f"{place}[", f"{place}.")):
            return key + path.removeprefix(place)
    return path


def _refuse_version(node: Node, problems: list[Problem]) -> None:
    if node.value is None:  # of a spec it would mean the same as v1
        message = "expected v1, found null"
        problems.append(Problem("trainer_api_version", message, node.file, node.line))


def _unknown(keys: Mapping[str, Node], problems: list[Problem]) -> list[str]:
    """Keys that are neither a spec's nor a job's, each with a problem and, of the first ones, the nearest name."""
    known = [*(key for key in Spec.model_fields if key != "config_version"), *_SPELLINGS, *MOVED, *WORKER_KEYS]
    unknown = [key for key in keys if key not in known]
    for number, key in enumerate(unknown):
        near = nearest(key, known) if number < _MOST_SUGGESTIONS else None
        hint = f"did you mean {near}?" if near else "docs/job_file.md has all keys"
        problems.append(Problem(dotted((key,)), f"unknown key; {hint}", keys[key].file, keys[key].line))
    return unknown


def _placed(tree: Node, key: str, node: Node, problems: list[Problem]) -> Node:
    """`tree` with the value of a flat key in its section; null is the same as no key."""
    assert isinstance(tree.value, Mapping), "a document is a mapping"
    name, _, inner = MOVED[key].partition(".")
    section = tree.value.get(name)
    if node.value is None:
        return tree
    if section is None or section.value is None:
        section = Node({}, node.file, node.line)
    if not isinstance(section.value, Mapping):
        return tree  # for the schema to refuse
    if (other := section.value.get(inner)) is not None and other.value is not None:
        message = f"expected one value, found {MOVED[key]} too ({found(plain(other))}); keep one of them"
        problems.append(Problem(key, message, node.file, node.line))
        return tree
    section = replace(section, value={**section.value, inner: node})
    return replace(tree, value={**tree.value, name: section})


def _with_defaulted(tree: Node, *, has_data: bool) -> Node:
    """The document with what it leaves open under `defaulted`; of `dataset` only where there is one, or will be."""
    assert isinstance(tree.value, Mapping), "a document is a mapping"
    filled: dict[str, str | int | None] = {"seed": 0, "device": "auto", "precision": "none", "ddp": False}
    dataset = lookup(tree, ("dataset",))
    if has_data if dataset is None else isinstance(dataset.value, Mapping):
        filled["dataset.end"] = "stop"
        batches = lookup(tree, ("dataset", "mock_batches"))
        if batches is not None and batches.value is not None:
            filled["dataset.shuffle"] = False
            filled["dataset.batch_size"] = rows_of(plain(batches))
    values = {
        key: Node(value, tree.file, None)
        for key, value in filled.items()
        if value is not None and lookup(tree, tuple(key.split("."))) is None
    }
    assert set(values) <= set(DEFAULTED_KEYS), "whoever reads the document takes these"
    return replace(tree, value={**tree.value, "defaulted": Node(values, tree.file, None)})
