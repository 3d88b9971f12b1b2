"""What the proof costs: our export with its comparison, over torch.onnx.export alone, for the small models.

    python benchmarks/export.py [--rounds 5] [--quick]

Alone is what a script does: `torch.onnx.export(model, example, dynamo=True, dynamic_shapes=...)` with its defaults, to
a file. Ours is `trn.export.convert`: torch.export, the file, every weight read back and compared, ONNX Runtime against
PyTorch in float32 and float64 on four to eight sizes of input. Both run in turn in one process, after one export of
each that is not counted (it imports the exporter); CPU time is compared, the median of the rounds and of their ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from trn.export.convert import Settings, convert
from trn.export.quiet import quiet
from trn.trainer import Export

MOST = 1.3
SETTINGS = Settings(opset=18, policy="fail", atol=None, threads=1)


class Block(nn.Module):
    """Causal attention and a feed-forward net, each behind a norm and beside a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_BTF: Tensor) -> Tensor:
        batch, time_steps, width = x_BTF.shape
        q, k, v = (
            part.view(batch, time_steps, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(self.first(x_BTF)).chunk(3, dim=-1)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTF = x_BTF + self.out(mixed.transpose(1, 2).reshape(batch, time_steps, width))
        return x_BTF + self.feed(self.second(x_BTF))


def mlp() -> Export:
    model = nn.Sequential(nn.Linear(32, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 16))
    return Export(model, {"x": torch.randn(8, 32)}, ("y",), {"x": {0: "batch"}})


def convolution() -> Export:
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 48, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10)),
    )
    return Export(model, {"image": torch.randn(8, 3, 32, 32)}, ("logits",), {"image": {0: "batch"}})


def transformer() -> Export:
    model = nn.Sequential(nn.Embedding(256, 128), *(Block(128, 4) for _ in range(4)), nn.Linear(128, 256))
    return Export(model, {"tokens": torch.randint(256, (8, 64))}, ("logits",), {"tokens": {0: "batch", 1: "time"}})


MODELS: dict[str, Callable[[], Export]] = {"mlp": mlp, "conv": convolution, "transformer": transformer}


def alone(export: Export, folder: Path) -> None:
    shapes = tuple(
        {axis: torch.export.Dim(word, min=1) for axis, word in export.dynamic.get(name, {}).items()}
        for name in export.inputs
    )
    export.model.eval()
    with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(
            export.model,
            tuple(export.inputs.values()),
            str(folder / "model.onnx"),
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=list(export.inputs),
            output_names=list(export.outputs),
            external_data=False,
        )


def ours(export: Export, folder: Path) -> None:
    fewer = [replace(export, inputs={name: tensor[:size] for name, tensor in export.inputs.items()}) for size in (1, 3)]
    if reason := convert([export, *fewer], SETTINGS, folder).parity.reason:
        raise SystemExit(f"the comparison failed: {reason}")


def cpu_s(what: Callable[[Export, Path], None], export: Export) -> float:
    with tempfile.TemporaryDirectory() as folder:
        began_s = time.process_time()
        what(export, Path(folder))
        return time.process_time() - began_s


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two rounds")
    args = parser.parse_args()
    torch.set_num_threads(1)
    is_met = True
    for name, make in MODELS.items():
        torch.manual_seed(1)
        export = make()
        size = sum(parameter.numel() for parameter in export.model.parameters())
        rounds = []
        with quiet():
            for _ in range((2 if args.quick else args.rounds) + 1):
                rounds.append((cpu_s(alone, export), cpu_s(ours, export)))
        others, own = zip(*rounds[1:], strict=True)
        ratios = sorted(mine / other for other, mine in rounds[1:])
        ratio = statistics.median(ratios)
        is_met &= ratio <= MOST
        print(
            f"{name:12} {size:8,} parameters: alone {statistics.median(others):5.2f} s, "
            f"ours {statistics.median(own):5.2f} s, ratio {ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )
    print(f"goal: at most {MOST}: {'met' if is_met else 'missed'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
