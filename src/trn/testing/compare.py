"""Are two trees, or the ends of two runs, the same bit for bit? And where do they part first?

What a clock or a sensor gave is left out; everything else has to be equal, the sign of a zero too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from trn.checkpoint.discover import load_payload
from trn.checkpoint.meta import CheckpointMeta, listed_steps, meta_name
from trn.gates import CLOCKED_KEYS
from trn.records import Json, deterministic_part, read_json, read_lines

__all__ = [
    "Difference",
    "assert_same_end",
    "differences",
    "epoch_artifacts",
    "final_payload",
    "own_files",
    "first_difference",
    "lines",
]

_METRICS = ("train_metrics.jsonl", "val_metrics.jsonl")
_OUTCOME = ("status", "step", "final", "best", "epochs_completed", "exit_code")


@dataclass(frozen=True)
class Difference:
    """One place at which two trees are not the same, and what each has there."""

    path: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.path}: expected {self.expected}, found {self.found}"


def differences(expected: Any, found: Any, path: str = "") -> list[Difference]:
    """All places where two trees of tensors, arrays and plain values differ in any bit, in the order of `expected`.

    An object of which nothing is known but its address, or that cannot be compared, is passed over.
    """
    return list(_differences(path, expected, found))


def first_difference(expected: Any, found: Any, path: str = "") -> Difference | None:
    """The first of `differences`, without looking further; None where there is none."""
    return next(_differences(path, expected, found), None)


def assert_same_end(run_dir: Path, expected: Path) -> None:
    """Raise AssertionError, naming what differs first, unless two runs of one plan came to the same end.

    Compared are every line of the metrics, the newest checkpoint (weights, optimizer, random streams, cursor, what the
    gates remember), the artifacts of epochs, samples and the outcome; never times. Either can have been stopped, killed
    and resumed, as often as it likes.
    """
    run_dir, expected = Path(run_dir), Path(expected)
    for where, one, other in _parts(expected, run_dir):
        if (found := first_difference(one, other)) is not None:
            place = ", ".join(part for part in (where, found.path.lstrip(".")) if part)
            raise AssertionError(
                f"{run_dir.name} is not {expected.name}: {place}: expected {found.expected}, found {found.found}."
                " This is what differs first."
            )


def lines(run_dir: Path, name: str) -> list[Json]:
    """The deterministic part of each line of a metrics file."""
    return [deterministic_part(line) for line in read_lines(run_dir / "reports" / name)]


def final_payload(run_dir: Path) -> dict[str, Any]:
    """All that the newest checkpoint holds, but for what a clock or a sensor gave."""
    folder = run_dir / "checkpoints"
    steps = listed_steps(folder)
    assert steps, f"{run_dir}: expected a run with a checkpoint, found none"
    payload = load_payload(run_dir, CheckpointMeta.read(folder / meta_name(steps[0])))
    for part in ("gates", "tally"):
        kept = {key: value for key, value in payload["progress"][part].items() if key not in CLOCKED_KEYS}
        payload["progress"][part] = kept
    return payload


def own_files(run_dir: Path) -> list[Json]:
    """What the newest checkpoint says of the folder that the trainer's `save_checkpoint` wrote; empty without one."""
    folder = run_dir / "checkpoints"
    return CheckpointMeta.read(folder / meta_name(listed_steps(folder)[0])).files or []


def epoch_artifacts(run_dir: Path) -> dict[str, Json]:
    """File name -> the metadata of an epoch, but for its time."""
    found = {path.name: read_json(path) for path in sorted((run_dir / "checkpoints").glob("epoch-*.metadata.json"))}
    assert all(metadata.pop("wall_seconds") >= 0 for metadata in found.values()), f"{run_dir}: a time below zero"
    return found


