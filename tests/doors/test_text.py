"""What is shown cannot move a cursor, colour, ring, or reorder."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trn.doors.text import clean, clean_line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain text, ünïcode ✓", "plain text, ünïcode ✓"),
        ("tabs\tand\nnewlines", "tabs\tand\nnewlines"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[2J\x1b[1;1Hwiped", "wiped"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]52;c;cGF5bG9hZA==", ""),
        ("\x1bPdcs\x1b\\x", "x"),
        ("\x1b(Bcharset", "charset"),
        ("\x9b31mc1", "31mc1"),
        ("bell\x07 back\x08 null\x00 del\x7f", "bell back null del"),
        ("\u202etxet desrever", "txet desrever"),
        ("lone \ud800 half", "lone  half"),
        ("\x1b", ""),
    ],
)
def test_control_sequences_are_taken_out(text: str, expected: str) -> None:
    assert clean(text) == expected


def test_a_line_drawn_over_shows_what_was_last_to_be_seen() -> None:
    assert clean_line("10%\r50%\r100%\n") == "100%"
    assert clean_line("windows\r\n") == "windows"
    assert clean_line("\r\n") == ""
    assert clean_line("two\nlines") == "two lines"


@given(st.text(alphabet=st.characters(codec=None, categories=None), max_size=200))
def test_nothing_that_a_terminal_acts_on_is_left(text: str) -> None:
    shown = clean(text)
    assert not any(ord(char) < 32 and char not in "\t\n" for char in shown)
    assert not any(0x7F <= ord(char) < 0xA0 for char in shown)
    shown.encode()
    assert "\n" not in clean_line(text)
