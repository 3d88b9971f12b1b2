"""The same small language model by trn and by the Trainer of transformers: what it learns, and how fast.

    python benchmarks/lm_hf.py [--config examples/lm/stdlib.yaml] [--seeds 3] [--steps 150] [--threads 2] [--quick]

Both begin with the same weights and see as many tokens, each in an order of its own over all rows, with the same
optimizer, schedule, clipping and weight decay; the validation loss of each is measured by the same function. A step
lasts from one request for a batch to the next. Of tokens/s, the ratio is taken seed by seed. Needs the extras `lm` and
`bench`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from rounds import by_trn, context
from torch.utils.data import Dataset as TorchDataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from trn.devices import keep_freed_memory
from trn.feed import Dataset, read_sequential
from trn.loop.stop import StopRequest
from trn.plan import make_plan
from trn.ranks import World
from trn.spec import load_spec
from trn.spec.plan_model import Plan


class Rows(TorchDataset[dict[str, torch.Tensor]]):
    """All rows in memory, as one would write it."""

    def __init__(self, plan: Plan) -> None:
        columns = [pq.read_table(file.path)["tokens"] for file in Dataset.from_json(plan.dataset.data).files]
        arrays = [column.combine_chunks().flatten().to_numpy() for column in columns]
        width = len(columns[0][0])
        self.tokens = torch.from_numpy(np.concatenate(arrays).astype(np.int64)).view(-1, width)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


class Clock(TrainerCallback):
    """When each step begins."""

    def __init__(self) -> None:
        self.began_s: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began_s.append(time.perf_counter())


def by_hf(plan: Plan, trainer: Any, folder: str) -> tuple[Any, list[float]]:
    """The trained model, and how long each step took."""
    assert plan.optimizer is not None, "the spec names one"
    assert plan.schedule is not None, "and this"
    torch.manual_seed(plan.seed)
    model = trainer.build(context(plan, trainer, StopRequest()))
    arguments, schedule = plan.optimizer.arguments, plan.schedule
    settings = TrainingArguments(
        output_dir=folder,
        seed=plan.seed,
        max_steps=plan.budget.max_steps,
        per_device_train_batch_size=plan.dataset.batch_size,
        learning_rate=schedule.lr_max,
        weight_decay=arguments["weight_decay"],
        adam_beta1=arguments["betas"][0],
        adam_beta2=arguments["betas"][1],
        adam_epsilon=arguments["eps"],
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": schedule.lr_min},
        warmup_steps=schedule.warmup_steps,
        max_grad_norm=plan.clip_grad_norm,
        logging_steps=10,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    clock = Clock()
    hf = Trainer(model=model, args=settings, train_dataset=Rows(plan), callbacks=[clock])
    hf.remove_callback(PrinterCallback)
    hf.train()
    return model, [after - before for before, after in zip(clock.began_s, clock.began_s[1:], strict=False)]


def ours(plan: Plan, trainer: Any) -> tuple[Any, list[float]]:
    kept: list[Any] = []
    steps_s = next(by_trn(plan, trainer, plan.budget.max_steps, keep=kept)).steps_s
    return kept[0].state.model, steps_s


def val_loss(plan: Plan, trainer: Any, model: Any) -> float:
    """Mean loss of a prediction over the validation data."""
    assert plan.validation is not None, "the spec has validation data"
    ctx = context(plan, trainer, StopRequest())
    total = count = 0.0
    model.eval()
    with torch.no_grad():
        data = Dataset.from_json(plan.validation.data)
        for rows in read_sequential(data, plan.validation.columns, plan.validation.batch_size):
            step = trainer.loss(model, trainer.transform(rows, ctx))
            total, count = total + step.loss.item() * step.count, count + step.count
    return total / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--config", type=Path, default=Path("examples/lm/stdlib.yaml"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="1 seed, 40 steps")
    args = parser.parse_args()
    if find_spec("accelerate") is None:  # the Trainer needs it
        print("left out: accelerate is not installed (the extra `bench`)")
        return
    seeds, steps = (1, 40) if args.quick else (args.seeds, args.steps)
    keep_freed_memory()  # for both
    torch.set_num_threads(args.threads)
    losses: dict[str, list[float]] = {"trn": [], "transformers": []}
    ratios = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            sets = [f"max_steps={steps}", f"seed={seed}", "checkpoint_every=0", "checkpoint.every_epochs=0"]
            sets += ["sample_every=0", "validation.every_steps=0", "optimizer.no_decay=[bias, norm]"]
            sets += ["dataset.end=cycle", "dataset.window=all", "export.onnx=false"]
            loaded = load_spec(args.config, sets=sets)
            plan, trainer = make_plan(loaded, run_id="bench", runs_dir=Path(folder), world=World())
            model, mine_s = ours(plan, trainer)
            losses["trn"].append(val_loss(plan, trainer, model))
            model, theirs_s = by_hf(plan, trainer, folder)
            losses["transformers"].append(val_loss(plan, trainer, model))
        # the first steps warm up
        mine, theirs = statistics.median(mine_s[3:]), statistics.median(theirs_s[3:])
        ratios.append(theirs / mine)
        print(
            f"seed {seed}: val_loss trn {losses['trn'][-1]:.4f}, transformers {losses['transformers'][-1]:.4f};"
            f" ms a step {mine * 1e3:.1f}, {theirs * 1e3:.1f}; tokens/s of trn / transformers {ratios[-1]:.3f}",
            flush=True,
        )
    for name, values in losses.items():
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        print(f"{name:12} val_loss mean {statistics.mean(values):.4f}, standard deviation {spread:.4f}")
    print(f"tokens/s of trn / transformers: {min(ratios):.3f} / {statistics.median(ratios):.3f} / {max(ratios):.3f}")


if __name__ == "__main__":
    main()
