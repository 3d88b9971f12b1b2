"""What an import would load is read off the sources, and is what it then loads."""

from __future__ import annotations

import importlib
import py_compile
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

import pytest

from trn.provenance.code import code_files, code_sha256
from trn.reopen.imports import Foreseen, foresee

PLAIN = "import math\nimport torch\nimport numpy as np\n"


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def seen(folder: Path, name: str) -> Foreseen:
    found = foresee(name, [str(folder)], beyond=sys.path)
    assert found is not None
    return found


def loaded(folder: Path, name: str) -> str:
    sys.path.append(str(folder))
    importlib.import_module(name)
    return code_sha256(name)


CERTAIN: dict[str, tuple[str, dict[str, str]]] = {
    "alone": ("zz_alone", {"zz_alone.py": PLAIN + "model = None\ndef f(model):\n    model.eval()\n"}),
    "with helpers": (
        "zz_one",
        {"zz_one.py": "import zz_two\n", "zz_two.py": "from zz_three import x\n", "zz_three.py": "x = 1\n"},
    ),
    "a neighbour that it does not import": ("zz_four", {"zz_four.py": PLAIN, "zz_not.py": "raise SystemExit\n"}),
    "for types alone": (
        "zz_five",
        {"zz_five.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import zz_six\n", "zz_six.py": "\n"},
    ),
    "a package": (
        "zz_pack.inner.mod",
        {
            "zz_pack/__init__.py": "",
            "zz_pack/inner/__init__.py": "",
            "zz_pack/inner/mod.py": "from . import near\nfrom .. import above\nfrom zz_pack.other import thing\n",
            "zz_pack/inner/near.py": "",
            "zz_pack/above.py": "",
            "zz_pack/other.py": "thing = 1\n",
            "zz_pack/unused.py": "raise SystemExit\n",
        },
    ),
    "folders without __init__": (
        "zz_space.deep.mod",
        {
            "zz_space/deep/mod.py": "from zz_space.deep import near\nimport zz_space.far.one\n",
            "zz_space/deep/near.py": "",
            "zz_space/far/one.py": "",
        },
    ),
    "a folder below": (
        "zz_seven",
        {"zz_seven.py": "import zz_lib.part\n", "zz_lib/__init__.py": "", "zz_lib/part.py": ""},
    ),
}


@pytest.mark.parametrize("case", CERTAIN)
def test_what_can_be_foreseen_is_certain_and_is_what_is_loaded(case: str, tmp_path: Path) -> None:
    name, files = CERTAIN[case]
    found = seen(write(tmp_path, files), name)
    assert found.is_certain
    assert found.digests == {loaded(tmp_path, name)}


AT_TIMES = {
    "in a function": "def f():\n    import zz_helper\n",
    "behind a condition": "import sys\nif sys.argv:\n    import zz_helper\n",
    "in a try": "try:\n    import zz_helper\nexcept ImportError:\n    pass\n",
}


@pytest.mark.parametrize("case", AT_TIMES)
def test_an_import_that_may_not_be_made_is_among_the_answers_but_not_certain(case: str, tmp_path: Path) -> None:
    name = "zz_at_times_" + case.replace(" ", "_")
    found = seen(write(tmp_path, {f"{name}.py": AT_TIMES[case], "zz_helper.py": f"# {case}\n"}), name)
    assert not found.is_certain
    assert len(found.digests) == 2
    assert loaded(tmp_path, name) in found.digests


@pytest.mark.parametrize(
    "line",
    ["import importlib; importlib.import_module('zz_hidden')", "__import__('zz_hidden')", "exec('import zz_hidden')"],
)
def test_an_import_by_a_computed_name_leaves_doubt(line: str, tmp_path: Path) -> None:
    name = f"zz_dynamic_{len(line)}"
    found = seen(write(tmp_path, {f"{name}.py": line + "\n", "zz_hidden.py": "\n"}), name)
    assert not found.is_certain
    assert loaded(tmp_path, name) not in found.digests


