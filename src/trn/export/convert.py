"""A model to an ONNX file, read back and compared: whose weights they are does not matter here."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from trn.errors import PlanRefused, UsageError
from trn.export.onnx_file import (
    LEAST_OPSET,
    LIBRARIES,
    Initialisers,
    compare_initialisers,
    require_libraries,
    write_onnx,
    written_opset,
)
from trn.export.parity import Parity, Reference, compare, reference_of, refuse_other_outputs
from trn.export.program import Program, first_line, original, trace
from trn.export.quiet import at_rest, quiet
from trn.export.session import check_axes, open_session
from trn.export.sidecar import files_of
from trn.export.trials import example_of, trials_of
from trn.records import Json
from trn.trainer.exporting import Export

__all__ = ["ONNX_NAME", "Converted", "Settings", "convert"]

ONNX_NAME = "model.onnx"


@dataclass(frozen=True)
class Settings:
    """How a file is written and judged."""

    opset: int
    policy: str
    atol: float | None
    threads: int

    def __post_init__(self) -> None:
        if self.opset < LEAST_OPSET:
            raise UsageError(f"opset {self.opset} is not written; expected {LEAST_OPSET} or more.", where="opset")
        if self.atol is not None and not 0 <= self.atol < math.inf:
            raise UsageError(f"a tolerance of {self.atol}; expected a number of 0 or more.", where="atol")


@dataclass(frozen=True)
class Converted:
    """What was made in a folder, and what was found out about it."""

    model: nn.Module
    """As it was traced, on the CPU."""
    program: Program
    opset: int
    """That the file names."""
    shapes: dict[str, list[str | int]]
    """Of the inputs, as the session sees them; empty where none opens."""
    files: list[Json]
    initialisers: Initialisers
    reference: Reference
    parity: Parity


def convert(exports: Sequence[Export], settings: Settings, folder: Path) -> Converted:
    """Trace the first export, write model.onnx into `folder`, and compare it on the inputs of all of them.

    Raises TrainerError for what cannot be traced, written or run, PlanRefused without the libraries or where another
    opset came out.
    """
    require_libraries(*LIBRARIES)
    first, model, path = exports[0], _on_cpu(exports[0].model), folder / ONNX_NAME
    with at_rest(model), quiet():
        example = example_of(first)
        refuse_other_outputs(model, first, example)
        program = trace(model, first, example)
        write_onnx(program, first, settings.opset, path)
        _require_opset(path, settings.opset)
        initialisers = compare_initialisers(path, program, model)
        reference = reference_of(model, first, trials_of(exports))
        shapes: dict[str, list[str | int]] = {}
        try:
            session = open_session(path, settings.threads)
        except Exception as error:  # noqa: BLE001 - a file that the runtime refuses is a result of the comparison
            parity = Parity(f"onnxruntime_init_failed: {type(error).__name__}: {first_line(error)}", {}, {}, {})
        else:
            shapes = check_axes(session, first)
            parity = compare(session, first, reference, initialisers, settings.atol)
    files = files_of(folder, folder.iterdir())
    return Converted(model, program, settings.opset, shapes, files, initialisers, reference, parity)


def _require_opset(path: Path, asked: int) -> None:
    if (opset := written_opset(path)) != asked:
        raise PlanRefused(
            f"opset {asked} was asked for, and the exporter wrote {opset}.",
            where="export.opset",
            hint=f"Ask for one that torch {torch.__version__} writes.",
        )


def _on_cpu(model: nn.Module) -> nn.Module:
    """The model that is traced: of a compiled one the original, of one elsewhere a copy."""
    model = original(model)
    places = {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}
    return model if places <= {"cpu"} else copy.deepcopy(model).cpu()
