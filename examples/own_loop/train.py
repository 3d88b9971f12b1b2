"""A loop by hand, and a run around it.

python train.py [RUN_ID]        begin the run, or go on with it
"""

import sys
from pathlib import Path

import torch
from torch import nn

import trn


def main(run_id: str) -> int:
    with trn.open_run(Path(__file__).with_name("spec.yaml"), run_id=run_id) as run:
        width, learning_rate = run.hyperparams["width"], run.hyperparams["learning_rate"]
        layers = (nn.Linear(6, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        model = nn.Sequential(*layers).to(run.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, run.plan.budget.max_steps)
        run.track(model=model, optimizer=optimizer, scheduler=scheduler)

        @run.evaluation
        def evaluate(batches):
            model.eval()
            total, rows = 0.0, 0
            with torch.no_grad():
                for batch in batches:
                    total += nn.functional.mse_loss(model(batch["x"]).squeeze(1), batch["y"], reduction="sum").item()
                    rows += len(batch["y"])
            model.train()
            return {"val_loss": total / rows}

        for batch in run.feed:
            loss = nn.functional.mse_loss(model(batch["x"].to(run.device)).squeeze(1), batch["y"].to(run.device))
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            run.gate(train_loss=loss, grad_norm=norm)  # raises here, before the update, if one is not finite
            optimizer.step()
            run.log(lr=scheduler.get_last_lr()[0])
            scheduler.step()

    print(f"{run.outcome.status} at step {run.outcome.step}: {run.outcome.reason}")
    return run.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "own-loop"))
