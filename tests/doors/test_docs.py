"""docs/cli.md says all there is: every verb, every option, every state; docs/exit-codes.md every exit code."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from trn.doors.cli import _VERBS, trn
from trn.errors import STATUS
from trn.records import JOB_STATES

DOCS = Path(__file__).parents[2] / "docs"
DOC = (DOCS / "cli.md").read_text()
EXIT_CODES = (DOCS / "exit-codes.md").read_text()


@pytest.mark.parametrize("verb", _VERBS)
def test_each_verb_and_option_is_documented(verb: str) -> None:
    assert f"`trn {verb}" in DOC
    command = trn.get_command(click.Context(trn), verb)
    assert command is not None
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.opts[0] in DOC, parameter.opts


def test_each_state_and_exit_code_is_documented() -> None:
    assert "(exit-codes.md)" in DOC.split("## Exit codes")[1].split("## ")[0]
    for word, status in STATUS.items():
        line = next(line for line in EXIT_CODES.splitlines() if f"| `{word}` |" in line)
        assert int(line.split("|")[1]) == status.exit
    for state in set(JOB_STATES) - set(STATUS):
        assert f"`{state}`" in DOC
