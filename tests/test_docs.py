"""The docs say what is there: every command, key, exit code and event kind, and every example runs as printed."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from trn.errors import STATUS
from trn.records import EVENT_KINDS, STEP_KEYS
from trn.trainer import HOOKS

ROOT = Path(__file__).parents[1]
BUILT_LATER = {
    "target_reached",
    "early_stopped",
    "unauthorized",
    "divergence",
    "divergence_at_first_validation",
    "telemetry_out_of_range",
    "target_missed",
    "parity_failed",
    "rank_lost",
    "hang",
    "upload_failed",
}
EVENTS_LATER = {"heartbeat", "step_skipped", "exported", "parity", "uploaded"}


def text(name: str) -> str:
    return (ROOT / name).read_text()


def test_every_outcome_that_a_run_can_have_is_explained_with_its_exit_code() -> None:
    concepts = text("docs/concepts.md")
    for word, status in STATUS.items():
        if word in BUILT_LATER:
            continue
        row = next((line for line in concepts.splitlines() if re.search(rf"\b{word}\b", line) and "|" in line), "")
        assert str(status.exit) in row, word


def test_every_event_and_every_key_of_a_metrics_line_is_explained() -> None:
    journal = text("docs/formats/journal.md")
    for name in {*EVENT_KINDS, *STEP_KEYS} - EVENTS_LATER:
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
