"""The scale of an fp16 loss: as large as its gradients allow, and a plain value.

float16 has no numbers below 6e-8, so the loss is multiplied before the backward pass and the gradients are divided
after it. Where a gradient then overflows though the loss is finite, the scale was too large: nothing is updated, and
the same step is made again with half of it. Only at 1.0 is the gradient itself to blame.

    train_step ── gradients not finite, scale > 1 ──> ScaleOverflow ──> the same batch and random numbers once more
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from trn.errors import NumericalInstability, ResumeRefused

__all__ = ["LossScale", "ScaleOverflow"]

GROWTH, BACKOFF, LEAST = 2.0, 0.5, 1.0
GREATEST = 2.0**64
"""Beyond it even a gradient of nothing would end as infinity."""


class ScaleOverflow(NumericalInstability):
    """The scale was too large for this step, and was made smaller; nothing else has changed. Make the step again.

    Whoever calls `train_step` puts the random streams back to where they were before the step and calls
    `prepare_batch` and `train_step` with the same rows. It comes at most 64 times for one step.
    """

    def __init__(self, *, step: int, value: float, scale: float) -> None:
        super().__init__(step=step, field="grad_norm", value=value)
        self.scale = scale
        """The one that the next try uses."""


@dataclass(frozen=True)
class LossScale:
    """The scale between two steps; `tried` differs from it only while a step is made again."""

    scale: float
    good_steps: int = 0
    """Steps in a row since the scale was changed."""
    tried: float | None = None

    @property
    def now(self) -> float:
        return self.scale if self.tried is None else self.tried

    def can_shrink(self) -> bool:
        return self.now > LEAST

    def after_overflow(self) -> LossScale:
        """For the next try of the same step."""
        return replace(self, tried=max(self.now * BACKOFF, LEAST))

    def after_refusal(self) -> LossScale:
        """As it was before the first try of the step."""
        return replace(self, tried=None)

    def after_update(self, growth_interval: int) -> LossScale:
        """With one more step made; `growth_interval` of them in a row double the scale."""
        good_steps = self.good_steps + 1 if self.tried is None else 1
        if good_steps < growth_interval:
            return LossScale(self.now, good_steps)
        return LossScale(min(self.now * GROWTH, GREATEST))

    def to_json(self) -> dict[str, Any]:
        return {"scale": self.scale, "good_steps": self.good_steps}

    @classmethod
    def from_json(cls, value: Any) -> LossScale:
        """Raises ResumeRefused for what `to_json` can never have given."""
        fits = isinstance(value, dict) and value.keys() == {"scale", "good_steps"}
        if not (fits and type(value["scale"]) is float and type(value["good_steps"]) is int and value["scale"] > 0):
            raise ResumeRefused(f"expected a scale and its good steps, found {value!r:.60}.", where="loss_scale")
        return cls(value["scale"], value["good_steps"])
