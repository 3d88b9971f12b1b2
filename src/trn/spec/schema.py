"""The spec as types: every key that a user may write, its default, unit and bounds.

The docstring below a field is its description in `trn schema` and in the docs. What one value may be stands in
`values.py`, what no single field can decide in `rules.py`. A `Spec` is frozen, and none exists that breaks a rule.

`extends`, `profiles` and the spellings `amp` and `use_amp` are gone when a Spec is made: they belong to documents,
see `settle.py` and `overrides.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from trn.spec.rules import broken_rules
from trn.spec.values import (
    LARGEST,
    AboveZero,
    Batches,
    BelowOne,
    Betas,
    Count,
    Deterministic,
    DeviceName,
    FileName,
    FolderText,
    Inputs,
    Label,
    Name,
    Names,
    NotNegative,
    Nulls,
    Paths,
    PathText,
    Patterns,
    Positive,
    RunId,
    SampleText,
    Seed,
    Targets,
    TrainerName,
    Version1,
    Whole,
    Window,
)
from trn.spec.words import dotted

__all__ = [
    "BestSpec",
    "CheckpointSpec",
    "CompileSpec",
    "DatasetSpec",
    "EmaSpec",
    "ExportSpec",
    "GatesSpec",
    "GroupSpec",
    "GuardSpec",
    "HeartbeatSpec",
    "LimitsSpec",
    "LogSpec",
    "LossScaleSpec",
    "OptimizerSpec",
    "SamplePromptSpec",
    "ScheduleSpec",
    "Spec",
    "ValidationSpec",
    "WeightsSpec",
]


class _Part(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_empty_sections(cls, value: object) -> object:
        """`gates:` with nothing below it is the same as no `gates` at all."""
        if not isinstance(value, Mapping):
            return value
        sections = {name for name, field in cls.model_fields.items() if field.default_factory is not None}
        return {key: child for key, child in value.items() if child is not None or key not in sections}


class DatasetSpec(_Part):
    """The training data and how a step's rows are cut from it; one of `parquet_paths`, `manifest`, `mock_batches`."""

    parquet_paths: Paths | None = None
    """Parquet files, folders of them, or globs, in this order; also of a store: `s3://bucket/data/*.parquet`."""
    manifest: PathText | None = None
    """A manifest as `trn data index` writes it, or its URL, instead of `parquet_paths`."""
    mock_batches: Batches | None = None
    """For smoke runs, the data themselves: a list of batches of `batch_size` rows, each `{column: [row, ...]}`."""
    columns: Names = ()
    """Columns to read; empty: those that the trainer names."""
    nulls: Nulls = "refuse"
    """What a null means: `refuse` it, or `{column: value}`, where a value of null lets that column's nulls through."""
    batch_size: Positive = 32
    """Rows a step, over all ranks and micro-batches."""
    readahead: Annotated[int, Field(ge=0, le=1024), Whole] = 2
    """Batches to read ahead of the step; 0: none."""
    workers: Annotated[int, Field(ge=0, le=256), Whole] = 0
    """Processes that run the trainer's `transform` ahead of the step, for each rank; 0: it runs in the step."""
    shuffle: bool = True
    """Whether each pass has its own order. It follows from `seed`, the data and the pass, from nothing else."""
    window: Window = 8
    """Row groups that are shuffled together: more mix better and take more memory. all: the whole data set."""
    cache: FolderText | None = None
    """A folder for the data decoded into mapped Arrow, made when not there; null: parquet is decoded in each pass."""
    remainder: Literal["carry", "drop", "keep"] = "carry"
    """A last, short batch of a pass: filled from the next pass, dropped, or kept short."""
    end: Literal["stop", "cycle"] = "stop"
    """What the end of the data means to a budget in steps: the end, or a new pass."""

    @property
    def fills(self) -> dict[str, bool | int | float | str | None]:
        """`nulls` as a mapping: empty where all of them are refused."""
        return {} if isinstance(self.nulls, str) else dict(self.nulls)


