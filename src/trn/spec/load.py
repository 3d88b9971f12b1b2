"""`load_spec`: from a file and a command line, or a mapping, to a Spec, or to all that is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trn.errors import Problem, SpecError
from trn.spec.defaulted import lay_defaulted, still_standing
from trn.spec.documents import tree_of
from trn.spec.explain import check, field_problems
from trn.spec.extends import Files, without
from trn.spec.job_keys import names_data
from trn.spec.job_tree import JobTree, as_written, is_job_form, read_job_tree, refused_here
from trn.spec.nodes import Node, lookup, merge
from trn.spec.overrides import Flag, lay_flags, lay_profile, lay_set, profiles_of
from trn.spec.schema import Spec
from trn.spec.sources import Source
from trn.spec.words import dotted

__all__ = ["LoadedSpec", "load_spec", "refusal_of", "with_data_to_come"]

_MOST_PROBLEMS = 100


@dataclass(frozen=True)
class LoadedSpec:
    """A spec and what it was made of."""

    spec: Spec
    sources: tuple[Source, ...]
    """Every file that was read, verbatim; the first is the config itself."""
    folder: Path
    """The absolute folder of the config."""
    profile: str | None = None
    """The profile that was chosen."""
    defaulted: Mapping[str, Any] = field(default_factory=dict)
    """Dotted path and value of what was filled in, of the keys that a job file may leave open."""


def load_spec(
    config: Path | Mapping[str, Any],
    *,
    sets: Sequence[str] = (),
    flags: Sequence[Flag] = (),
    profile: str | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> LoadedSpec:
    """The spec in `config` over what it extends, under `profile`, `sets` (`a.b=c`) and `flags`.

    A JSON document in the form of a job file is one too, unless it says what only a worker obeys.
    The stronger wins: defaulted < defaults < extends < file < profile < sets < flags. Relative data paths are made
    absolute: those of a file by its folder, those of sets and flags by the current one, to which a mapping belongs too.
    Raises SpecError with all problems. Reads the files and nothing else: no data, no trainer, no environment.
    """
    here = _current_folder()
    files = Files()
    problems = files.problems
    tree = files.take(config, here) if isinstance(config, Mapping) else files.read(config)
    if tree is None:
        raise refusal_of(problems, files.reader.shown)
    job = _job_in(tree, files, config)
    tree = tree if job is None else job.tree
    filled = lookup(tree, ("defaulted",))
    tree = merge(tree_of(defaults or {}, "defaults"), without(tree, "defaulted"))
    tree = lay_defaulted(tree, filled, problems)
    profiles = profiles_of(tree, problems)
    tree = without(tree, "profiles")
    for name, overlay in profiles.items():
        if name != profile:
            problems += _problems_of_profile(name, overlay)
    if profile is not None:
        tree = lay_profile(tree, profiles, profile, problems)
    for text in sets:
        tree = lay_set(tree, text, here, problems)
    tree = lay_flags(tree, flags, here, problems)
    spec = check(tree)
    if not isinstance(spec, Spec):
        problems += spec
    if not isinstance(spec, Spec) or problems:
        raise refusal_of(problems if job is None else as_written(problems, job), files.reader.shown)
    folder = files.reader.sources[0].path.parent
    return LoadedSpec(spec, tuple(files.reader.sources), folder, profile, still_standing(tree))


def _job_in(tree: Node, files: Files, config: Path | Mapping[str, Any]) -> JobTree | None:
    """The document as a job, where it is one: alone, in JSON."""
    is_json = isinstance(config, Mapping) or config.suffix.lower() == ".json"
    if not is_json or len(files.reader.sources) > 1 or not is_job_form(tree):
        return None
    job = read_job_tree(tree, files.problems)
    files.problems += refused_here(job.worker)
    return replace(job, tree=with_data_to_come(job.tree, files.problems)) if names_data(job.worker) else job


def with_data_to_come(tree: Node, problems: list[Problem]) -> Node:
    """A job whose data are still to be fetched, with a path in their place, so that all else can be checked."""
    dataset = lookup(tree, ("dataset",))
    if dataset is not None and not isinstance(dataset.value, Mapping):
        return tree
    for key in ("parquet_paths", "manifest", "mock_batches"):
        if (node := lookup(tree, ("dataset", key))) is not None and node.value is not None:
            message = f"expected one source of data, found inputs and dataset.{key}; keep one of them"
            problems.append(Problem(f"dataset.{key}", message, node.file, node.line))
            return tree
    place = dataset or tree
    to_come = {"parquet_paths": Node((Node("inputs", place.file, place.line),), place.file, place.line)}
    return merge(tree, Node({"dataset": Node(to_come, place.file, place.line)}, tree.file, None))


def _current_folder() -> Path:
    try:
        return Path.cwd()
    except OSError as error:
        raise SpecError([Problem("", "the current folder is gone; go to one that exists")]) from error


def _problems_of_profile(name: str, overlay: Node) -> list[Problem]:
    """What is wrong with the keys and values of a profile that was not chosen: a mistake in it should not wait."""
    place = dotted(("profiles", name))
    return [
        Problem(f"{place}.{problem.path}", problem.message, problem.file, problem.line)
        for problem in field_problems(overlay, is_overlay=True)
    ]


def refusal_of(problems: Sequence[Problem], files: Sequence[str]) -> SpecError:
    """A refusal with the first hundred problems and the number of the others, in the order of files and lines.

    The command line comes last.
    """
    origins = dict.fromkeys((*files, *(problem.file for problem in problems)))
    rank = {origin: number for number, origin in enumerate(origins)}
    first: dict[tuple[str, str | None, int | None], Problem] = {}
    for problem in problems:
        first.setdefault((problem.path, problem.file, problem.line), problem)
    ordered = sorted(first.values(), key=lambda problem: (rank[problem.file], problem.line or 0))
    if len(ordered) > _MOST_PROBLEMS:
        rest = Problem("", f"and {len(ordered) - _MOST_PROBLEMS} more problems", ordered[0].file)
        ordered = [*ordered[:_MOST_PROBLEMS], rest]
    return SpecError(ordered)
