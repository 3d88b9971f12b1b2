"""Who holds a run: the note that a holder leaves in the lock file, and the generations that tell one from another.

    pid=4711 job=job-... boot=5a0c... started=812345 generation=3

`boot` and `started` say which process the pid was: of which start of the machine, and how many ticks after it. They are
left out where the system does not tell. `generation` counts the holders of the run; the next one adds 1.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Holder", "boot_id", "holder_note", "process_start"]

_WORD = re.compile(r"(?:^|(?<=\s))(pid|job|boot|started|generation)=(\S+)")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Holder:
    """What a note says; what it leaves out is "" or None, and without a generation it is of generation 0."""

    job_id: str = ""
    pid: int | None = None
    boot: str = ""
    started: int | None = None
    generation: int = 0

    @classmethod
    def read(cls, note: str) -> Holder:
        """Of any text; nothing is refused, for a note is a courtesy."""
        words = dict(_WORD.findall(note))
        pid, started, generation = (_whole(words.get(name, "")) for name in ("pid", "started", "generation"))
        return cls(words.get("job", ""), pid, words.get("boot", ""), started, generation or 0)

    def __str__(self) -> str:
        values = {"pid": self.pid, "job": self.job_id, "boot": self.boot, "started": self.started}
        told = [f"{name}={value}" for name, value in values.items() if value not in ("", None)]
        return " ".join([*told, f"generation={self.generation}"])


def holder_note(job_id: str) -> Callable[[str], str]:
    """For `Lock.acquire`: from the note that stands in the file to that of this process, one generation later."""

    def note(before: str) -> str:
        pid = os.getpid()
        return str(Holder(job_id, pid, boot_id(), process_start(pid), Holder.read(before).generation + 1))

    return note


def boot_id() -> str:
    """What tells this start of the machine from all others; "" where the system does not say."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def process_start(pid: int) -> int | None:
    """When the process started, in ticks since the start of the machine; None where the system does not say."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    return _whole(stat.rpartition(")")[2].split()[19])  # the name before it may have spaces and brackets


def _whole(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None