class ValidationSpec(_Part):
    """The validation data and when they are used; exactly one of `parquet_paths` and `manifest`."""

    parquet_paths: Paths | None = None
    """Parquet files, folders of them, or globs, in this order; also of a store: `s3://bucket/data/*.parquet`."""
    manifest: PathText | None = None
    """A manifest as `trn data index` writes it, or its URL, instead of `parquet_paths`."""
    every_steps: Count = 0
    """Evaluate after each this many steps; 0: not by steps."""
    every_epochs: Count = 1
    """Evaluate after each this many epochs; 0: not by epochs. The end of a run is always evaluated."""
    max_batches: Count = 0
    """At most this many batches an evaluation; 0: all of them."""
    batch_size: Positive | None = None
    """Rows of a batch, over all ranks; null: those of a step's batch."""


class GroupSpec(_Part):
    """Parameters that are trained otherwise than the rest. A parameter in several groups gets the product of all."""

    match: Patterns
    """Names of parameters, with `*` for any text: `backbone.*`. Each pattern must fit at least one."""
    lr_mult: NotNegative = 1.0
    """The learning rate times this; 0: they stay as they are."""
    weight_decay_mult: NotNegative = 1.0
    """The weight decay times this; 0: none."""


class OptimizerSpec(_Part):
    """The optimizer of a TorchTrainer: a class of torch.optim, and its arguments."""

    name: Name = "adamw"
    """Lower-case name of a class of torch.optim: adamw, sgd ..."""
    lr: AboveZero = 1e-3
    """Learning rate. With a `schedule` it is the highest one, the same as `schedule.lr_max`."""
    weight_decay: NotNegative = 0.01
    """Weight decay, as the optimizer defines it."""
    betas: Betas = (0.9, 0.999)
    """Decay rates of the first and second moment, for Adam and its kin."""
    eps: AboveZero = 1e-8
    """Added to the denominator, for Adam and its kin."""
    momentum: BelowOne = 0.0
    """Momentum, for SGD and its kin."""
    nesterov: bool = False
    """Nesterov's momentum; needs `momentum` above 0."""
    accumulate: Positive = 1
    """Micro-batches a step; the batch size must be a multiple of it."""
    fused: bool | None = None
    """The fused implementation: yes, no, or null for wherever there is one."""
    groups: Annotated[tuple[GroupSpec, ...], Field(strict=False, max_length=256)] = ()
    """Other learning rates and weight decays for some parameters, by name."""
    no_decay: Annotated[tuple[Literal["bias", "norm"], ...], Field(strict=False)] = ()
    """No weight decay for these: `bias`, every bias; `norm`, every parameter of a normalisation."""


class ScheduleSpec(_Part):
    """The learning rate as a function of the step. Needs `optimizer.lr` or `lr_max`; where both stand, they agree."""

    kind: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=64)] = Field(
        examples=["constant", "linear", "warmup_cosine"]
    )
    """After the warm-up: stay at `lr_max` (constant), go down to `lr_min` in a line (linear) or half a cosine
    (warmup_cosine), or as a scheduler of torch does, by its name: CosineAnnealingLR, one_cycle ..."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Arguments of torch's scheduler. Lengths that are not given are those of the budget after the warm-up."""
    warmup_steps: Count = 0
    """Steps of a linear rise from 0; fewer than the budget has."""
    lr_max: AboveZero | None = None
    """Learning rate at the end of the warm-up; null: `optimizer.lr`."""
    lr_min: NotNegative = 0.0
    """Learning rate at the end of the budget; at most `lr_max`."""


class WeightsSpec(_Part):
    """Weights to begin with, instead of random ones."""

    path: PathText
    """A file of tensors by name: .safetensors, or one of torch; also a checkpoint of another run."""
    allow_partial: bool = False
    """Take what fits by name and shape, and record what does not; else every tensor must fit."""


class LossScaleSpec(_Part):
    """What the loss is multiplied by for `precision: fp16`, so that small gradients do not vanish."""

    initial: Annotated[float, Field(ge=1, le=2.0**24)] = 65536.0
    """To begin with. An overflow halves it, and the step is made again."""
    growth_interval: Positive = 2000
    """After so many steps in a row without an overflow it is doubled."""


