"""Trainers that give the runtime what it cannot take, each with what it is told and how its run ends.

A trainer is six hooks or a TorchTrainer whose source is changed in one place; `write_hostile` puts it beside its spec.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from support.job import write_table

__all__ = ["HOSTILE_TRAINERS", "HostileTrainer", "write_hostile"]

BY_HAND = """
import itertools, threading, weakref
import torch
from torch import nn
from trn import Control, StepResult

class Subject:
    columns = ("x", "y")
    def setup(self, ctx):
        pass
    def configure(self, ctx):
        model = nn.Linear(8, 1)
        return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.01)}
    def prepare_batch(self, raw_batch, state, ctx):
        return ctx.tensors(raw_batch)
    def train_step(self, batch, state, ctx):
        loss = (state["model"](batch["x"]).squeeze(1) - batch["y"]).square().mean()
        state["optimizer"].zero_grad()
        loss.backward()
        state["optimizer"].step()
        return StepResult({"train_loss": loss})
    def evaluate(self, batches, state, ctx):
        return {"val_loss": float(sum(one.num_rows for one in batches))}
    def state_dict(self, state):
        return {"model": state["model"].state_dict(), "optimizer": state["optimizer"].state_dict()}
    def load_state_dict(self, state, payload, ctx):
        for name, one in state.items():
            one.load_state_dict(payload[name])
"""

THE_SHORT_WAY = """
import torch
from torch import nn
from trn import Step, TorchTrainer

class Subject(TorchTrainer):
    columns = ("x", "y")
    def build(self, ctx):
        return nn.Linear(8, 1)
    def loss(self, model, batch):
        error = model(batch["x"]).squeeze(1) - batch["y"]
        return Step(error.square().mean(), {"mae": error.abs().mean()}, count=len(error))
"""

SPEC = """
config_version: 1
trainer: subject:Subject
dataset: {parquet_paths: [rows.parquet], batch_size: 8, end: cycle}
validation: {parquet_paths: [rows.parquet], every_steps: 3}
seed: 1
device: cpu
precision: none
ddp: false
max_steps: 6
checkpoint_every: 2
threads: 1
"""

RESULT = 'return StepResult({"train_loss": loss})'
STATE = 'return {"model": state["model"].state_dict(), "optimizer": state["optimizer"].state_dict()}'
METRICS = 'return {"val_loss": float(sum(one.num_rows for one in batches))}'
STEP = 'return Step(error.square().mean(), {"mae": error.abs().mean()}, count=len(error))'


@dataclass(frozen=True)
class HostileTrainer:
    """`says` is a piece of the line that tells of it; `steps` is how many lines its journal has in the end."""

    says: str
    replace: str
    by: str
    code: int = 70
    steps: int = 0
    is_short: bool = False
    more: str = ""
    """Of the spec."""

    @property
    def source(self) -> str:
        source = THE_SHORT_WAY if self.is_short else BY_HAND
        assert source.count(self.replace) == 1, self.replace
        return source.replace(self.replace, self.by)


def write_hostile(one: HostileTrainer, folder: Path) -> Path:
    """The rows, the trainer and the spec; returns the spec's path."""
    folder.mkdir()
    write_table(folder / "rows.parquet", 40, seed=1)
    (folder / "subject.py").write_text(one.source)
    spec = folder / "spec.yaml"
    spec.write_text(SPEC + one.more)
    return spec


def _result(says: str, by: str, code: int = 70, steps: int = 0) -> HostileTrainer:
    return HostileTrainer(says, RESULT, by, code, steps)


def _metric(says: str, value: str, code: int = 70, steps: int = 0) -> HostileTrainer:
    return _result(says, f'return StepResult({{"train_loss": loss, "m": {value}}})', code, steps)


def _state(says: str, value: str) -> HostileTrainer:
    """Something in the state that no checkpoint can hold; the first one is due after two steps."""
    return HostileTrainer(says, STATE, f'return {{"kept": [{value}]}}', steps=2)


def _loss(says: str, by: str, code: int = 70, steps: int = 0) -> HostileTrainer:
    return HostileTrainer(says, STEP, by, code, steps, is_short=True)


