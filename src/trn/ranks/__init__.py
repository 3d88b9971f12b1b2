"""Who am I among the processes of a run, and what do they agree on. No torch here.

One process is a world of one: rank 0 of 1, which agrees with itself. Only rank 0 writes. What launched us is read from
the environment once, in `read_world`; a value that is not a number is an error, not a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trn.errors import UsageError

__all__ = ["World", "read_world"]


@dataclass(frozen=True)
class World:
    """This process's place: `rank` in 0..world_size-1, `local_rank` on its machine."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @property
    def writes(self) -> bool:
        """Only rank 0 writes artifacts."""
        return self.rank == 0


def read_world(environ: Mapping[str, str]) -> World:
    """The world that torchrun's variables (RANK, LOCAL_RANK, WORLD_SIZE) describe; without them, a world of one.

    Raises UsageError for a value that is no number, or a rank outside its world.
    """
    numbers = {name: _number(environ, name, default) for name, default in _DEFAULTS.items()}
    world = World(numbers["RANK"], numbers["LOCAL_RANK"], numbers["WORLD_SIZE"])
    if not 0 <= world.rank < world.world_size:
        raise UsageError(f"RANK={world.rank} does not lie in a world of WORLD_SIZE={world.world_size}.", where="RANK")
    return world


_DEFAULTS = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1}


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "").strip()
    if not text:
        return default
    if not text.isdigit():
        raise UsageError(f"expected a whole number, found {text!r}.", where=f"environment variable {name}")
    return int(text)
