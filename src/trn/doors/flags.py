"""The short flags of `trn run`: one table, from which the options, the help and the overrides are made.

A flag stands for one key of the spec, and wins over `--set` and over every file. Its value is not judged here but by
the schema of the spec, like a value from a file, so that both are refused in the same words. Not here: options of the
verb itself (`--resume`, `--dry-run` ...), and the schema, which would make `--help` slow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["GROUPS", "KNOBS", "Knob", "WithKnobs", "given_knobs", "knob_options"]


@dataclass(frozen=True)
class Knob:
    """One flag: its name, the key of the spec that it sets, what it takes, and a line of help."""

    name: str
    key: str
    takes: str
    """N a whole number, X a number, NAME a word, `a|b` one of these; nothing: a switch, which has a `--no-` too.

    URL one of several: the flag may be given again, and all of them together are the value.
    """
    help: str
    on: object = True
    off: object = False
    """What a switch and its `--no-` say."""

    @property
    def is_switch(self) -> bool:
        return not self.takes

    @property
    def is_number(self) -> bool:
        return self.takes in ("N", "X")

    @property
    def is_list(self) -> bool:
        return self.takes == "URL"

    @property
    def words(self) -> tuple[str, ...]:
        """The words that it takes, where there are only these."""
        return tuple(self.takes.split("|")) if "|" in self.takes else ()

    @property
    def parameter(self) -> str:
        """By which the command's function is given it."""
        return self.name.removeprefix("--").replace("-", "_")


GROUPS: Mapping[str, tuple[Knob, ...]] = {
    "Budget and data": (
        Knob("--max-steps", "max_steps", "N", "Budget in steps; takes the place of epochs."),
        Knob("--epochs", "epochs", "N", "Budget in epochs; takes the place of max_steps."),
        Knob("--steps-per-epoch", "steps_per_epoch", "N", "Steps of an epoch."),
        Knob("--batch-size", "dataset.batch_size", "N", "Rows a step, over all micro-batches."),
        Knob("--grad-accum", "optimizer.accumulate", "N", "Micro-batches a step."),
        Knob("--readahead", "dataset.readahead", "N", "Batches read ahead of the step."),
        Knob("--shuffle", "dataset.shuffle", "", "Whether each pass has an order of its own."),
    ),
    "Machine": (
        Knob("--device", "device", "NAME", "cpu, cuda, cuda:1, mps ..."),
        Knob("--amp", "precision", "none|fp16|bf16", "Automatic mixed precision."),
        Knob("--ddp", "ddp", "", "Whether several processes train together."),
        Knob("--seed", "seed", "N", "Where all randomness starts."),
        Knob("--deterministic", "deterministic", "", "Whether deterministic kernels are required."),
        Knob("--torch-compile", "compile.enabled", "", "Compile the model; worth it in long runs."),
        Knob("--torch-compile-backend", "compile.backend", "NAME", "Backend of torch.compile."),
        Knob("--torch-compile-mode", "compile.mode", "NAME", "Mode of torch.compile."),
        Knob("--torch-compile-strict", "compile.strict", "", "End where the model cannot be compiled."),
    ),
    "Update": (
        Knob("--optimizer", "optimizer.name", "NAME", "A class of torch.optim: adamw, sgd ..."),
        Knob("--lr", "optimizer.lr", "X", "Highest learning rate; takes the place of schedule.lr_max."),
        Knob("--min-lr", "schedule.lr_min", "X", "Learning rate at the end of the budget."),
        Knob("--schedule", "schedule.kind", "NAME", "constant, linear, warmup_cosine, or a scheduler of torch."),
        Knob("--warmup-steps", "schedule.warmup_steps", "N", "Steps of a linear rise from 0."),
        Knob("--weight-decay", "optimizer.weight_decay", "X", "Weight decay."),
        Knob("--momentum", "optimizer.momentum", "X", "Momentum, for SGD and its kin."),
        Knob("--nesterov", "optimizer.nesterov", "", "Nesterov's momentum."),
        Knob("--clip-grad-norm", "clip_grad_norm", "X", "Largest L2 norm of all gradients; 0: no clipping."),
        Knob("--weights", "weights.path", "FILE", "Weights to begin with."),
        Knob("--allow-partial", "weights.allow_partial", "", "Take of them what fits."),
        Knob("--use-ema", "ema.enabled", "", "Keep a moving average of the weights."),
        Knob("--ema-decay", "ema.decay", "X", "What a step keeps of the average."),
        Knob("--ema-eval", "ema.evaluate", "", "Evaluate and export the average."),
    ),
    "What ends a run": (
        Knob(
            "--stop-on-non-finite-loss",
            "guard.policy",
            "",
            "At a step that is not finite, end; or go on without it.",
            on="stop",
            off="skip",
        ),
        Knob("--non-finite-max-skips", "guard.max_skips", "N", "End at more than N skipped steps in a row."),
        Knob("--non-finite-lr-decay", "guard.lr_decay", "X", "What a skipped step multiplies the learning rate by."),
        Knob("--early-stop-patience", "gates.patience", "N", "End after more than N epochs without a better loss."),
        Knob("--early-stop-min-delta", "gates.min_delta", "X", "Better is lower by more than this."),
        Knob("--target-val-loss", "gates.target_val_loss", "X", "End at this validation loss or below."),
        Knob("--regime", "gates.regime", "finetune|from_scratch", "Which cap the first validation loss has."),
        Knob("--max-runtime-seconds", "limits.max_runtime_seconds", "X", "Checkpoint and end after so long; 0: never."),
    ),
    "Cadences": (
        Knob("--val-every", "validation.every_epochs", "N", "Evaluate after each N epochs; 0: not by epochs."),
        Knob("--val-batch-size", "validation.batch_size", "N", "Rows of a validation batch."),
        Knob("--val-every-steps", "validation.every_steps", "N", "Evaluate after each N steps; 0: not by steps."),
        Knob("--checkpoint-every", "checkpoint_every", "N", "Checkpoint each N steps; 0: only at the end."),
        Knob("--save-delay-steps", "checkpoint.save_delay_steps", "N", "No checkpoint before this step but the last."),
        Knob("--best-metric", "checkpoint.best.metric", "NAME", "The metric that makes a checkpoint the best."),
        Knob("--best-mode", "checkpoint.best.mode", "min|max", "Whether less or more of it is better."),
        Knob("--metric-every", "metric_every", "N", "Metric events each N steps; 0: never."),
        Knob("--sample-every", "sample_every", "N", "Samples each N steps; 0: never."),
        Knob("--events", "events", "URL", "Send events there: file:PATH, redis://..., -; repeatable."),
    ),
    "Export": (
        Knob("--export-onnx", "export.onnx", "", "Export to ONNX, and compare."),
        Knob("--onnx-opset", "export.opset", "N", "Opset of the ONNX file."),
        Knob("--parity-policy", "export.parity_policy", "fail|warn", "What a difference does."),
        Knob("--parity-atol", "export.atol", "X", "Largest absolute difference."),
    ),
}
KNOBS = tuple(knob for group in GROUPS.values() for knob in group)


