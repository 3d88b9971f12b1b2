"""The plan: a spec with nothing left open. What is recorded here is what runs.

The plan is one JSON document, `reports/resolved_config.json`. Its `fingerprint` is the sha256 of its canonical JSON
without the keys in `UNFINGERPRINTED`: where a run lies and what it is called do not change what it computes. Data
enter by their own fingerprint, not by path or time stamp.

    spec ──load──> Spec ──plan──> Plan ──publish──> resolved_config.json ──read──> Plan (every resume, verify, diff)
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from trn.errors import ResumeRefused
from trn.records import Json, canonical_json, from_json, sha256_json

__all__ = [
    "UNFINGERPRINTED",
    "BudgetPlan",
    "CheckpointPlan",
    "CompilePlan",
    "DatasetPlan",
    "EmaPlan",
    "ExportPlan",
    "FillPlan",
    "GatesPlan",
    "GroupPlan",
    "GuardPlan",
    "InputPlan",
    "LogPlan",
    "LossScalePlan",
    "OptimizerPlan",
    "Plan",
    "SamplePromptPlan",
    "SchedulePlan",
    "TrainerPlan",
    "ValidationPlan",
    "WeightsPlan",
]

UNFINGERPRINTED = frozenset(
    {
        "schema_version",
        "config_path",
        "base_config_path",
        "dataset_seed",
        "run_id",
        "run_dir",
        "runs_dir",
        "spec_folder",
        "fingerprint",
        "revision",
        "earlier_fingerprints",
        "experiment",
        "defaulted",
        "log",
        "heartbeat_s",
        "events",
        "sample_prompts",
        "sample_seed",
    }
)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TrainerPlan(_Part):
    """Which class trains, with which typed parameters and which code."""

    name: str
    """As the spec names it: an entry-point name or `module:Class`."""
    module: str
    qualname: str
    code_sha256: str
    """Digest of the trainer's own modules, see trn.provenance.code."""
    counts: Literal["samples", "tokens"]
    params: dict[str, Any]


class FillPlan(_Part):
    column: str
    value: bool | int | float | str | None
    """Null: nulls stay as they are."""


class DatasetPlan(_Part):
    """What is read, in which order, cut how. Rows are global row numbers over all files."""

    data: dict[str, Any]
    """The opened data set as a value: files, row groups, columns, fingerprint (trn.feed.Dataset)."""
    columns: list[str]
    nulls: list[FillPlan] = []
    """What stands for null; in any other column a null is refused. For the validation data too."""
    batch_size: int
    readahead: int
    workers: int
    """Processes a rank for the trainer's `transform`; 0: none."""
    shuffle: bool
    window: int
    """Row groups per shuffle window; all there are for `window: all`."""
    cache: str | None = None
    """The folder that holds the data decoded (trn.feed.cache); null: they are decoded while training."""
    remainder: Literal["carry", "drop", "keep"]
    end: Literal["stop", "cycle"]
    passes: int | None
    """How many passes the budget reads at the most; null with `end: cycle`."""

    @property
    def fills(self) -> dict[str, bool | int | float | str | None]:
        """`nulls` by column, as the feed takes them."""
        return {one.column: one.value for one in self.nulls}


class ValidationPlan(_Part):
    data: dict[str, Any]
    columns: list[str]
    batch_size: int
    every_steps: int
    """0: not by steps."""
    every_epochs: int
    """0: not by epochs."""
    max_batches: int
    """0: all of it."""


class BudgetPlan(_Part):
    max_steps: int
    steps_per_epoch: int
    batches_per_pass: int
    by_passes: bool
    """Whether the budget is so many passes over the data: then a batch that was skipped counts towards it too."""


class GroupPlan(_Part):
    match: list[str]
    """Names of parameters, with wildcards."""
    lr_mult: float
    weight_decay_mult: float


class OptimizerPlan(_Part):
    """Arguments of a class of torch.optim, by the lower-case name of that class, and the micro-batches per step."""

    name: str
    arguments: dict[str, Any]
    fused: bool | None
    accumulate: int
    groups: list[GroupPlan] = []
    no_decay: list[Literal["bias", "norm"]] = []


class WeightsPlan(_Part):
    """The file of the first weights: what counts of it is its content."""

    path: str
    sha256: str
    size_bytes: int
    allow_partial: bool


class LossScalePlan(_Part):
    """Of the loss, with fp16."""

    initial: float
    growth_interval: int


class CompilePlan(_Part):
    """Arguments of torch.compile, and whether the run may go on without it."""

    backend: str
    mode: str | None
    fullgraph: bool
    dynamic: bool | None
    strict: bool


class EmaPlan(_Part):
    """A moving average of the weights."""

    decay: float
    evaluate: bool
    """Whether it is what is evaluated and exported."""


class SamplePromptPlan(_Part):
    """A sample that the trainer is asked for."""

    prompt: str
    negative_prompt: str | None
    instruction: str | None
    source_image: str | None
    mode: str | None
    seed: int | None
    """Null: `sample_seed`."""


class SchedulePlan(_Part):
    kind: str
    """One of our own, or the class of torch.optim.lr_scheduler."""
    warmup_steps: int
    total_steps: int
    lr_max: float
    lr_min: float
    arguments: dict[str, Any] = {}
    """Of torch's scheduler, but for its rates. A length that is not there is `total_steps` less the warm-up."""


class CheckpointPlan(_Part):
    every_steps: int
    every_epochs: int
    """0: no epoch artifacts."""
    keep: int
    keep_epochs: int
    """How many epoch-NNN.pt stay; 0: all of them."""
    best_metric: str | None
    best_mode: Literal["min", "max"]
    save_delay_steps: int = 0
    """Before this step nothing is saved by cadence, and nothing is the best; 0: no delay."""


