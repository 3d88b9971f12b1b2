"""Which samples a spec asks of a trainer's `sample`: prompts, each with the seed of its random numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trn.spec.plan_model import Plan

__all__ = ["SampleRequest", "sample_requests"]


@dataclass(frozen=True)
class SampleRequest:
    """One sample; `index` counts from 0. What the words mean is the trainer's: `source_image` is plain text too.

    `seed` is the prompt's own, or the spec's `sample_seed`.
    """

    index: int
    prompt: str
    negative_prompt: str | None
    instruction: str | None
    source_image: str | None
    mode: str | None
    seed: int


def sample_requests(plan: Plan) -> tuple[SampleRequest, ...]:
    """Those of the plan, in the order of the spec."""
    return tuple(
        SampleRequest(
            index=index,
            prompt=one.prompt,
            negative_prompt=one.negative_prompt,
            instruction=one.instruction,
            source_image=one.source_image,
            mode=one.mode,
            seed=plan.sample_seed if one.seed is None else one.seed,
        )
        for index, one in enumerate(plan.sample_prompts)
    )
