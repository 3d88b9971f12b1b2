"""Are two runs the same, bit for bit? The oracle is always the run that nobody interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trn.checkpoint.discover import load_payload
from trn.checkpoint.meta import CheckpointMeta, listed_steps, meta_name
from trn.gates import CLOCKED_KEYS
from trn.records import Json, deterministic_part, ending_of, read_json, read_lines


def lines(run_dir: Path, name: str) -> list[Json]:
    """The deterministic part of each line of a metrics file."""
    return [deterministic_part(line) for line in read_lines(run_dir / "reports" / name)]


def events(run_dir: Path, kind: str | None = None) -> list[Json]:
    return [one for one in read_lines(run_dir / "reports/events.jsonl") if kind in (None, one["event"])]


def outcome(run_dir: Path) -> Json:
    return read_json(run_dir / "reports/outcome.json")


def final_payload(run_dir: Path) -> dict[str, Any]:
    """All that the newest checkpoint holds, but for what a clock or a sensor gave."""
    folder = run_dir / "checkpoints"
    meta = CheckpointMeta.read(folder / meta_name(listed_steps(folder)[0]))
    payload = load_payload(run_dir, meta)
    for part in ("gates", "tally"):
        kept = {key: value for key, value in payload["progress"][part].items() if key not in CLOCKED_KEYS}
        payload["progress"][part] = kept
    return payload


def epoch_artifacts(run_dir: Path) -> dict[str, Json]:
    """File name -> the metadata of an epoch, but for its time."""
    found = {path.name: read_json(path) for path in (run_dir / "checkpoints").glob("epoch-*.metadata.json")}
    assert all(metadata.pop("wall_seconds") >= 0 for metadata in found.values())
    return found


def differences(path: str, a: Any, b: Any) -> list[str]:
    """Dotted paths at which two trees of tensors and plain values differ in any bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
        return [] if same else [path]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [one for key in a for one in differences(f"{path}.{key}", a[key], b[key])]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [one for i, (x, y) in enumerate(zip(a, b, strict=True)) for one in differences(f"{path}[{i}]", x, y)]
    return [] if a == b and type(a) is type(b) else [path]


def assert_identical(run_dir: Path, oracle: Path) -> None:
    """Weights, optimizer, random streams, cursor, every metrics line, samples and the final state of the outcome."""
    for name in ("train_metrics.jsonl", "val_metrics.jsonl"):
        assert lines(run_dir, name) == lines(oracle, name), name
    assert differences("", final_payload(run_dir), final_payload(oracle)) == []
    assert epoch_artifacts(run_dir) == epoch_artifacts(oracle)
    for path in sorted((oracle / "samples").iterdir()):
        assert (run_dir / "samples" / path.name).read_bytes() == path.read_bytes(), path.name
    mine, theirs = outcome(run_dir), outcome(oracle)
    for key in ("status", "step", "final", "best", "epochs_completed", "exit_code"):
        assert mine[key] == theirs[key], key
    assert len(events(run_dir, ending_of(mine["status"]))) == 1
    numbers = [event["seq"] for event in events(run_dir)]
    assert numbers == list(range(1, len(numbers) + 1))