class CompileSpec(_Part):
    """torch.compile of a TorchTrainer's model; worth its time in long runs only."""

    enabled: bool = False
    """Whether the model is compiled."""
    backend: Name = "inductor"
    """Backend of torch.compile."""
    mode: Annotated[str, Field(pattern=r"^[a-z][a-z-]*$")] | None = None
    """Its mode, such as max-autotune."""
    fullgraph: bool = False
    """Whether a break of the graph is an error."""
    dynamic: bool | None = None
    """Whether shapes are taken for variable; null is false, since what torch finds out depends on what came before."""
    strict: bool = False
    """Whether a model that cannot be compiled ends the run, instead of going on as it is."""


class EmaSpec(_Part):
    """A moving average of the weights, beside them."""

    enabled: bool = False
    """Whether the average is kept."""
    decay: BelowOne = 0.999
    """What a step keeps of the average."""
    evaluate: bool = False
    """Evaluate and export the average instead of the weights; needs `enabled`."""


class BestSpec(_Part):
    """What makes a checkpoint the best one."""

    metric: Annotated[str, Field(min_length=1, max_length=128)] = "val_loss"
    """A metric of the evaluation."""
    mode: Literal["min", "max"] = "min"
    """Whether less or more of it is better."""


class CheckpointSpec(_Part):
    """Which checkpoints are kept."""

    keep: Annotated[int, Field(ge=2, le=LARGEST), Whole] = 3
    """The newest this many stay, and the best one; never fewer than two, so that one may be torn."""
    every_epochs: Count = 1
    """An artifact of the epoch, `epoch-NNN.pt` and its metadata, each this many epochs; 0: none."""
    keep_epochs: Count = 3
    """The newest this many `epoch-NNN.pt` stay, their metadata always; 0: all of them."""
    save_delay_steps: Count = 0
    """No checkpoint by cadence, of an epoch or as the best before this step. The last one is made in any case."""
    save_delay_epochs: NotNegative = 0.0
    """The same in epochs, of which a part counts too; one of the two."""
    best: BestSpec = Field(default_factory=BestSpec)
    """What makes a checkpoint the best one."""


class GatesSpec(_Part):
    """Rules that end a run, for good or ill. They look at the validation loss after each epoch's evaluation."""

    regime: Literal["finetune", "from_scratch"] | None = None
    """Which cap the first validation loss has; null: follows from whether initial weights are given."""
    target_val_loss: AboveZero | None = None
    """End as `target_reached` at this validation loss or below; null: no target."""
    patience: Count | None = None
    """End as `early_stopped` after more than this many epochs without a better loss; null: never."""
    min_epochs: Count = 3
    """Neither target nor patience ends a run before this many epochs."""
    min_delta: NotNegative = 0.0
    """A loss is better only if it is lower by more than this."""
    telemetry: Literal["warn", "stop"] = "warn"
    """What an impossible reading of a sensor does: a counted warning and a null, or the end of the run."""
    divergence_factor: Annotated[float, Field(gt=1)] | None = None
    """End as `divergence` when the loss is above this many times the best one; null: only by the fixed rules."""
    require_target: bool = False
    """A run that ends above its target ends as `target_missed`; needs `target_val_loss`."""


class GuardSpec(_Part):
    """What happens to a step whose loss or gradient is not finite. Its update is never made."""

    policy: Literal["stop", "skip"] = "stop"
    """End the run, or go on without the step."""
    max_skips: Positive = 3
    """With `skip`: end the run at more than this many in a row."""
    lr_decay: Annotated[float, Field(gt=0, le=1)] = 0.5
    """With `skip`: each skip multiplies the learning rate by this."""


class ExportSpec(_Part):
    """What is made of the weights at the end of the run, and how closely it has to agree with them."""

    onnx: bool | None = None
    """Export to ONNX and compare with ONNX Runtime; null: where the trainer can, and the extra `export` is there."""
    opset: Annotated[int, Field(ge=18, le=25), Whole] = 18
    """Opset of the ONNX file."""
    parity_policy: Literal["fail", "warn"] = "fail"
    """What a difference that is too large does: end as `parity_failed`, or be reported."""
    atol: NotNegative | None = None
    """Largest absolute difference of an output; null: by its type, and how exact the model itself is."""


