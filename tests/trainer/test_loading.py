"""Finding a trainer by its name: what is accepted, and what a refusal says."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from trn.errors import PlanRefused
from trn.trainer import HOOKS, load_trainer

SIX = "\n".join(f"    def {hook}(self, *arguments): return {{}}" for hook in HOOKS)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def module(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(textwrap.dedent(text).replace("SIX", SIX))


def test_a_class_an_instance_and_a_module_with_one_candidate_are_accepted(folder: Path) -> None:
    module(folder, "mine", "class A:\nSIX\nmade = A()\n")
    assert type(load_trainer("mine:A")).__name__ == "A"
    assert load_trainer("mine:made") is sys.modules["mine"].made
    module(folder, "single", "class Only:\nSIX\n_hidden = Only()\n")
    assert type(load_trainer("single")).__name__ == "Only"
    module(folder, "named", "class A:\nSIX\nclass B:\nSIX\nTRAINER = B\n")
    assert type(load_trainer("named")).__name__ == "B"


def test_an_imported_trainer_is_no_candidate_of_the_importing_module(folder: Path) -> None:
    module(folder, "base_one", "class A:\nSIX\n")
    module(folder, "user", "from base_one import A\nclass Mine(A):\n    pass\n")
    assert type(load_trainer("user")).__name__ == "Mine"


def test_the_recipe_is_found_by_its_entry_point_name() -> None:
    from importlib.metadata import entry_points

    assert "lm" in {point.name for point in entry_points(group="trn.trainers")}


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("class A:\nSIX\n", "gone:A", "no module 'gone'"),
        ("class A:\nSIX\n", "bad:B", "has no 'B'; trainers in it: A"),
        ("class A:\n    def setup(self, ctx): pass\n", "bad:A", "lacks the hooks configure, prepare_batch"),
        ("def train(ctx): pass\n", "bad:train", "found a function"),
        ("class A:\nSIX\nclass B:\nSIX\n", "bad", "found 2: A, B"),
        ("x = 1\n", "bad", "found 0: none"),
        ("class A:\n    def __init__(self, n): pass\nSIX\n", "bad:A", "made without arguments"),
        ("class A:\n    trainer_api_version = 'v99'\nSIX\n", "bad:A", "'v99'"),
        ("import nowhere_to_be_found\n", "bad:A", "needs the module 'nowhere_to_be_found'"),
        ("1 / 0\n", "bad:A", "raised ZeroDivisionError"),
        ("def broken(:\n", "bad:A", "raised SyntaxError"),
        (
            "from trn import TorchTrainer\nclass A(TorchTrainer):\n    def build(self, ctx): pass\n",
            "bad:A",
            "does not give loss",
        ),
    ],
)
def test_what_is_refused_says_why_in_one_line(folder: Path, text: str, name: str, message: str) -> None:
    module(folder, "bad", text)
    with pytest.raises(PlanRefused) as caught:
        load_trainer(name)
    assert message in str(caught.value)
    assert caught.value.exit_status == 78
    assert "\n" not in str(caught.value).strip()
