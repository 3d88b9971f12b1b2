"""The last sign of life of a run, from the heartbeats of its ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trn.doors.follow import parsed
from trn.doors.lines import number
from trn.doors.text import clean_line
from trn.files import last_lines

__all__ = ["alive_line", "last_beats"]


def last_beats(reports: Path) -> dict[str, dict[str, Any]]:
    """The last line of each rank's heartbeat, by rank; empty where there is none. Raises OSError."""
    beats = {}
    for path in sorted(reports.glob("train_heartbeat.rank*.jsonl")):
        rank = path.name.removeprefix("train_heartbeat.rank").removesuffix(".jsonl")
        if rank.isdecimal() and (lines := parsed(last_lines(path, 1))):
            beats[rank] = lines[0]
    return dict(sorted(beats.items(), key=lambda item: int(item[0])))


def alive_line(beats: dict[str, dict[str, Any]]) -> str | None:
    """The oldest of the ranks' last signs of life, in words: the one that is behind is the one to look at."""
    if not beats:
        return None
    rank, beat = min(beats.items(), key=lambda item: str(item[1].get("ts")))
    doing = str(beat.get("doing") or beat.get("event"))
    words = [f"{str(beat.get('ts'))[:19].replace('T', ' ')} UTC", f"at {doing}"]
    since = beat.get("since_step_s")
    if isinstance(since, (int, float)):
        words.append(f"no step ended for {number(since)} s")
    return clean_line(", ".join([*words, *([f"rank {rank}"] if len(beats) > 1 else [])]))