def _evaluation(says: str, by: str, code: int = 70, more: str = "") -> HostileTrainer:
    return HostileTrainer(says, METRICS, by, code, steps=3, more=more)


def _signature(says: str, replace: str, by: str, *, is_short: bool = False) -> HostileTrainer:
    return HostileTrainer(says, replace, by, code=78, is_short=is_short)


HOSTILE_TRAINERS: dict[str, HostileTrainer] = {
    # what a step gives back
    "no result": _result("train_step returned NoneType; expected a StepResult.", "return None"),
    "a dict for a result": _result("train_step returned dict; expected a StepResult.", 'return {"train_loss": loss}'),
    "metrics that are a list": _result(
        "the metrics of a StepResult are numbers by name; found list.", "return StepResult([loss])"
    ),
    "a control that is a dict": _result("control is a dict; expected a Control.", "return StepResult({}, control={})"),
    "a backoff that is no number": _result(
        "control.backoff_seconds is nan; expected a finite number",
        "return StepResult({}, control=__import__('trn').trainer.Control(backoff_seconds=float('nan')))",
    ),
    "a debug that is a list": _result("debug is a list; expected a mapping", "return StepResult({}, [loss])"),
    "a debug that is no JSON": HostileTrainer(
        "step 1, debug['raw']: a bytes; expected",
        RESULT,
        "return StepResult({'loss': loss}, {'raw': b'x'})",
        steps=1,
        more="metric_every: 1\n",
    ),
    "tokens that are text": _result(
        "tokens is 'many'; expected a whole number", "return StepResult({}, tokens='many')"
    ),
    "a NaN metric": _metric("m is nan, expected a finite number", "float('nan')", 80),
    "a metric that is infinite at step 3": _metric(
        "at step 3: m is inf", "float('inf') if ctx.step == 3 else 0", 80, 2
    ),
    "a NaN tensor": _metric("m is nan, expected a finite number", "loss * float('nan')", 80),
    "a metric that is text": _metric(
        "at step 1, metric 'm': expected a finite number under a name of its own, found a str.", "'0.5'"
    ),
    "a metric that is None": _metric("found a NoneType.", "None"),
    "a metric that is a boolean": _metric("found a bool.", "True"),
    "a metric that is complex": _metric("found a complex.", "1j"),
    "a metric of several numbers": _metric("expected one number, found a tensor of several.", "batch['y']"),
    "a metric that is a list": _metric("found a list.", "[1.0]"),
    "a metric of a huge number": _metric("expected a number of at most 63 bits, found one of 1,329.", "10 ** 400"),
    "a metric without a name": _result("the name of a metric: expected text, found 3.", "return StepResult({3: 1.0})"),
    "a metric of ours": _result("a name that the journal fills itself", 'return StepResult({"step": 1.0})'),
    "a loss given twice": _result("given twice", 'return StepResult({"train_loss": loss, "loss": loss})'),
    # what loss() gives back
    "no loss": _loss("at train_step at step 1: loss() returned NoneType; expected a Step.", "return None"),
    "a loss without a Step": _loss("loss() returned Tensor; expected a Step.", "return error.square().mean()"),
    "a Step of a number": _loss("0-d tensor, the mean; found float.", "return Step(error.square().mean().item())"),
    "a Step of nothing": _loss("0-d tensor, the mean; found NoneType.", "return Step(None)"),
    "a loss without a gradient": _loss("the loss has no gradient", "return Step(error.square().mean().detach())"),
    "a loss of each row": _loss(
        "found shape [8]. Return its .mean().", "return Step(error.square(), count=len(error))"
    ),
    "a count that is text": _loss(
        "a whole number from 0 on; found 'many'.", "return Step(error.square().mean(), count='many')"
    ),
    "a count below zero": _loss("a whole number from 0 on; found -1.", "return Step(error.square().mean(), count=-1)"),
    "a NaN loss": _loss("train_loss is nan", "return Step(error.square().mean() * float('nan'))", 80),
    "a mean over nothing": _loss("nothing to learn from", "return Step(error.square().mean(), count=0)"),
    "metrics of a Step that are a list": _loss(
        "numbers by name; found list.", "return Step(error.square().mean(), [1.0])"
    ),
    # what cannot be stored
    "no state": HostileTrainer("expected a dict, found NoneType.", STATE, "return None", steps=2),
    "a state that is a list": HostileTrainer("expected a dict, found list.", STATE, "return [1]", steps=2),
    "a lambda": _state("at state['kept'][0]: a function; a checkpoint holds", "lambda step: step"),
    "a lock": _state("at state['kept'][0]: a lock; a checkpoint holds", "threading.Lock()"),
    "a generator": _state("at state['kept'][0]: a generator; a checkpoint holds", "(i for i in range(3))"),
    "torch's generator": _state("at state['kept'][0]: a Generator; a checkpoint holds", "torch.Generator()"),
    "an open file": _state("at state['kept'][0]: a TextIOWrapper; a checkpoint holds", "open(__file__)"),
    "a set": _state("at state['kept'][0]: a set; a checkpoint holds", "{1, 2}"),
    "a huge number": _state("at state['kept'][0]: a number of more than 64 bits. Keep it as text.", "2 ** 80"),
    "a model": _state("at state['kept'][0]: a Linear; a checkpoint holds", "state['model']"),
    "an array": _state("at state['kept'][0]: a ndarray; a checkpoint holds", "torch.zeros(2).numpy()"),
    "a sparse tensor": _state("at state['kept'][0]: a tensor of layout torch.sparse_coo", "torch.eye(2).to_sparse()"),
    "a tensor without values": _state(
        "at state['kept'][0]: a tensor on the device `meta`", "torch.zeros(2, device='meta')"
    ),
    "a dict in itself": HostileTrainer(
        "at state: it is nested too deeply, or holds itself.", STATE, "d = {}; d['d'] = d; return d", steps=2
    ),
    "a key that is a tuple": _state("at state['kept'][0]: a key of type tuple", "{(1, 2): 3}"),
    # hooks that cannot be called so
    "a hook with too few": _signature(
        "expected train_step(batch, state, ctx), found train_step(batch, state).",
        "def train_step(self, batch, state, ctx):",
        "def train_step(self, batch, state):",
    ),
    "a hook with too many": _signature(
        "expected evaluate(batches, state, ctx), found evaluate(batches, state, ctx, device).",
        "def evaluate(self, batches, state, ctx):",
        "def evaluate(self, batches, state, ctx, device):",
    ),
    "a hook by names alone": _signature(
        "expected load_state_dict(state, payload, ctx), found load_state_dict(*, state, payload, ctx).",
        "def load_state_dict(self, state, payload, ctx):",
        "def load_state_dict(self, *, state, payload, ctx):",
    ),
    "a hook without self": _signature(
        "expected state_dict(state), found state_dict().", "def state_dict(self, state):", "def state_dict(state):"
    ),
    "a hook to be awaited": _signature(
        "found an `async def`",
        "def train_step(self, batch, state, ctx):",
        "async def train_step(self, batch, state, ctx):",
    ),
    "a hook that yields": _signature("found a generator", STATE, "yield {}"),
    "a hook that is missing": _signature("it lacks the hook setup.", "def setup(self, ctx):", "def set_up(self, ctx):"),
    "a hook that is a number": _signature(
        "it lacks the hook setup.", "def setup(self, ctx):\n        pass", "setup = 3"
    ),
    "a build without ctx": _signature(
        "expected build(ctx), found build().", "def build(self, ctx):", "def build(self):", is_short=True
    ),
    "a loss with ctx": _signature(
        "expected loss(model, batch), found loss(model, batch, ctx).",
        "def loss(self, model, batch):",
        "def loss(self, model, batch, ctx):",
        is_short=True,
    ),
    # evaluation
    "no metrics": _evaluation("expected metrics by name, found NoneType.", "return None"),
    "a best metric that never appears": _evaluation(
        "expected 'map50_95' among the metrics, found val_loss. Return it: checkpoint.best.metric asks for it.",
        METRICS,
        more="checkpoint: {best: {metric: map50_95, mode: max}}",
    ),
    "an evaluation of nothing": _evaluation("expected 'val_loss' among the metrics, found none.", "return {}"),
    "a NaN validation": _evaluation("val_loss is nan", "return {'val_loss': float('nan')}", 80),
    "a validation of several numbers": _evaluation("expected one number", "return {'val_loss': torch.zeros(2)}"),
}
