"""What a training is to the runtime: six hooks, and the short way to have them.

Here: the contract (`Trainer`, `StepResult`, `Context`), how a trainer is found by name, and `TorchTrainer`, which
makes six hooks of a model and a loss. Not here: where batches come from (feed), when hooks are called (loop), what is
saved (checkpoint).

    raw batch ──prepare_batch──> batch ──train_step──> StepResult        state_dict <──> load_state_dict
"""

from trn.trainer.contract import HOOKS, Context, Control, SampleRequest, StepResult, Trainer
from trn.trainer.exporting import Export, has_export
from trn.trainer.loading import load_trainer
from trn.trainer.schedules import lr_at
from trn.trainer.torch_trainer import NoParams, Step, TorchState, TorchTrainer, has_own_transform

__all__ = [
    "HOOKS",
    "Context",
    "Control",
    "Export",
    "NoParams",
    "SampleRequest",
    "Step",
    "StepResult",
    "TorchState",
    "TorchTrainer",
    "Trainer",
    "has_export",
    "has_own_transform",
    "load_trainer",
    "lr_at",
]
