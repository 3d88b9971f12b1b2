"""How often the kernel has killed somebody in a process's control group because memory ran out.

A SIGKILL alone does not say who sent it. The counter does, where it has risen: `oom_kill` in memory.events of a group
of version 2, in memory.oom_control of version 1. It counts the whole group, and says not whom it hit.
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["OomKills"]

_ROOT = Path("/sys/fs/cgroup")
_COUNT = re.compile(rb"^oom_kill (\d+)$", re.MULTILINE)


class OomKills:
    """The counter of the group that a process is in, as it stands when this is made; without one, nothing is known."""

    def __init__(self, pid: int, *, proc: Path = Path("/proc"), root: Path = _ROOT) -> None:
        self._file = next(
            (path for path in _candidates(proc / str(pid) / "cgroup", root) if _count(path) is not None), None
        )
        self._before = None if self._file is None else _count(self._file)

    def have_risen(self) -> bool:
        """Whether there are more by now."""
        now = None if self._file is None else _count(self._file)
        return now is not None and self._before is not None and now > self._before


def _candidates(of_process: Path, root: Path) -> list[Path]:
    """Where the counter can be: a container may see its own group as the root of all."""
    try:
        lines = of_process.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    found = []
    for line in lines:
        _, controllers, group = line.split(":", 2) if line.count(":") > 1 else ("", "?", "")
        if controllers == "":
            found += [root / group.strip("/") / "memory.events", root / "memory.events"]
        elif "memory" in controllers.split(","):
            own = root / "memory"
            found += [own / group.strip("/") / "memory.oom_control", own / "memory.oom_control"]
    return found


def _count(path: Path) -> int | None:
    try:
        found = _COUNT.search(path.read_bytes())
    except OSError:
        return None
    return int(found[1]) if found else None
