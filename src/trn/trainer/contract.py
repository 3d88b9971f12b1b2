"""The six hooks that a trainer gives, and the values that pass through them.

    setup(ctx)                                  once, before anything else
    configure(ctx) -> state                     build model, optimizer, whatever is trained
    prepare_batch(raw_batch, state, ctx)        rows of the global batch -> what train_step takes
    train_step(batch, state, ctx) -> StepResult forward, backward, update
    state_dict(state) -> dict                   all that must survive: tensors and plain containers
    load_state_dict(state, payload, ctx)        the same, given back

A trainer may say more of itself: `columns`, `Params`, `counts`, `honours` (which keys of the spec it obeys),
`cross_entropy` and `vocab_size` (what its val_loss is, see docs/gates.md).

Optional: `evaluate(batches, state, ctx) -> metrics`, `sample(state, ctx) -> {name: text or bytes}` (of what: see
`ctx.sample_requests`), `export(batch, state, ctx) -> Export` (see `exporting`); for files of its own beside a
checkpoint, both or none of

    save_checkpoint(state, step, output_dir, final, ctx) -> mapping or None     rank 0's, called by name
    load_checkpoint(state, checkpoint_dir, payload, ctx)                        after load_state_dict, called by name

and a seventh hook before `prepare_batch`, which is then given what it returned:

    transform(raw_batch, ctx) -> anything       the heavy part of preparing, which `dataset.workers` can take over

Where it runs must not matter: it has no state, and its object is the trainer after `setup`, made anew in each worker.
What it returns, tensors in plain containers at best, is pickled on its way out of a worker; tensors share their memory.
The global random streams begin at a seed of the batch's own before it, here as in a worker, and are put back after it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, runtime_checkable

import numpy as np

from trn.errors import TrainerError
from trn.ranks.group import Alone, Group
from trn.trainer.samples import SampleRequest, sample_requests

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from trn.spec.plan_model import Plan

__all__ = ["HOOKS", "Context", "Control", "SampleRequest", "StepResult", "Trainer"]

HOOKS = ("setup", "configure", "prepare_batch", "train_step", "state_dict", "load_state_dict")


@dataclass(frozen=True)
class Control:
    """What a step asks of the loop: to hold back its metric event, sample and checkpoint, or a pause after it.

    A sample or checkpoint that was due comes after the next step that does not ask for this.
    """

    skip_cadence_emit: bool = False
    backoff_seconds: float | None = None


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step reports.

    `metrics` are finite numbers or 0-d tensors; `loss` and `learning_rate` are accepted for `train_loss` and `lr`.
    `debug` is shown in the step's metric event, as far as it has 16 kB: JSON values, of which nothing is computed.
    `tokens` is how many tokens the step consumed over all ranks, None where tokens mean nothing.
    """

    metrics: Mapping[str, float | torch.Tensor] = field(default_factory=dict)
    debug: Mapping[str, Any] | None = None
    control: Control | None = None
    tokens: int | None = None


@runtime_checkable
class Trainer(Protocol):
    """The contract; any object with these six methods is a trainer."""

    def setup(self, ctx: Context) -> None: ...
    def configure(self, ctx: Context) -> Any: ...
    def prepare_batch(self, raw_batch: pa.RecordBatch, state: Any, ctx: Context) -> Any: ...
    def train_step(self, batch: Any, state: Any, ctx: Context) -> StepResult: ...
    def state_dict(self, state: Any) -> dict[str, Any]: ...
    def load_state_dict(self, state: Any, payload: dict[str, Any], ctx: Context) -> None: ...


class EvaluatingTrainer(Trainer, Protocol):
    def evaluate(self, batches: Iterable[pa.RecordBatch], state: Any, ctx: Context) -> Mapping[str, float]: ...


