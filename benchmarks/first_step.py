"""The start of a training as a person writes it: the data, the model, the optimizer, one step, one line of JSON.

    python benchmarks/first_step.py FOLDER     with train.parquet in it; writes FOLDER/by_hand.jsonl

`startup.py` times it against `trn run` on the same data. It imports what it needs and nothing else.
"""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch import nn

BATCH, FEATURES, HIDDEN, CLASSES = 32, 64, 128, 16


def main(folder: Path) -> None:
    table = pq.read_table(folder / "train.parquet").combine_chunks()
    x_BF = torch.from_numpy(table["x"].chunk(0).flatten().to_numpy().copy()).view(-1, FEATURES)
    y_B = torch.from_numpy(table["y"].to_numpy().copy())
    torch.set_num_threads(1)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    rows = torch.randperm(len(x_BF))[:BATCH]
    loss = nn.functional.cross_entropy(model(x_BF[rows]), y_B[rows])
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with open(folder / "by_hand.jsonl", "w") as journal:
        journal.write(json.dumps({"step": 1, "train_loss": loss.item(), "grad_norm": norm.item()}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
