"""A folder with rows and a spec in it, planned as often as one likes: what every tool of this room begins with.

Also here: what a run sets for its whole process (threads, determinism, random streams), put back afterwards.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import torch

from trn.checkpoint import rng
from trn.feed import Dataset, read_sequential
from trn.plan import make_plan, use_spec_folder
from trn.ranks import World
from trn.spec import load_spec
from trn.spec.plan_model import Plan
from trn.testing.memory import Rows, random_rows, table_of, write_rows
from trn.trainer import Trainer, load_trainer

__all__ = ["Workspace", "kept_settings", "scratch_folder"]

_BASE = {
    "config_version": 1,
    "seed": 1,
    "device": "cpu",
    "precision": "none",
    "ddp": False,
    "max_steps": 1_000_000,
    "threads": 1,
}
_ROWS_NAME = "rows.parquet"
_RUNS = "runs"
_BATCH_ROWS = 8
_MOST_BATCHES = 16
_LONGEST = 1_000_000
_KEPT: list[tempfile.TemporaryDirectory[str]] = []


def scratch_folder() -> Path:
    """A folder that goes when this process ends."""
    _KEPT.append(tempfile.TemporaryDirectory(prefix="trn-testing-"))
    return Path(_KEPT[-1].name)


@dataclass
class Workspace:
    """A spec over rows, in `folder`. Nothing outside of it is written."""

    folder: Path
    config: Path
    sets: dict[str, Any]
    """What is laid over the spec, by dotted key."""
    table_path: Path | None = None
    """The rows; None where the spec has its own data."""

    @classmethod
    def make(
        cls,
        trainer: type | str | None,
        rows: Rows | None,
        *,
        folder: Path | None = None,
        columns: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        spec: Mapping[str, Any] | str | Path | None = None,
    ) -> Workspace:
        """`spec` is the path of a whole one, or keys of one. Raises TypeError for what can be neither."""
        folder = scratch_folder() if folder is None else _unused(Path(folder))
        rows = random_rows(columns) if rows is None and columns is not None else rows
        table = None if rows is None else table_of(rows)
        sets: dict[str, Any] = {} if trainer is None else {"trainer": _name_of(trainer)}
        if isinstance(spec, (str, Path)):
            config = Path(spec).resolve()
            use_spec_folder(config.parent)
        elif table is None:
            raise TypeError(
                "expected rows (a table, or arrays by name), columns (types by name), or the path of a spec"
            )
        elif trainer is None:
            raise TypeError("expected a trainer: a class, or its name as a spec has it")
        else:
            config = folder / "spec.json"
            batch_size = max(1, min(_BATCH_ROWS, table.num_rows))
            base = {
                **_BASE,
                **sets,
                "dataset": {"parquet_paths": [_ROWS_NAME], "batch_size": batch_size, "end": "cycle"},
            }
            config.write_text(json.dumps(_laid_over(base, spec or {})))
        if params is not None:
            sets["hyperparams"] = dict(params)
        made = cls(folder, config, sets)
        return made if table is None else made.over(table, _ROWS_NAME)

    def over(self, table: pa.Table, name: str, **dataset: Any) -> Workspace:
        """The same, with these rows in place of its data; `dataset` are more keys of that section."""
        path = write_rows(table, self.folder / name)
        keys = {"parquet_paths": [str(path)], "manifest": None, "mock_batches": None, "cache": None, **dataset}
        laid = {f"dataset.{key}": value for key, value in keys.items()}
        return Workspace(self.folder, self.config, self.sets | laid, path)

    def over_first_rows(self) -> Workspace:
        """The same, with at most so many batches of its own data in place of them all."""
        if self.table_path is not None:
            return self
        part = self.plan("first", max_steps=_LONGEST)[0].dataset
        batches = read_sequential(Dataset.from_json(part.data), part.columns, part.batch_size, _MOST_BATCHES)
        return self.over(pa.Table.from_batches(list(batches)), _ROWS_NAME)

    def load(self) -> Trainer:
        """The trainer, before anything is planned. Raises PlanRefused."""
        return load_trainer(load_spec(self.config, sets=_texts(self.sets)).spec.trainer)

    def plan(self, run_id: str, *, max_steps: int, sets: Mapping[str, Any] | None = None) -> tuple[Plan, Trainer]:
        """The plan of a run of so many steps, and a trainer made for it; `sets` by dotted key.

        Data that end begin again, and a warm-up is cut to what the budget leaves. Raises what planning raises.
        """
        spec = load_spec(self.config, sets=_texts(self.sets)).spec
        laid: dict[str, Any] = {"epochs": None, "max_steps": max_steps, "dataset.end": "cycle"}
        laid |= {"dataset.workers": 0, "dataset.readahead": 0}  # what they give is the same, and here they only cost
        if spec.schedule is not None and spec.schedule.warmup_steps >= max_steps:
            laid["schedule.warmup_steps"] = max_steps // 2
        loaded = load_spec(self.config, sets=_texts({**self.sets, **laid, **(sets or {})}))
        return make_plan(loaded, run_id=run_id, runs_dir=self.folder / _RUNS, world=World())

    def cadences(self, epoch_steps: int, *, validates: bool) -> dict[str, Any]:
        """Epochs of so many steps, each evaluated where the trainer can, on the same rows."""
        sets: dict[str, Any] = {"steps_per_epoch": epoch_steps, "checkpoint_every": 0, "threads": 1}
        sets["gates.min_epochs"] = _LONGEST  # neither target nor patience shall end it
        if not validates:
            return sets | {"validation": None}
        return sets | {
            "validation.parquet_paths": [str(self.table_path)],
            "validation.manifest": None,
            "validation.every_steps": 0,
            "validation.every_epochs": 1,
            "validation.max_batches": 2,
        }


def _unused(folder: Path) -> Path:
    """The folder itself, or where it has runs already, the next one inside of it that has none."""
    folder = folder.resolve()
    names = itertools.chain([folder], (folder / f"again-{number}" for number in itertools.count(1)))
    found = next(one for one in names if not (one / _RUNS).exists())
    found.mkdir(parents=True, exist_ok=True)
    return found


def _laid_over(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        before = merged.get(key)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        merged[key] = _laid_over(before, value) if both else value  # type: ignore[arg-type]  # `both` says so
    return merged


def _texts(sets: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in sets.items()]


def _name_of(trainer: type | str) -> str:
    """A name by which the plan finds it, also for a class that was made inside of a test."""
    if isinstance(trainer, str):
        return trainer
    if not isinstance(trainer, type):
        raise TypeError(
            f"expected a trainer class or its name, found an object of {type(trainer).__name__}:"
            " a resume needs a new object"
        )
    shelf = sys.modules.setdefault(_SHELF, ModuleType(_SHELF))
    setattr(shelf, trainer.__name__, trainer)
    return f"{_SHELF}:{trainer.__name__}"


_SHELF = "trainer_under_test"


@contextlib.contextmanager
def kept_settings() -> Iterator[None]:
    """What a run sets for its whole process is as it was afterwards, and so are the random streams."""
    threads, is_collecting = torch.get_num_threads(), gc.isenabled()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn
    benchmark, cudnn_deterministic = cudnn.benchmark, cudnn.deterministic
    streams = rng.held()
    try:
        yield
    finally:
        rng.put_back(streams)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        cudnn.benchmark, cudnn.deterministic = benchmark, cudnn_deterministic
        gc.unfreeze()
        if not is_collecting:
            gc.disable()
