"""Calling a hook of the trainer's from the loop: what its code raises becomes one line that says where."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trn.errors import TrainerError, TrnError

if TYPE_CHECKING:
    from trn.loop.loop import Parts

__all__ = ["call_hook"]


def call_hook(parts: Parts, name: str, hook: Callable[[], Any]) -> Any:
    """What the hook gives. Raises TrainerError for whatever its code raises, Stopped at a second SIGINT."""
    try:
        with parts.stop.breaking_off():
            return hook()
    except TrainerError as error:
        error.where = error.where or f"{name} at step {parts.ctx.step}"
        raise
    except (TrnError, MemoryError):
        raise
    except BaseException as error:
        said = " ".join(str(error).split())  # one line, whatever it has
        raise TrainerError(f"{type(error).__name__}: {said}", where=f"{name} at step {parts.ctx.step}") from error