def _parts(expected: Path, found: Path) -> Iterator[tuple[str, Any, Any]]:
    """What is compared, in the order in which a difference says most about its cause."""
    for name in _METRICS:
        ours, theirs = lines(expected, name), lines(found, name)
        for one, other in zip(ours, theirs, strict=False):
            yield f"{name}, step {one.get('step')}", one, other
        yield f"{name}, steps", [one.get("step") for one in ours], [one.get("step") for one in theirs]
    yield "the newest checkpoint", final_payload(expected), final_payload(found)
    yield "its folder", own_files(expected), own_files(found)
    yield "epochs", epoch_artifacts(expected), epoch_artifacts(found)
    yield "samples", _samples(expected), _samples(found)
    yield "outcome.json", _outcome(expected), _outcome(found)


def _samples(run_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run_dir / "samples").glob("step-*"))}


def _outcome(run_dir: Path) -> Json | None:
    """None where the run was made without one, see `run_steps`."""
    path = run_dir / "reports/outcome.json"
    return {key: value for key, value in read_json(path).items() if key in _OUTCOME} if path.exists() else None


def _differences(path: str, a: Any, b: Any) -> Iterator[Difference]:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        yield from _of_tensors(path, a, b)
    elif isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        if a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes():
            yield Difference(path, _shown(a), _shown(b))
    elif isinstance(a, Mapping) and isinstance(b, Mapping):
        yield from _of_mappings(path, a, b)
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        for i, (x, y) in enumerate(zip(a, b, strict=False)):
            yield from _differences(f"{path}[{i}]", x, y)
        if len(a) != len(b):
            yield Difference(path, f"{len(a)} items", f"{len(b)} items")
    elif type(a) is not type(b):
        yield Difference(path, _shown(a), _shown(b))
    elif is_dataclass(a):
        for one in fields(a):
            yield from _differences(f"{path}.{one.name}", getattr(a, one.name), getattr(b, one.name))
    elif isinstance(a, (pa.RecordBatch, pa.Table, pa.Array, pa.ChunkedArray)):
        if not a.equals(b):
            yield Difference(path, _shown(a), "other values")
    elif isinstance(a, float):
        if repr(a) != repr(b):  # 0.0 and -0.0 are equal and not the same
            yield Difference(path, repr(a), repr(b))
    elif getattr(type(a), "__eq__") is not object.__eq__ and not _equal(a, b):  # noqa: B009 - its type is not that of object's
        yield Difference(path, _shown(a), _shown(b))


def _equal(a: Any, b: Any) -> bool:
    """True too for values that do not say whether they are, such as tables of other libraries."""
    try:
        return bool(a == b)
    except Exception:  # noqa: BLE001 - whatever a stranger's __eq__ may raise
        return True


def _of_mappings(path: str, a: Mapping[Any, Any], b: Mapping[Any, Any]) -> Iterator[Difference]:
    for key in a:
        if key in b:
            yield from _differences(f"{path}.{key}", a[key], b[key])
        else:
            yield Difference(f"{path}.{key}", _shown(a[key]), "nothing")
    for key in b:
        if key not in a:
            yield Difference(f"{path}.{key}", "nothing", _shown(b[key]))


def _of_tensors(path: str, a: torch.Tensor, b: torch.Tensor) -> Iterator[Difference]:
    if (a.dtype, a.shape, a.layout) != (b.dtype, b.shape, b.layout):
        yield Difference(path, _shown(a), _shown(b))
        return
    if a.layout is not torch.strided:
        a, b = a.to_dense(), b.to_dense()
    differs = _bytes_of(a) != _bytes_of(b)
    if differs.any():
        number = int(differs.any(dim=1).nonzero()[0, 0])
        place = f"{path}{[int(i) for i in np.unravel_index(number, tuple(a.shape))]}" if a.dim() else path
        yield Difference(place, repr(a.flatten()[number].item()), repr(b.flatten()[number].item()))


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """Its bits, one row an element."""
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten()
    return flat.view(torch.uint8).view(flat.numel(), -1) if flat.numel() else torch.zeros(0, 1, dtype=torch.uint8)


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"an array {value.dtype} {list(value.shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
