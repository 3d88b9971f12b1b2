"""G2, the artifact of an epoch is complete: its nine fields, and the running value that they are made of."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from trn.gates.saved import read_saved
from trn.records import Json, JsonError

__all__ = ["EPOCH_KEYS", "EpochTally", "build_epoch_metadata", "epoch_problems", "perplexity"]

EPOCH_KEYS = (
    "epoch",
    "train_loss",
    "val_loss",
    "train_ppl",
    "val_ppl",
    "optimizer_state_sha",
    "wall_seconds",
    "tokens_seen",
    "grad_norm_max",
)
"""The keys of epoch-NNN.metadata.json, exactly. Source: seed 002, per_epoch_artifacts."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(slots=True)
class EpochTally:
    """The epoch under way: its accepted steps so far. Goes into every checkpoint, begins anew with each epoch.

    Never changed once it is made. It is not frozen because each step makes one, and a frozen one takes twice as long.
    """

    losses: int = 0
    """Steps that reported a loss."""
    mean_loss: float | None = None
    """The mean of these losses; None before the first."""
    grad_norm_max: float | None = None
    """None before the first step that reports a norm."""
    wall_s: float = 0.0
    """Time spent in steps that are kept, and in what `with_wall` adds: what a kill undid is not in it."""

    def with_step(self, train_loss: float | None, grad_norm: float | None, wall_s: float) -> EpochTally:
        """The tally with one more accepted step. The numbers are finite; None where the trainer reports none."""
        losses, mean_loss, grad_norm_max = self.losses, self.mean_loss, self.grad_norm_max
        if train_loss is not None:
            losses += 1
            # two divisions instead of (loss - mean) / n: no finite loss can make this overflow
            before = 0.0 if mean_loss is None else mean_loss
            mean_loss = before + (train_loss / losses - before / losses)
        if grad_norm is not None and (grad_norm_max is None or grad_norm > grad_norm_max):
            grad_norm_max = float(grad_norm)
        if not 0.0 <= wall_s < math.inf:  # a reading that the telemetry gate refuses, NaN too: it adds nothing
            wall_s = 0.0
        return EpochTally(losses, mean_loss, grad_norm_max, self.wall_s + wall_s)

    def with_wall(self, wall_s: float) -> EpochTally:
        """The tally with time that belongs to the epoch and to none of its steps: its validation."""
        return replace(self, wall_s=self.wall_s + (wall_s if 0.0 <= wall_s < math.inf else 0.0))

    def to_json(self) -> Json:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Json) -> Self:
        """Raises JsonError for what `to_json` can never have given."""
        tally = read_saved(cls, value)
        if (tally.mean_loss is None) != (tally.losses == 0) or tally.wall_s < 0:
            raise JsonError("EpochTally: losses do not go with mean_loss, or wall_s is negative")
        return tally


def perplexity(loss: float | None) -> float | None:
    """exp of a mean cross-entropy; None for no loss, and where it is too large for a float (a loss above 709.78)."""
    try:
        return None if loss is None else math.exp(loss)
    except OverflowError:
        return None


def build_epoch_metadata(
    epoch: int,
    tally: EpochTally,
    *,
    val_loss: float | None,
    optimizer_state_sha: str | None,
    tokens_seen: int | None,
    cross_entropy: bool = True,
) -> Json:
    """The nine fields of an epoch, from 0, that is over. What nobody knows is null; nothing is made up.

    Of a loss that is no `cross_entropy` there is no perplexity.
    """
    val_loss = None if val_loss is None else float(val_loss)
    return {
        "epoch": epoch,
        "train_loss": tally.mean_loss,
        "val_loss": val_loss,
        "train_ppl": perplexity(tally.mean_loss) if cross_entropy else None,
        "val_ppl": perplexity(val_loss) if cross_entropy else None,
        "optimizer_state_sha": optimizer_state_sha,
        "wall_seconds": tally.wall_s,
        "tokens_seen": tokens_seen,
        "grad_norm_max": tally.grad_norm_max,
    }


def epoch_problems(metadata: Json, *, makes_own_updates: bool = False, cross_entropy: bool = True) -> list[str]:
    """What keeps the metadata of an epoch from being complete, one line each; empty where it is complete.

    `val_loss` is null for an epoch that was not validated, `tokens_seen` where tokens mean nothing; `train_loss`,
    `grad_norm_max` and `optimizer_state_sha` only for a trainer that makes its own updates. A perplexity is exp of its
    loss, null where that is null, overflows or is no `cross_entropy`.
    """
    problems = [f"{key} is missing" for key in EPOCH_KEYS if key not in metadata]
    problems += [f"{key} is unknown" for key in metadata if key not in EPOCH_KEYS]
    nullable = {"val_loss", "tokens_seen", "train_ppl", "val_ppl"}
    if makes_own_updates:
        nullable |= {"train_loss", "grad_norm_max", "optimizer_state_sha"}
    for key, value in metadata.items():
        if key in EPOCH_KEYS and not (value is None and key in nullable) and not _fits(key, value):
            problems.append(f"{key}: expected {_EXPECTED.get(key, 'a finite float')}, found {value!r:.60}")
    if not problems:
        problems = [
            f"{prefix}_ppl: expected exp of {prefix}_loss, found {metadata[f'{prefix}_ppl']!r}"
            for prefix in ("train", "val")
            if not _is_perplexity_of(metadata[f"{prefix}_loss"] if cross_entropy else None, metadata[f"{prefix}_ppl"])
        ]
    return problems


_EXPECTED = {
    "epoch": "a whole number from 0 on",
    "tokens_seen": "a whole number from 0 on",
    "optimizer_state_sha": "64 lower hex digits",
    "wall_seconds": "a finite float from 0 on",
}


def _fits(key: str, value: Any) -> bool:
    if key in ("epoch", "tokens_seen"):
        return type(value) is int and value >= 0
    if key == "optimizer_state_sha":
        return isinstance(value, str) and _SHA256.fullmatch(value) is not None
    return type(value) is float and math.isfinite(value) and (key != "wall_seconds" or value >= 0)


def _is_perplexity_of(loss: float | None, found: float | None) -> bool:
    expected = perplexity(loss)
    if expected is None or found is None:
        return expected is found
    # another machine's exp may differ in the last bit
    return math.isclose(expected, found, rel_tol=1e-12)
