"""Which files an import would load, read off the sources: nothing is imported, nothing runs.

A plan has one digest over the trainer's own modules that were loaded when it was made (trn.provenance.code). To compare
it before anything runs, the import statements are followed from file to file. Some imports cannot be foreseen (inside a
function, by a name that is computed, through another library): then the answer is not certain, and what is certain is
found only after the import.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec, PathFinder
from importlib.util import resolve_name
from pathlib import Path

from trn.provenance.code import files_sha256, folder_of, is_below

__all__ = ["Foreseen", "foresee", "spec_by_hook"]

_BY_NAME = frozenset({"__import__", "exec_module", "import_module", "run_module", "run_path"})
_BUILT_IN = frozenset({"eval", "exec"})
"""As names alone: a model has an `eval` too."""
_INDIFFERENT = frozenset({"numpy", "pyarrow", "tokenizers", "torch", "transformers", "trn"}) | sys.stdlib_module_names
"""Libraries that import no module of a trainer."""


@dataclass(frozen=True)
class Foreseen:
    """What importing a module would load: its file, and the digests that its code may have."""

    file: Path
    digests: frozenset[str]
    is_certain: bool
    """Whether it has one of these digests: another one is then other code."""


def foresee(
    module_name: str,
    path: Sequence[str],
    *,
    beyond: Sequence[str] = (),
    by: str | None = None,
    is_installed: bool = False,
) -> Foreseen | None:
    """What `module_name` would be if it were looked for in the folders of `path`; None where it is not there.

    `beyond` are folders where what it imports may lie; `by` is a module that imports it, if it is asked for that way;
    `is_installed`: also the import hooks of packages that are installed where they are developed are asked.
    """
    walk = _Walk(module_name, tuple(path), (*path, *beyond), module_name if by is None else by, is_installed)
    own = walk.file_of(module_name)
    if own is None:
        spec = walk.spec_of(module_name)  # no source: an extension, compiled code, an archive
        return None if spec is None or spec.origin is None else Foreseen(Path(spec.origin), frozenset(), False)
    if walk.top == "trn":  # it stands alone: trn's version is recorded instead
        return Foreseen(own, frozenset({files_sha256([own])}), True)
    sure, all_of_them = walk.files(may_be=False), walk.files(may_be=True)
    digests = frozenset({files_sha256(sorted(sure)), files_sha256(sorted(all_of_them))})
    return Foreseen(own, digests, not walk.doubts)


@dataclass
class _Walk:
    """From one module along its imports to all that are its own: in its package, or beside it."""

    name: str
    path: tuple[str, ...]
    everywhere: tuple[str, ...]
    first: str
    is_installed: bool
    doubts: bool = False
    specs: dict[str, ModuleSpec | None] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)

    @property
    def top(self) -> str:
        return self.name.partition(".")[0]

    def spec_of(self, name: str) -> ModuleSpec | None:
        if name not in self.specs:
            parent, _, own = name.rpartition(".")
            above = self.spec_of(parent) if parent else None
            found = None
            if not parent:
                found = PathFinder.find_spec(own, list(self.path if own == self.top else self.everywhere))
                if found is None and (self.is_installed or own != self.top):
                    found = spec_by_hook(own)
            elif above is not None and above.submodule_search_locations is not None:
                # by its own name alone: with a dotted one, a namespace package asks for its parent to be loaded
                found = PathFinder.find_spec(own, list(above.submodule_search_locations))
            self.specs[name] = found
        return self.specs[name]

    def file_of(self, name: str) -> Path | None:
        spec = self.spec_of(name)
        return Path(spec.origin).resolve() if spec and spec.origin and spec.origin.endswith(".py") else None

    def is_own(self, name: str) -> bool:
        """As trn.provenance.code has it."""
        top = self.spec_of(self.top)
        if top is not None and top.submodule_search_locations is not None:
            return name.partition(".")[0] == self.top
        own, found = self.spec_of(self.name), self.spec_of(name)
        if own is None or own.origin is None or found is None or found.origin is None:
            return False
        return is_below(folder_of(found.origin, self.folders), folder_of(own.origin, self.folders))

    def files(self, *, may_be: bool) -> set[Path]:
        """All own files; with `may_be` also those that are imported only at times."""
        found: dict[str, Path] = {}
        todo = [*_with_parents(self.name), *_with_parents(self.first)]
        while todo:
            name = todo.pop()
            file = self.file_of(name)
            if name in found or file is None:
                continue
            if not self.is_own(name):
                self.doubts = self.doubts or self._is_doubtful(name, file)
                continue
            found[name] = file
            todo += [one for one, is_sure in self._imports(name, file) if is_sure or may_be]
        return set(found.values())

    def _is_doubtful(self, name: str, file: Path) -> bool:
        """Whether a library may import the trainer's own modules in its turn."""
        own = self.file_of(self.name)
        is_installed = "site-packages" in str(file) and own is not None and "site-packages" not in str(own)
        return name.partition(".")[0] not in _INDIFFERENT and not is_installed

    def _imports(self, name: str, file: Path) -> Iterator[tuple[str, bool]]:
        """Every module that the file names in an import, and whether that import is made for sure."""
        try:
            tree = ast.parse(file.read_bytes(), str(file))
        except (SyntaxError, ValueError, OSError, RecursionError):
            self.doubts = True
            return
        spec = self.spec_of(name)
        package = name if spec is not None and spec.submodule_search_locations is not None else name.rpartition(".")[0]
        for node, is_sure in _nodes(tree, True):
            if isinstance(node, ast.Name):
                self.doubts = self.doubts or node.id in _BY_NAME | _BUILT_IN
            elif isinstance(node, ast.Attribute):
                self.doubts = self.doubts or node.attr in _BY_NAME
            for module, is_named in _targets(node, package):
                is_made = is_sure and (is_named or self._is_only_a_module(module))
                self.doubts = self.doubts or (not is_made and self._may_be_own(module))
                yield from ((one, is_made if one == module else is_sure) for one in _with_parents(module))

    def _may_be_own(self, module: str) -> bool:
        return self.file_of(module) is not None and self.is_own(module)

    def _is_only_a_module(self, module: str) -> bool:
        """Whether `from package import name` can mean but the file: no word of it stands in the package's own file."""
        parent, _, own = module.rpartition(".")
        file, spec = self.file_of(parent), self.spec_of(parent)
        if file is None:  # a folder without a file of its own
            return spec is not None and spec.origin is None
        return own not in file.read_text(errors="replace")


