"""What uploading costs a step: the same worker job with an orchestrator and without one, in turn.

    OMP_NUM_THREADS=1 PYTHONPATH=tests python benchmarks/uploads.py [--rounds 6] [--steps 400]

The orchestrator is that of examples/orchestrator, in a process of its own; three of ten of its answers are failures,
and once a round it is dead for two seconds. The worker uploads metrics, samples and a checkpoint each 50 steps while
the trainer, a process of its own with one thread, makes steps of about 5 ms. A step's time is `wall_ms` of its line;
rounds are compared at the 10th percentile and at the median. The goal is that both stay within 2%.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from support.orchestrator import Orchestrator
from support.worker import PlatformJob
from trn.records import read_lines

TRAINER = """
import torch
from torch import nn
from trn import Step, TorchTrainer


class Busy(TorchTrainer):
    columns = ("x", "y")

    def build(self, ctx):
        return nn.Sequential(nn.Linear(8, 900), nn.ReLU(), nn.Linear(900, 900), nn.ReLU(), nn.Linear(900, 1))

    def loss(self, model, batch):
        return Step((model(batch["x"]).squeeze(1) - batch["y"]).square().mean())

    def sample(self, state, ctx):
        return {"one.txt": "a sample of step " + str(ctx.step)}
"""
_WARM = 20


def step_ms(job: PlatformJob, **environ: str) -> list[float]:
    status, said = job.do(TRAINER_PLUGIN="busy:Busy", **environ)
    if status:
        raise SystemExit(f"the job ended with {status}:\n{said}")
    lines = list(read_lines(job.run_dir / "reports/train_metrics.jsonl"))
    return [line["wall_ms"] for line in lines[_WARM:]]


def job_in(folder: Path, steps: int) -> PlatformJob:
    job = PlatformJob(folder, max_steps=steps, checkpoint_every=50, trainer="busy:Busy", hyperparams={})
    (folder / "busy.py").write_text(TRAINER)
    job.job["dataset"] = {**job.job["dataset"], "batch_size": 64}
    job.job["checkpoint"] = {"keep": 3, "every_epochs": 0}
    job.job["steps_per_epoch"] = steps
    job.job["validation"] = None
    job.write()
    return job


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--quick", action="store_true", help="1 round of 100 steps")
    args = parser.parse_args()
    rounds, steps = (1, 100) if args.quick else (args.rounds, args.steps)
    ratios: dict[str, list[float]] = {"p10": [], "median": []}
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "alone").mkdir()
            (folder / "with").mkdir()
            alone, with_uploads = job_in(folder / "alone", steps), job_in(folder / "with", steps)
            with_uploads.job["orchestrated"] = True
            with_uploads.write()
            times = {"alone": step_ms(alone)}
            with Orchestrator(folder, fail_rate=0.3, seed=number, dead_after_s=4.0, dead_s=2.0) as orchestrator:
                orchestrator.submit(with_uploads.job)
                times["with"] = step_ms(with_uploads, **orchestrator.environ())
            for what in ratios:
                of = {key: statistics.quantiles(one, n=10)[0 if what == "p10" else 4] for key, one in times.items()}
                ratios[what].append(of["with"] / of["alone"])
                print(f"round {number + 1}: {what} {of['alone']:.2f} ms alone, {of['with']:.2f} with uploads")
    for what, found in ratios.items():
        print(f"{what}: with uploads / alone {statistics.median(found):.3f} ({min(found):.3f} to {max(found):.3f})")
    print("the goal is at most 1.02")


if __name__ == "__main__":
    main()