class LogSpec(_Part):
    """A mirror of the log in the run's folder."""

    enabled: bool = True
    """Whether it is written."""
    filename: FileName = "train.log"
    """Its name, in `logs/`."""
    capture_stdout: bool = False
    """Whether what is printed lands there too."""
    capture_stderr: bool = False
    """Whether what is printed as an error lands there too."""


class HeartbeatSpec(_Part):
    """Signs of life of each rank, in a file of its own."""

    interval_seconds: Annotated[float, Field(ge=0, le=86_400)] = 30.0
    """A beat each so many seconds, at least one; 0: none."""


class SamplePromptSpec(_Part):
    """One sample that the trainer is asked for; a text is its `prompt`. What the words mean is the trainer's."""

    model_config = ConfigDict(json_schema_extra={"type": ["object", "string"]})

    prompt: SampleText
    """What to make."""
    negative_prompt: SampleText | None = None
    """What not to make."""
    instruction: SampleText | None = None
    """What to do with `source_image`."""
    source_image: SampleText | None = None
    """An image to begin from, as the trainer names it."""
    mode: Annotated[str, Field(max_length=256)] | None = None
    """Which kind of sample."""
    seed: Seed | None = None
    """Where its randomness starts; null: `sample_seed`."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        return {"prompt": value} if isinstance(value, str) else value


class LimitsSpec(_Part):
    """Limits of time, in seconds."""

    max_runtime_seconds: NotNegative = 0.0
    """A job ends as `time_limit` after this, with a checkpoint; 0: no limit."""
    grace_seconds: Annotated[float, Field(ge=2)] = 20.0
    """Of several ranks, one that gives no sign of life for so long counts as lost, and the job ends as `rank_lost`."""
    hang_seconds: NotNegative = 0.0
    """A job ends as `hang` when no step ends for this long; 0: never."""


class Spec(_Part):
    """One training, as its user wants it: every file, profile and override merged, and all of it checked."""

    config_version: Version1 = Field(examples=[1])
    """Version of this schema: 1."""
    trainer_api_version: Literal["v1"] | None = None
    """Version of the trainer contract; null: v1."""
    run_id: RunId | None = None
    """Name of the run and of its folder; null: a UTC stamp and a random tail."""
    trainer: TrainerName = Field(examples=["lm"])
    """Who trains: the name of an entry point, or `module:Class`."""
    hyperparams: dict[str, Any] = Field(default_factory=dict)
    """The trainer's own parameters: JSON values with finite numbers."""
    dataset: DatasetSpec = Field(examples=[{"parquet_paths": ["data/*.parquet"]}])
    """The training data."""
    validation: ValidationSpec | None = None
    """The validation data; null: no validation."""
    seed: Seed = Field(examples=[42])
    """Where all randomness starts."""
    device: DeviceName = Field(examples=["cpu"])
    """cpu, cuda, cuda:1, mps ...; never replaced by another. auto: an accelerator if one is here, else cpu; the plan
    says which."""
    precision: Literal["none", "fp16", "bf16"] = Field(examples=["none"])
    """Automatic mixed precision. Also written `amp: bf16`, or `use_amp: true` for fp16."""
    ddp: bool = Field(examples=[False])
    """Whether several processes train together."""
    max_steps: Positive | None = None
    """Budget in optimizer steps, never rounded up; or `epochs`."""
    epochs: Positive | None = None
    """Budget in epochs: of `steps_per_epoch` steps each, or passes over the data; or `max_steps`."""
    steps_per_epoch: Positive | None = None
    """Steps of an epoch; null: those of one pass over the data."""
    metric_every: Count = 10
    """Metric events each this many steps; 0: never. The metrics file has every step in any case."""
    checkpoint_every: Count = 200
    """Checkpoint each this many steps; 0: only at the end."""
    sample_every: Count = 0
    """Let the trainer write samples each this many steps; 0: never."""
    sample_prompts: Annotated[tuple[SamplePromptSpec, ...], Field(strict=False, max_length=1000)] = ()
    """What it is asked for: texts, or a prompt with more. It finds them in `ctx.sample_requests`."""
    sample_seed: Seed = 0
    """The seed of each of them that has none of its own."""
    optimizer: OptimizerSpec = Field(default_factory=OptimizerSpec)
    """The optimizer of a TorchTrainer."""
    schedule: ScheduleSpec = Field(default_factory=lambda: ScheduleSpec(kind="constant"))
    """The learning rate over the steps; without it, `optimizer.lr` throughout."""
    inputs: Inputs = Field(default_factory=dict)
    """Files that the trainer reads by itself, by names of its own choice: `ctx.inputs` has their paths, the plan their
    digests."""
    weights: WeightsSpec | None = None
    """Weights to begin with; null: those that the trainer draws."""
    loss_scale: LossScaleSpec = Field(default_factory=LossScaleSpec)
    """The scaling of the loss for `precision: fp16`."""
    compile: CompileSpec = Field(default_factory=CompileSpec)
    """torch.compile."""
    activation_checkpointing: Names = ()
    """Modules, by names with `*`, whose activations are computed again in the backward pass instead of kept."""
    clip_grad_norm: NotNegative | None = None
    """Largest L2 norm of all gradients together; null or 0: no clipping."""
    ema: EmaSpec = Field(default_factory=EmaSpec)
    """A moving average of the weights."""
    checkpoint: CheckpointSpec = Field(default_factory=CheckpointSpec)
    """Which checkpoints are kept."""
    gates: GatesSpec = Field(default_factory=GatesSpec)
    """Rules that end a run."""
    guard: GuardSpec = Field(default_factory=GuardSpec)
    """What happens to a step that is not finite."""
    export: ExportSpec = Field(default_factory=ExportSpec)
    """What is made of the weights at the end."""
    limits: LimitsSpec = Field(default_factory=LimitsSpec)
    """Limits of time."""
    log: LogSpec = Field(default_factory=LogSpec)
    """The mirror of the log."""
    heartbeat: HeartbeatSpec = Field(default_factory=HeartbeatSpec)
    """Signs of life."""
    events: Targets = ()
    """Where events and metrics are sent while the run goes on: `file:PATH`, `redis://...`, `tensorboard:` ..."""
    experiment: dict[str, Any] = Field(default_factory=dict)
    """Notes of the author, carried into the metadata: any JSON values. They change nothing."""
    add_version: bool = False
    """Whether a new run gets a version of its own below its `run_id`, instead of being refused where there is one."""
    runs_dir: FolderText | None = None
    """Folder of all runs; null: `runs` below the current folder. `--runs-dir` and TRN_RUNS_DIR win."""
    threads: Annotated[int, Field(ge=0, le=4096), Whole] = 0
    """CPU threads; 0: what the machine gives. The number used is recorded and part of the resume contract."""
    deterministic: Deterministic = True
    """Deterministic kernels: required, wanted with a warning where there is none, or not asked for."""
    owner: Label = ""
    """Who the run belongs to."""
    release_ref: Label = ""
    """What the run is made for, such as org/repo:latest."""

    @model_validator(mode="after")
    def _keep_rules(self) -> Self:
        broken = broken_rules(self.model_dump(exclude_unset=True))
        if broken:
            text = "; ".join(f"{dotted(path)}: {message}" for path, message in broken)
            raise PydanticCustomError("rules", "{text}", {"text": text})
        return self

    @model_validator(mode="after")
    def _settle_learning_rate(self) -> Self:
        """The highest learning rate stands in two places with one value, so that none of them can mislead."""
        lr = self.schedule.lr_max or self.optimizer.lr
        # a frozen model is only changed here, before anyone has seen it; `model_fields_set` stays what was given
        object.__setattr__(self, "schedule", self.schedule.model_copy(update={"lr_max": lr}))
        object.__setattr__(self, "optimizer", self.optimizer.model_copy(update={"lr": lr}))
        return self
