"""All that the gates remember of a run between two steps."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Self

from trn.gates.saved import read_saved
from trn.records import Json, JsonError

__all__ = ["GateState"]


@dataclass(frozen=True, slots=True)
class GateState:
    """Goes into every checkpoint. What is not listed here, no gate remembers.

    Only validations that passed are in it: a loss that ends a run as damaged is never a reference for another.
    """

    validations: int = 0
    """Those of all cadences."""
    last_loss: float | None = None
    """val_loss of the last validation, whatever its cadence."""
    lowest_loss: float | None = None
    """The lowest of them all."""
    epochs: int = 0
    """How many epochs were over at the last validation that ended one."""
    epoch_loss: float | None = None
    """val_loss of that validation."""
    best_loss: float | None = None
    """The best val_loss at the end of an epoch: the last one that was lower by more than min_delta."""
    counter: int = 0
    """Validated epochs in a row without a better loss."""
    skips_in_row: int = 0
    """Refused steps since the last accepted one."""
    skips: int = 0
    """Refused steps of the whole run."""
    lr_factor: float = 1.0
    """Multiplies the schedule's learning rate: lr_decay to the power of `skips`."""
    telemetry_warnings: int = 0
    """Readings out of range that became null."""

    def to_json(self) -> Json:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Json) -> Self:
        """Raises JsonError for what `to_json` can never have given."""
        state = read_saved(cls, value)
        if problem := state._contradiction():
            raise JsonError(f"GateState: {problem}")
        return state

    def _contradiction(self) -> str | None:
        if (self.last_loss is None) != (self.validations == 0) or (self.lowest_loss is None) != (self.validations == 0):
            return "validations do not go with last_loss and lowest_loss"
        if (self.epoch_loss is None) != (self.epochs == 0) or (self.best_loss is None) != (self.epochs == 0):
            return "epochs do not go with epoch_loss and best_loss"
        if self.epochs and (not self.validations or self.counter >= self.validations):
            return "fewer validations than epochs say"
        if self.counter >= max(self.epochs, 1):
            return "counter is above what the epochs allow"
        if any(loss is not None and loss < (self.lowest_loss or 0) for loss in (self.last_loss, self.best_loss)):
            return "lowest_loss is not the lowest"
        if self.skips_in_row > self.skips or not 0 < self.lr_factor <= 1:
            return "skips do not go with skips_in_row and lr_factor"
        if not self.skips and self.lr_factor != 1.0:
            return "lr_factor fell without a skip"
        return None