def test_a_library_in_another_folder_may_import_anything(tmp_path: Path) -> None:
    write(tmp_path / "own", {"zz_asks.py": "import zz_far\n"})
    write(tmp_path / "far", {"zz_far.py": "import zz_beside\n"})
    found = foresee("zz_asks", [str(tmp_path / "own")], beyond=[str(tmp_path / "far")])
    assert found is not None
    assert not found.is_certain


def test_a_changed_helper_is_other_code_and_neither_runs(tmp_path: Path) -> None:
    files = {"zz_main.py": "import zz_part\nraise SystemExit\n", "zz_part.py": "raise SystemExit\n"}
    before = seen(write(tmp_path, files), "zz_main")
    (tmp_path / "zz_part.py").write_text("raise SystemExit  # now\n")
    assert not before.digests & seen(tmp_path, "zz_main").digests
    assert not {"zz_main", "zz_part"} & set(sys.modules)


def test_nothing_is_foreseen_of_a_module_that_is_not_there(tmp_path: Path) -> None:
    assert foresee("zz_nowhere", [str(tmp_path)]) is None
    write(tmp_path, {"zz_pkg/__init__.py": ""})
    assert foresee("zz_pkg.nowhere", [str(tmp_path)]) is None


@pytest.mark.parametrize("text", ["def broken(\n", "\0", "# -*- coding: nonsense -*-\n"])
def test_a_source_that_cannot_be_read_leaves_doubt(text: str, tmp_path: Path) -> None:
    assert not seen(write(tmp_path, {"zz_broken.py": text}), "zz_broken").is_certain


def test_a_module_without_its_source_is_there_and_leaves_doubt(tmp_path: Path) -> None:
    write(tmp_path, {"zz_compiled.py": "x = 1\n"})
    py_compile.compile(str(tmp_path / "zz_compiled.py"), str(tmp_path / "zz_compiled.pyc"))
    (tmp_path / "zz_compiled.py").unlink()
    found = seen(tmp_path, "zz_compiled")
    assert (found.file.suffix, found.digests, found.is_certain) == (".pyc", frozenset(), False)


def test_a_trainer_of_trn_stands_alone() -> None:
    found = foresee("trn.recipes.lm", sys.path)
    assert found is not None
    assert (found.file.name, found.is_certain) == ("lm.py", True)


def test_a_package_that_is_installed_by_an_import_hook_is_found_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an editable install may do it."""
    write(tmp_path, {"zz_hooked/__init__.py": "from zz_hooked import part\n", "zz_hooked/part.py": ""})

    class Finder:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
            return PathFinder.find_spec(name, [str(tmp_path)]) if name == "zz_hooked" else None

    assert foresee("zz_hooked.part", sys.path, is_installed=True) is None
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    assert foresee("zz_hooked.part", sys.path) is None
    found = foresee("zz_hooked.part", sys.path, is_installed=True)
    assert found is not None
    assert found.digests == {loaded(tmp_path, "zz_hooked.part")}


def test_files_that_are_links_count_where_their_names_lie(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", {"real_one.py": "import zz_linked_two\n", "real_two.py": ""})
    write(tmp_path / "job", {"zz_linked_three.py": "import zz_linked_two\n"})
    for name in ("one", "two"):
        (tmp_path / f"job/zz_linked_{name}.py").symlink_to(tmp_path / f"elsewhere/real_{name}.py")
    (tmp_path / "alias").symlink_to(tmp_path / "job")
    found = [seen(tmp_path / folder, "zz_linked_one") for folder in ("job", "alias")]
    assert found[0].digests == found[1].digests
    assert found[0].is_certain
    sys.path.append(str(tmp_path / "alias"))
    importlib.import_module("zz_linked_three")
    sys.path[-1] = str(tmp_path / "job")
    importlib.import_module("zz_linked_one")
    names = {path.name for path in code_files("zz_linked_one")}
    assert names == {"real_one.py", "real_two.py", "zz_linked_three.py"}


def test_a_script_that_was_started_from_above_is_no_neighbour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"script.py": "", "job/zz_beside.py": ""})
    loaded(tmp_path / "job", "zz_beside")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", f"{tmp_path}/job/../script.py", raising=False)
    assert [path.name for path in code_files("zz_beside")] == ["zz_beside.py"]