class Context:
    """What a hook may know, read-only: the plan, the place, and where in the run it is called.

    `step` is the step being made, from 1 (0 before the first); `row_ids` are the data-set row numbers of this rank's
    rows, int64 `[rows]`. `lr_factor` is what skipped steps have made of the learning rate: multiply yours by it if you
    honour `guard`. `cancelled()` is true once the run was asked to stop: long work of your own should
    look; of several ranks, once they have agreed on it, between two steps.
    `ranks` are the processes of the run: what a trainer that lists "ddp" in `honours` sums and gathers with.
    `is_new` says that no checkpoint follows on `configure`: the run begins, with `plan.weights` where there are some.
    `report(about, **fields)` has the journal tell something, once training begins or the step is made; rank 0's.
    `tensors(raw_batch)` gives its columns as tensors, without a copy where the layout allows; `tensors(raw_batch,
    names)` only these, where others (strings, images) stay in Arrow.
    `sample_requests` are the samples that the spec asks for, with their seeds; empty where it leaves that open.

    In a worker the device is the CPU, and there is no step: `step`, `epoch` and `lr_factor` raise TrainerError.
    """

    __slots__ = ("_epoch", "_lr_factor", "_reports", "_row_ids", "_row_passes", "_step", "cancelled", "device",
                 "is_new", "local_rank", "params", "plan", "rank", "ranks", "run_dir", "tensors",
                 "world_size")  # fmt: skip

    def __init__(
        self,
        *,
        plan: Plan,
        params: Any,
        device: torch.device,
        run_dir: Path,
        cancelled: Callable[[], bool],
        tensors: Callable[..., dict[str, torch.Tensor]],
        ranks: Group | None = None,
        local_rank: int = 0,
        is_new: bool = False,
    ) -> None:
        self.plan = plan
        self.params = params
        self.device = device
        self.run_dir = run_dir
        self.cancelled = cancelled
        self.tensors = tensors
        self.ranks = ranks or Alone()
        self.rank = self.ranks.rank
        self.local_rank = local_rank
        self.world_size = self.ranks.world_size
        self.is_new = is_new
        self._reports: list[tuple[str, dict[str, Any]]] = []
        self._step: int | None = 0
        self._epoch = 0
        self._lr_factor = 1.0
        self._row_ids: np.ndarray = np.empty(0, np.int64)
        self._row_passes: np.ndarray = np.empty(0, np.int32)

    @property
    def step(self) -> int:
        return self._step if self._step is not None else _not_in_a_worker("step")

    @property
    def epoch(self) -> int:
        return self._epoch if self._step is not None else _not_in_a_worker("epoch")

    @property
    def lr_factor(self) -> float:
        return self._lr_factor if self._step is not None else _not_in_a_worker("lr_factor")

    @property
    def row_ids(self) -> np.ndarray:
        return self._row_ids

    @property
    def checkpoints_dir(self) -> Path:
        return self.run_dir / "checkpoints"

    @property
    def samples_dir(self) -> Path:
        return self.run_dir / "samples"

    @property
    def inputs(self) -> dict[str, Path]:
        """The files of the spec's `inputs`, by their names; each is the one whose digest stands in the plan."""
        return {one.name: Path(one.path) for one in self.plan.inputs}

    @property
    def sample_requests(self) -> tuple[SampleRequest, ...]:
        return sample_requests(self.plan)

    def report(self, about: str, /, **fields: Any) -> None:
        """Let the journal have a `note` of this, once training begins or the step is made. Fields are JSON values."""
        self._reports.append((about, fields))

    def rng(self, sample_id: int) -> np.random.Generator:
        """A generator keyed by (seed, pass, sample): the same wherever and however often the sample is prepared.

        `sample_id` is a row number; a row that this batch does not hold counts as one of its first row's pass.
        """
        found = np.flatnonzero(self._row_ids == sample_id)
        where = int(found[0]) if len(found) else 0
        pass_index = int(self._row_passes[where]) if len(self._row_passes) else 0
        digest = hashlib.sha256(f"{self.plan.seed}/{pass_index}/{int(sample_id)}".encode()).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))

    def _enter_step(self, step: int, epoch: int, row_ids: np.ndarray, row_passes: np.ndarray, lr_factor: float) -> None:
        """For the loop alone: the hooks that follow belong to this step and these rows."""
        self._lr_factor = lr_factor
        self._step = step
        self._epoch = epoch
        self._row_ids = row_ids
        self._row_passes = row_passes

    def _reported(self) -> list[tuple[str, dict[str, Any]]]:
        """For the loop, or whoever stands in its place: what was reported since it was asked last."""
        if not self._reports:
            return []
        reports, self._reports = self._reports, []
        return reports

    def _enter_batch(self, row_ids: np.ndarray, row_passes: np.ndarray) -> None:
        """For a worker alone: the transform that follows is of these rows, of a step that is not known yet."""
        self._step = None
        self._row_ids = row_ids
        self._row_passes = row_passes


def _not_in_a_worker(name: str) -> NoReturn:
    raise TrainerError(
        "a worker prepares batches ahead, before it is known which step takes them.",
        where=f"ctx.{name}",
        hint="Use ctx.rng(row_id) and ctx.row_ids in `transform`, or set dataset.workers: 0.",
    )