class GatesPlan(_Part):
    """The rules that may end this run, see trn.gates; with `guard` they are all that a gate is told."""

    cross_entropy: bool
    """Whether the trainer declares that val_loss is a mean cross-entropy in nats."""
    vocab_size: int | None
    """How many classes it tells apart, where the trainer says so."""
    regime: Literal["finetune", "from_scratch"]
    target_val_loss: float | None
    require_target: bool
    patience: int | None
    min_epochs: int
    min_delta: float
    divergence_factor: float | None
    telemetry: Literal["warn", "stop"]


class GuardPlan(_Part):
    """What happens to a step that is not finite."""

    policy: Literal["stop", "skip"]
    max_skips: int
    lr_decay: float


class ExportPlan(_Part):
    """What is made of the weights at the end, and how exact it must be."""

    onnx: bool
    reason: str | None
    """Why nothing is exported, where nothing is."""
    opset: int
    parity_policy: Literal["fail", "warn"]
    atol: float | None
    """Null: by the type of an output, and how exact the model itself is."""


class InputPlan(_Part):
    """A file that the trainer reads by itself."""

    name: str
    path: str
    sha256: str
    size_bytes: int


class LogPlan(_Part):
    """The mirror of the log."""

    enabled: bool
    filename: str
    capture_stdout: bool
    capture_stderr: bool


class Plan(_Part):
    """One training, decided. `Plan.read` is the only way in from bytes, `to_bytes` the only way out."""

    schema_version: Literal[1] = 1
    config_path: str
    base_config_path: list[str]
    dataset_seed: int
    run_id: str
    run_dir: str
    runs_dir: str
    spec_folder: str
    trainer: TrainerPlan
    dataset: DatasetPlan
    validation: ValidationPlan | None
    budget: BudgetPlan
    seed: int
    device: str
    precision: Literal["none", "fp16", "bf16"]
    ddp: bool
    world_size: int
    threads: int
    deterministic: bool | Literal["warn"]
    optimizer: OptimizerPlan | None
    """Null for a trainer that does not honour the spec's optimizer."""
    schedule: SchedulePlan | None
    clip_grad_norm: float | None
    inputs: list[InputPlan] = []
    weights: WeightsPlan | None = None
    loss_scale: LossScalePlan | None = None
    """Null but for fp16."""
    ema: EmaPlan | None = None
    compile: CompilePlan | None = None
    activation_checkpointing: list[str] = []
    metric_every: int
    sample_every: int
    sample_prompts: list[SamplePromptPlan] = []
    sample_seed: int = 0
    checkpoint: CheckpointPlan
    gates: GatesPlan
    guard: GuardPlan
    export: ExportPlan
    log: LogPlan
    heartbeat_s: float
    """How often each rank gives a sign of life; 0: never."""
    events: list[str] = []
    """Where the journal is sent, with absolute paths and without secrets."""
    experiment: dict[str, Any] = {}
    """Notes of the author."""
    defaulted: dict[str, Any] = {}
    """Keys of the spec that are required there and were filled in for a job file, by dotted path, with their values."""
    max_runtime_s: float
    """0: no limit."""
    hang_s: float = 0.0
    """A run without a step for so long hangs; 0: never."""
    grace_s: float = 20.0
    """A rank without a sign of life for so long is lost."""
    versions: dict[str, str]
    """Library versions that the numbers depend on: python, torch, numpy, pyarrow and the recipe's own."""
    owner: str | None = None
    release_ref: str | None = None
    fingerprint: str = ""
    revision: int = 0
    """How often this run's plan was changed by a resume that was allowed to."""
    earlier_fingerprints: list[str] = []
    """Of the revisions before this one, oldest first."""

    @property
    def lineage(self) -> frozenset[str]:
        """Fingerprints of all revisions: checkpoints of any of them belong to this run."""
        return frozenset({self.fingerprint, *self.earlier_fingerprints})

    def compute_fingerprint(self) -> str:
        """Hex sha256 of all that decides what this run computes."""
        value = self.model_dump(mode="json", exclude=set(UNFINGERPRINTED))
        for part in (value["dataset"], value["validation"]):
            if part is not None:
                part["data"] = part["data"]["fingerprint"]
        if value["weights"] is not None:
            del value["weights"]["path"]
        for one in value["inputs"]:
            del one["path"]
        if not value["inputs"]:  # as in plans that were made before there were any
            del value["inputs"]
        return sha256_json(value)

    def sealed(self) -> Plan:
        """This plan with its fingerprint filled in."""
        return self.model_copy(update={"fingerprint": self.compute_fingerprint()})

    def to_json(self) -> Json:
        return self.model_dump(mode="json")

    def to_bytes(self) -> bytes:
        return canonical_json(self.to_json()) + b"\n"

    @classmethod
    def read(cls, data: bytes, where: str) -> Plan:
        """The plan in `data`; `where` is the file's path, for messages.

        Raises ResumeRefused when it is no strict JSON, has missing, unknown or ill-typed keys, or when its
        fingerprint is not that of its content.
        """
        try:
            plan = cls.model_validate(from_json(data), strict=False)
        except (ValidationError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise ResumeRefused(f"this is not a plan: {first}", where=where) from error
        if plan.compute_fingerprint() != plan.fingerprint:
            raise ResumeRefused("the plan was changed after it was published: its fingerprint differs.", where=where)
        return plan