def knob_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command all flags of the table, and those that mean nothing any more; for `given_knobs`."""
    function = click.option(
        "--run-contract",
        is_flag=True,
        expose_value=False,
        help="Accepted and without effect: the run contract always holds.",
    )(function)
    for knob in reversed(KNOBS):
        function = _option(knob)(function)
    return function


def _option(knob: Knob) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    if knob.is_switch:
        both = f"{knob.name}/--no-{knob.name.removeprefix('--')}"
        return click.option(both, knob.parameter, default=None, help=knob.help)

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        from click.shell_completion import CompletionItem  # only a shell that asks needs it

        return [CompletionItem(word) for word in knob.words if word.startswith(incomplete)]

    # text, whatever it takes: the schema refuses in one line that names the flag, where click would print its usage
    return click.option(
        knob.name,
        knob.parameter,
        metavar=knob.takes,
        shell_complete=complete,
        help=knob.help,
        multiple=knob.is_list,
        default=None,
    )


def given_knobs(given: Mapping[str, Any]) -> Iterator[tuple[Knob, object]]:
    """What was given on the command line, in the order of the table: a text, or what a switch says."""
    for knob in KNOBS:
        value = given[knob.parameter]
        if knob.is_list:
            value = list(value or ()) or None
        if value is not None:
            yield knob, (knob.on if value else knob.off) if knob.is_switch else value


class WithKnobs(click.Command):
    """A command whose help shows the flags of the table in their groups, after its own options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own = {knob.parameter for knob in KNOBS}
        records = [param.get_help_record(ctx) for param in self.get_params(ctx) if param.name not in own]
        with formatter.section("Options"):
            formatter.write_dl([record for record in records if record is not None])
        formatter.write_paragraph()
        formatter.write_text("Each of the following sets one key of the spec, and wins over it and over --set.")
        for title, knobs in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(_shown(knob), knob.help) for knob in knobs])


def _shown(knob: Knob) -> str:
    return knob.name.replace("--", "--[no-]", 1) if knob.is_switch else f"{knob.name} {knob.takes}"
