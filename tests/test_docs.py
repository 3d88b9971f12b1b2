"""The docs say what is there: every command, key, exit code and event kind, and every example runs as printed."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import tomllib
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

from trn.errors import STATUS
from trn.gates.verdict import Ends
from trn.records import EVENT_KINDS, STEP_KEYS
from trn.spec import Spec, load_spec
from trn.spec.json_schema import DOCUMENT_KEYS
from trn.trainer import HOOKS

ROOT = Path(__file__).parents[1]


def text(name: str) -> str:
    return (ROOT / name).read_text()


# what is generated


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("trn_docs_generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = _generator()


@pytest.mark.parametrize("page", sorted(GENERATOR.PAGES), ids=lambda page: page.name)
def test_what_is_generated_is_up_to_date(page: Path) -> None:
    assert GENERATOR.rendered(page) == page.read_text(), f"docs/{page.name} is stale: run `make docs`"


def test_a_stale_page_is_found_and_mended(tmp_path: Path) -> None:
    page = tmp_path / "exit-codes.md"
    page.write_text(text("docs/exit-codes.md").replace("| 84 | `target_missed`", "| 48 | `target_missed`"))
    GENERATOR.PAGES[page] = GENERATOR.PAGES[ROOT / "docs/exit-codes.md"]
    try:
        assert GENERATOR.rendered(page) == text("docs/exit-codes.md") != page.read_text()
        page.write_text("no block in it")
        with pytest.raises(SystemExit, match="expected the blocks outcomes, each once"):
            GENERATOR.rendered(page)
    finally:
        del GENERATOR.PAGES[page]


# docs/spec.md


def test_every_key_of_a_spec_is_explained() -> None:
    page = text("docs/spec.md")
    for key in {*Spec.model_fields, *DOCUMENT_KEYS}:
        assert f"| `{key}` |" in page, key
    for link in re.findall(r"\(#([\w-]+)\)", page):
        assert re.search(rf"^##+ {link}$", page.replace(".", ""), re.MULTILINE), link


def test_the_example_and_the_overrides_of_the_spec_page_are_taken(tmp_path: Path) -> None:
    page = text("docs/spec.md")
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "spec.yaml").write_text(example)
    overrides = [shlex.split(found)[1] for found in re.findall(r"`(--set [^`]*=[^`]*)`", page)]
    assert len([one for one in overrides if one != "KEY=VALUE"]) == 3
    spec = load_spec(tmp_path / "spec.yaml", sets=[one for one in overrides if one != "KEY=VALUE"]).spec
    assert (spec.optimizer.lr, spec.dataset.columns, spec.owner) == (1e-4, ("x", "y"), "007")


# docs/exit-codes.md


def outcome_words() -> dict[str, dict[str, object]]:
    return tomllib.loads(text("docs/exit-codes.toml"))


def test_what_a_gate_can_end_a_run_with_is_not_said_to_be_missing() -> None:
    later = {word for word, one in outcome_words().items() if not one.get("built", True)}
    assert later == set()
    assert not later & set(get_args(Ends))


def test_every_code_has_its_place_among_the_second_tries_and_in_the_advice_for_schedulers() -> None:
    tries, advice = text("docs/exit-codes.md").split("## Once more")[1].split("\n## ")
    built = {STATUS[word].exit for word, one in outcome_words().items() if one.get("built", True)}
    rows = re.findall(r"^\| ([\d, ]+) \|", tries, re.MULTILINE)
    assert sorted(int(code) for row in rows for code in row.split(",")) == sorted(built)
    kubernetes = advice.split("* **Kubernetes**")[1].split("\n* ")[0]
    assert sorted(int(code) for code in re.findall(r"\b\d\d?\b", kubernetes)) == sorted(built - {0})


# the others


def test_every_event_and_every_key_of_a_metrics_line_is_explained() -> None:
    journal = text("docs/formats/journal.md")
    for name in {*EVENT_KINDS, *STEP_KEYS} - {"job_submitted", "job_rejected"}:  # these are in events.md
        assert f"`{name}`" in journal, name


def test_every_hook_is_explained() -> None:
    trainers = text("docs/trainers.md")
    for hook in HOOKS:
        assert f"`{hook}(" in trainers, hook


def test_code_blocks_in_the_docs_are_python() -> None:
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL):
            ast.parse(block)


def test_links_between_pages_lead_somewhere() -> None:
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page not in reached:
            reached.add(page)
            links = re.findall(r"\]\(([^)#:]+\.md)", page.read_text())
            todo += [(page.parent / link).resolve() for link in links]
    assert {path.resolve() for path in (ROOT / "docs").rglob("*.md")} <= reached