def spec_by_hook(name: str) -> ModuleSpec | None:
    """What a hook beside Python's own finders says of a module on the top level."""
    finders = [finder for finder in sys.meta_path if finder not in (BuiltinImporter, FrozenImporter, PathFinder)]
    return next((found for finder in finders if (found := finder.find_spec(name, None)) is not None), None)


def _nodes(tree: ast.AST, is_sure: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Imports and names, each with whether it is reached whenever the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.Name, ast.Attribute)):
            yield node, is_sure
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            node = ast.Module(node.orelse, [])
        # a class's body runs; what stands in a function, behind a condition or in a `try` may not
        yield from _nodes(node, is_sure and not isinstance(node, _AT_TIMES))


_AT_TIMES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.If, ast.For, ast.While, ast.Try, ast.TryStar,
             ast.Match)  # fmt: skip


def _targets(node: ast.AST, package: str) -> Iterator[tuple[str, bool]]:
    """The modules that an import names; False for what may be a module or a name in one."""
    if isinstance(node, ast.Import):
        yield from ((one.name, True) for one in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = resolve_name("." * node.level + (node.module or ""), package) if node.level else str(node.module)
        yield base, True
        yield from ((f"{base}.{one.name}", False) for one in node.names if one.name != "*")


def _with_parents(name: str) -> list[str]:
    """a.b.c -> a, a.b, a.b.c: importing the last imports them all."""
    parts = name.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]
