"""The final checkpoint of a run, from when its outcome names it until the other side knows it as such.

    outcome.json ──find──> sent before all others (upload_queue) ──accepted──> go: announced as the final one

What is announced was accepted before. An answer that has less of it, or something else, means that it was lost there:
then it is sent once more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trn.records import JsonError, Outcome, read_json
from trn.worker.upload_artifacts import Artifact, Gone
from trn.worker.upload_http import Refused, Sender, Unreachable, creation, says_otherwise
from trn.worker.upload_patience import Patience
from trn.worker.upload_spool import Spool

__all__ = ["FinalLane"]

Json = dict[str, Any]

_ANNOUNCED = "the final checkpoint, as such"


class FinalLane:
    """Announces it at `url`, "" where checkpoints are not sent; `send_again` is told the step of one that was lost."""

    def __init__(
        self,
        run_dir: Path,
        url: str,
        names: Mapping[str, str],
        *,
        sender: Sender,
        spool: Spool,
        patience: Patience,
        send_again: Callable[[int], None],
        say: Callable[[str], None],
    ) -> None:
        self._run_dir, self._url, self._names = run_dir, url, names
        self._sender, self._spool, self._patience, self._say = sender, spool, patience, say
        self._send_again = send_again
        self._artifact: Artifact | None = None
        self._has_lost = False
        self.failed: dict[str, str] = {}
        """What was given up, and why."""

    def find(self) -> None:
        """The run has ended: see which one it is."""
        try:
            self._artifact = _named_by_outcome(self._run_dir)
        except Gone as error:
            if self._url:
                self._give_up("the final checkpoint", str(error))

    @property
    def sha256(self) -> str | None:
        return None if self._artifact is None else self._artifact.sha256

    @property
    def accepted(self) -> Json | None:
        """As the terminal payload names it; None where the other side has none."""
        final = self._artifact
        if final is None or (self._url and not self._spool.has(final)):
            return None
        ref = self._spool.accepted.get(final.identity)
        return {"name": final.name, "sha256": final.sha256, "size_bytes": final.size_bytes, "ref": ref}

    def is_pending(self) -> bool:
        """Whether it is there, and is still to be announced."""
        final = self._artifact
        if final is None or _ANNOUNCED in self.failed:
            return False
        return self._spool.has(final) and not self._spool.has(final, is_final=True)

    def go(self) -> bool:
        """One request; False where there was nothing to do. Raises Denied, Fenced, Over."""
        final = self._artifact
        if final is None or not self.is_pending() or not self._patience.is_due():
            return False
        try:
            answer = self._sender.ask("POST", self._url, creation(final, self._names, is_final=True))
            self._patience.worked()
            if says_otherwise(answer, final):
                self._lost(final)
            else:
                self._spool.accept(final, self._spool.accepted.get(final.identity), is_final=True)
        except Refused as error:
            self._give_up(_ANNOUNCED, error.reason)
        except Unreachable as error:
            self._patience.failed(error, is_ending=True)
        return True

    def _lost(self, final: Artifact) -> None:
        self._spool.forget(final)
        if self._has_lost:
            self._give_up(_ANNOUNCED, "it has lost twice what it had accepted")
            return
        self._has_lost = True
        self._say(f"trn: {final.name} is sent once more: the other side has lost what it had accepted")
        self._send_again(final.step)

    def _give_up(self, what: str, reason: str) -> None:
        self.failed[what] = reason
        self._say(f"trn: {what}: not uploaded: {reason}")


def _named_by_outcome(run_dir: Path) -> Artifact | None:
    """The one that the outcome names, None where there is none. Raises Gone where its file is missing."""
    try:
        found = Outcome.from_json(read_json(run_dir / "reports" / "outcome.json")).checkpoint or {}
        name, step = str(found["file"]).removeprefix("checkpoints/"), int(found["step"])
        sha256 = str(found["sha256"])
    except (OSError, JsonError, KeyError, TypeError, ValueError):
        return None
    try:
        return Artifact("checkpoint", name, step, (run_dir / "checkpoints" / name).stat().st_size, sha256)
    except OSError as error:
        raise Gone(f"{name} is missing") from error
