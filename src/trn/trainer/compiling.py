"""torch.compile, held beside the model: what is saved, clipped and averaged is the model as it is.

A model that cannot be compiled is trained without, and the journal says so, unless the plan is strict. Compiling
happens in the middle of the first forward or backward pass of each kind of batch, and may fail there: the pass is then
made again from where it began, random streams and buffers as if nothing had happened. Where one of several ranks
gives up, all do from the next step on.

`dynamic: null` is taken for false. Left to itself torch compiles a second time for variable shapes once it has seen
two, and what it computes then depends on which batches came before: a resumed run would not be the same.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from trn.errors import PlanRefused, TrainerError, TrnError
from trn.ranks.group import Group
from trn.spec.plan_model import CompilePlan
from trn.trainer.averaging import hold_buffers, put_back_buffers

__all__ = ["Compiled"]

T = TypeVar("T")
_LONGEST = 300
_NO_LIMIT = 1 << 30


class Compiled:
    """A model and its compiled form; from the first failure on, the model alone.

    Raises PlanRefused for a backend or a mode that torch does not know.
    """

    def __init__(self, plan: CompilePlan, model: nn.Module, report: Callable[..., None]) -> None:
        self._plan, self._model, self._report = plan, model, report
        self._compiled = _compiled(plan, model)
        self._seen: set[Any] = set()
        self.is_given_up = False
        """Whether the model runs as it is. Must survive a restart: the numbers are not the same."""
        self._why: str | None = None
        self._is_agreed = False

    def run(self, batch: Mapping[str, Any], work: Callable[[nn.Module], T]) -> T:
        """`work` with the compiled model; a failure of a first time is made good with the model as it is.

        `work` finds gradients that are None and may leave some. Raises TrainerError where the plan is strict, and what
        `work` raises with the model as it is.
        """
        if self.is_given_up:
            return work(self._model)
        kind = (self._model.training, torch.is_grad_enabled(), _shapes(batch))
        if kind in self._seen:
            return work(self._compiled)
        buffers, streams = hold_buffers(self._model), _streams()
        try:
            with _without_limit():
                result = work(self._compiled)
        except TrnError:
            raise
        except Exception as error:  # a compiler fails with whatever it pleases
            if self._plan.strict:
                raise TrainerError(_told(error), where="torch.compile") from error
            for parameter in self._model.parameters():
                parameter.grad = None
            put_back_buffers(buffers)
            _put_back(streams)
            result = work(self._model)  # where this fails too it was never the compiler's fault
            self.is_given_up, self._why = True, _told(error)
            self._report("compile_fallback", error=self._why)
            return result
        self._seen.add(kind)
        return result

    def agree(self, ranks: Group) -> None:
        """Give up where any rank has; all ranks ask at the same places, after they have used the model.

        The journal and the checkpoint are those of rank 0: else they would not say how the others compute.
        """
        if ranks.world_size == 1 or self._is_agreed:
            return
        given_up = [rank for rank, row in enumerate(ranks.exchange([float(self.is_given_up)])) if row[0]]
        if not given_up:
            return
        self._is_agreed = True
        reasons = ranks.gather(self._why)
        if not self.is_given_up:
            self.is_given_up = True
            self._report("compile_fallback", error=f"rank {given_up[0]}: {reasons[given_up[0]]}")

    def state_dict(self) -> dict[str, bool]:
        return {"is_given_up": self.is_given_up}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.is_given_up = bool(state["is_given_up"])


def _compiled(plan: CompilePlan, model: nn.Module) -> nn.Module:
    """Not yet compiled: that happens when it is called."""
    options: dict[str, Any] = {"backend": plan.backend, "mode": plan.mode, "fullgraph": plan.fullgraph}
    try:
        return cast(nn.Module, torch.compile(model, dynamic=bool(plan.dynamic), **options))
    except Exception as error:  # of several kinds, for a word that it does not know
        raise PlanRefused(_told(error), where="compile") from error


def _without_limit() -> AbstractContextManager[None]:
    """After eight kinds of batches torch gives up by itself, unseen: a resumed run would count from the beginning."""
    config: Any = importlib.import_module("torch._dynamo.config")
    patch: AbstractContextManager[None] = config.patch(recompile_limit=_NO_LIMIT, accumulated_recompile_limit=_NO_LIMIT)
    return patch


def _shapes(batch: Mapping[str, Any]) -> tuple[Any, ...]:
    """What torch compiles anew for."""
    return tuple(
        (name, one.dtype, tuple(one.shape)) if isinstance(one, Tensor) else (name, type(one))
        for name, one in batch.items()
    )


def _streams() -> tuple[Any, ...]:
    accelerator = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), accelerator


def _put_back(streams: tuple[Any, ...]) -> None:
    python, numpy, cpu, accelerator = streams
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if accelerator:
        torch.cuda.set_rng_state_all(accelerator)


def _told(error: Exception) -> str:
    """The first line of an error: a compiler's has pages. Where that only introduces the next one, both."""
    first, *rest = str(error).strip().splitlines() or [""]
    if first.endswith(":") and rest:
        first = f"{first} {rest[0].strip()}"
    return f"{type(error).__name__}: {first}"[:_LONGEST]
