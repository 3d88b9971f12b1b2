"""A job file as a platform writes it, read and settled into an ordinary spec document: docs/job_file.md.

    job.json ──read_job_file──> JobForm ──to_json_document──> a spec, as JSON

The document has everything that the run obeys; the worker's own keys are beside it, in `worker`. `load_spec` reads a
job file by itself too, for whoever trains without a worker. Nothing is fetched, created or executed here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trn.errors import Problem, SpecError
from trn.spec.defaulted import lay_defaulted, still_standing
from trn.spec.explain import check
from trn.spec.extends import Files, without
from trn.spec.job_keys import Input, WorkerKeys, names_data, read_worker_keys
from trn.spec.job_tree import as_written, is_job_form, read_job_tree
from trn.spec.load import refusal_of, with_data_to_come
from trn.spec.nodes import Node, lookup, plain
from trn.spec.schema import Spec
from trn.spec.words import found, printable

__all__ = ["Input", "JobForm", "WorkerKeys", "read_job_file"]


@dataclass(frozen=True)
class JobForm:
    """A job: the spec document that it is, what was filled in, and what the worker is told."""

    document: dict[str, Any]
    """The whole spec, with absolute paths and `config_version: 1`; without a source of data where `worker.inputs`
    names the data, which whoever fetches them puts there; and without a `trainer` where nobody names one."""
    defaulted: dict[str, Any]
    """Dotted path and value of what the file left open; it stands in `document` too."""
    worker: WorkerKeys
    path: Path
    """The job file, absolute. Its folder may hold the trainer."""

    @property
    def run_id(self) -> str:
        return str(self.document["run_id"])

    def to_json_document(self) -> dict[str, Any]:
        """The spec as it is written to a file: it says of itself what was filled in, so that the plan does."""
        return {**self.document, "defaulted": dict(self.defaulted)} if self.defaulted else dict(self.document)


def read_job_file(path: Path, *, plugin: str | None = None) -> JobForm:
    """The job in the JSON file `path`. `plugin` names the trainer where the file does not; "" is the same as None.

    Raises SpecError with all problems: also for a file that is an ordinary spec, for a `trainer` that is not `plugin`,
    and without a `run_id`; but not if all that is wrong is that there is no trainer.
    """
    files = Files()
    problems = files.problems
    if path.suffix.lower() != ".json":
        raise SpecError([Problem("", "expected a job file that ends in .json", printable(str(path)))])
    tree = files.read(path)
    if tree is None:
        raise refusal_of(problems, files.reader.shown)
    if len(files.reader.sources) > 1 or not is_job_form(tree):
        raise refusal_of([*problems, _no_job(tree)], files.reader.shown)
    folder = files.reader.sources[0].path.parent
    job = read_job_tree(_with_trainer(tree, plugin or None, problems), problems)
    worker = read_worker_keys(job.worker, folder, problems)
    run_id = lookup(tree, ("run_id",))
    if run_id is None or run_id.value is None:
        message = "required in a job file: whoever starts it again finds its run by this name"
        problems.append(Problem("run_id", message, tree.file, None if run_id is None else run_id.line))
    whole = lay_defaulted(without(job.tree, "defaulted"), lookup(job.tree, ("defaulted",)), problems)
    checked = check(with_data_to_come(whole, problems) if names_data(job.worker) else whole)
    missing = [] if isinstance(checked, Spec) else checked
    if problems or any(one.path != "trainer" or lookup(whole, ("trainer",)) is not None for one in missing):
        problems += missing
        raise refusal_of(as_written(problems, job), files.reader.shown)
    document = plain(whole)
    assert isinstance(document, dict), "a document is a mapping"
    return JobForm(document, still_standing(whole), worker, files.reader.sources[0].path)


def _no_job(tree: Node) -> Problem:
    for key, what in (
        ("config_version", "this is an ordinary spec, for `trn run`; a job file does not have this key"),
        ("profiles", "a job file has no profiles"),
    ):
        if (node := lookup(tree, (key,))) is not None:
            return Problem(key, what, node.file, node.line)
    if lookup(tree, ("trainer_api_version",)) is not None:
        return Problem("extends", "a job file extends no other", tree.file)
    return Problem("trainer_api_version", 'required; write "trainer_api_version": "v1"', tree.file)


def _with_trainer(tree: Node, plugin: str | None, problems: list[Problem]) -> Node:
    """The job with `plugin` as its trainer where it names none; an empty name is none."""
    assert isinstance(tree.value, dict), "a document is a mapping"
    written = tree.value.get("trainer")
    if written is not None and (written.value is None or written.value == ""):
        tree, written = without(tree, "trainer"), None
    if plugin is None:
        return tree
    if written is None:
        assert isinstance(tree.value, dict), "as before"
        return replace(tree, value={**tree.value, "trainer": Node(plugin, "TRAINER_PLUGIN", None)})
    if written.value != plugin:
        message = f"expected {found(plugin)}, as TRAINER_PLUGIN says, found {found(plain(written))}; let them agree"
        problems.append(Problem("trainer", message, written.file, written.line))
    return tree
