"""`load_spec`: from a file and a command line, or a mapping, to a Spec, or to all that is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trn.errors import Problem, SpecError
from trn.spec.documents import tree_of
from trn.spec.explain import check, field_problems
from trn.spec.extends import Files, without
from trn.spec.nodes import Node, merge
from trn.spec.overrides import Flag, lay_flags, lay_profile, lay_set, profiles_of
from trn.spec.schema import Spec
from trn.spec.sources import Source
from trn.spec.words import dotted

__all__ = ["LoadedSpec", "load_spec"]

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


def load_spec(
    config: Path | Mapping[str, Any],
    *,
    sets: Sequence[str] = (),
    flags: Sequence[Flag] = (),
    profile: str | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> LoadedSpec:
    """The spec in `config` over what it extends, under `profile`, `sets` (`a.b=c`) and `flags`.

    The stronger wins: defaults < extends < file < profile < sets < flags. Relative data paths are made absolute: those
    of a file by its folder, those of sets and flags by the current one, to which a mapping belongs too.
    Raises SpecError with all problems. Reads the files and nothing else: no data, no trainer, no environment.
    """
    here = _current_folder()
    files = Files()
    problems = files.problems
    tree = files.take(config, here) if isinstance(config, Mapping) else files.read(config)
    if tree is None:
        raise _refused(problems, files.reader.shown)
    tree = merge(tree_of(defaults or {}, "defaults"), tree)
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
        raise _refused([*problems, *spec], files.reader.shown)
    if problems:
        raise _refused(problems, files.reader.shown)
    folder = files.reader.sources[0].path.parent
    return LoadedSpec(spec, tuple(files.reader.sources), folder, profile)


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


def _refused(problems: Sequence[Problem], files: Sequence[str]) -> SpecError:
    """The first hundred problems and the number of the others: file by file and line by line, the command line last."""
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
