"""What a trainer prints, on its way to the log."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from trn.runner.output import MaskedOutput

SECRET = "planted-in-the-environment-7"
TOKEN = "ghp_plantedABCDEFGHIJKLMNOPQRSTUVWXYZ12"
KEY = ["-----BEGIN RSA PRIVATE KEY-----", "MIIEpAIBAAKCAQEA7planted", "-----END RSA PRIVATE KEY-----"]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)


def stream() -> tuple[io.TextIOWrapper, io.BytesIO]:
    target = io.BytesIO()
    masked: Any = MaskedOutput(target)
    return io.TextIOWrapper(masked, "utf-8", write_through=True), target


# the pieces that are written one after the other, and what comes out of them
WRITTEN = {
    "a known value": ([f"with {SECRET} here\n"], "with *** here\n"),
    "a shape": ([f"with {TOKEN} here\n"], "with *** here\n"),
    "a pair in pieces": (["password:", " ", "opaque", "\n"], "password: ***\n"),
    "a value in pieces": ([SECRET[:9], SECRET[9:], "\n"], "***\n"),
    "many lines at once": (["a\n", f"b\n{SECRET}\nc", "d\n"], "a\nb\n***\ncd\n"),
    "lines that are drawn over": ([f"1% {SECRET}\r2%\r", "3%\n"], "1% ***\r2%\r3%\n"),
    "a key in one piece": (["\n".join(KEY) + "\nafter\n"], "***\nafter\n"),
    "a key line by line": ([part for line in KEY for part in (line, "\n")] + ["after\n"], "***\nafter\n"),
    "nothing secret": (["step 1 loss 0.5 tokens_seen=12\n"], "step 1 loss 0.5 tokens_seen=12\n"),
    "nothing": (["", "\n"], "\n"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_lines_come_out_without_secrets(name: str) -> None:
    pieces, expected = WRITTEN[name]
    text, target = stream()
    for piece in pieces:
        text.write(piece)
    assert target.getvalue().decode() == expected


def test_a_line_waits_for_its_end_or_for_a_flush() -> None:
    text, target = stream()
    text.write("loading")
    assert target.getvalue() == b""
    text.flush()
    assert target.getvalue() == b"loading"
    text.write(f" {SECRET}")
    text.flush()
    assert target.getvalue() == b"loading ***"


def test_a_key_without_an_end_is_held_back_and_never_shown() -> None:
    target = io.BytesIO()
    masked = MaskedOutput(target)
    for line in (*KEY[:2], "what follows"):
        masked.write(line.encode() + b"\n")
        masked.flush()
    assert target.getvalue() == b""
    masked.let_go()
    assert target.getvalue() == b"***"


def test_a_key_without_an_end_does_not_hold_back_for_ever() -> None:
    target = io.BytesIO()
    masked = MaskedOutput(target)
    masked.write(KEY[0].encode() + b"\n")
    for _ in range(2000):
        masked.write(b"a line of thirty-three characters\n")
    assert target.getvalue()


def test_bytes_that_are_no_text_come_out_as_they_are() -> None:
    target = io.BytesIO()
    MaskedOutput(target).write(b"\xff " + SECRET.encode() + b"\n")
    assert target.getvalue() == b"\xff ***\n"


class Unbuffered(io.BytesIO):
    """Takes at most five bytes at a time, as a file may whose disk is nearly full."""

    def write(self, data: Any, /) -> int:
        return super().write(bytes(data[:5]))


def test_a_file_that_takes_less_than_all_gets_the_rest() -> None:
    target = Unbuffered()
    MaskedOutput(target).write(b"a rather long line\n")
    assert target.getvalue() == b"a rather long line\n"


def test_no_line_of_any_thread_is_lost() -> None:
    target = io.BytesIO()
    masked = MaskedOutput(target)

    def write(name: str) -> None:
        for number in range(200):
            masked.write(f"{name} {number}\n".encode())

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(target.getvalue().decode().splitlines()) == sorted(f"{n} {i}" for n in "abcd" for i in range(200))


PROGRAM = f"""
import os, sys, warnings
from trn.runner.output import mask_output
mask_output()
os.environ["LATE_TOKEN"] = "found-later-9"
print("one {SECRET}"); print("late", "found-later-9", file=sys.stderr)
sys.stdout.buffer.write(b"raw {SECRET}\\n")
print("parent's", end=" ")
if os.fork() == 0:
    print("child {SECRET}", flush=True); os._exit(0)
os.wait()
print("line")
warnings.warn("{TOKEN}")
print("no end {SECRET}", end="")
raise ValueError("raised {SECRET}")
"""


@pytest.mark.parametrize("unbuffered", [["-u"], []])
def test_a_whole_program_keeps_its_output_and_no_secret(tmp_path: Path, unbuffered: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *unbuffered, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_TOKEN": SECRET},
        cwd=tmp_path,
    )
    assert done.stdout == "one ***\nraw ***\nchild ***\nparent's line\nno end ***"
    assert done.stderr.startswith("late ***\n")
    assert "UserWarning: ***" in done.stderr
    assert done.stderr.endswith("ValueError: raised ***\n")
    assert SECRET not in done.stdout + done.stderr
