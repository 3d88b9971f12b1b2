"""An ONNX file of a traced program, read back: opset, names, which axes are dynamic, and every weight in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trn.errors import PlanRefused, TrainerError
from trn.export.program import Program, first_line
from trn.export.trials import bytes_of
from trn.records import Json
from trn.trainer.exporting import Export

__all__ = [
    "LEAST_OPSET",
    "LIBRARIES",
    "Initialisers",
    "compare_initialisers",
    "require_libraries",
    "written_opset",
    "write_onnx",
]

LEAST_OPSET = 18
LIBRARIES = ("onnx", "onnxscript", "onnxruntime")


def require_libraries(*names: str) -> None:
    """Raise PlanRefused for libraries that are not installed."""
    if missing := [name for name in names if find_spec(name) is None]:
        raise PlanRefused(
            f"needs {' and '.join(missing)}, not installed.", where="export", hint="pip install 'trn-runtime[export]'"
        )


def write_onnx(program: Program, export: Export, opset: int, path: Path, *, external: bool = False) -> None:
    """Write `path`, and beside it the data of a model of 2 GB or more (or where `external`).

    The graph is written as it was traced: the exporter's own optimisation would fold weights into others, and then no
    weight could be found again. Runtimes optimise when they load. Raises TrainerError for what has no ONNX form.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    try:
        made = torch.onnx.export(
            program.exported,
            dynamo=True,
            optimize=False,
            opset_version=opset,
            input_names=list(export.inputs),
            output_names=list(export.outputs),
            verbose=False,
        )
    except Exception as error:
        raise _inexpressible(error) from error
    assert made is not None, "an exporter that raised nothing made a program"
    names: dict[Any, str] = dict(program.symbols)
    made.rename_axes(names)
    # the exporter notes for each node where in the source it comes from: paths of this machine
    ClearMetadataAndDocStringPass()(made.model)
    made.save(path, external_data=external or None)


def written_opset(path: Path) -> int:
    """The opset that the file itself names."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    return next(int(one.version) for one in model.opset_import if one.domain in ("", "ai.onnx"))


def _inexpressible(error: BaseException) -> TrainerError:
    innermost = error
    while innermost.__cause__ is not None:
        innermost = innermost.__cause__
    return TrainerError(
        f"the model has no ONNX form: {type(innermost).__name__}: {first_line(innermost)}.",
        where="export",
        hint="Write that operation with others, or leave it out of the exported model (docs/export.md).",
    )


@dataclass(frozen=True)
class Initialisers:
    """The weights in a file, held against those of the model bit by bit."""

    compared: tuple[str, ...]
    different: tuple[str, ...]
    made_by_exporter: tuple[str, ...]
    """In the file, and neither a weight nor a constant of the model."""
    tied: dict[str, str]
    """Not in the file: the same tensor as another one that is."""
    left_out: tuple[str, ...]
    """Not in the file: the outputs do not depend on them."""

    def to_json(self) -> Json:
        return {
            "compared": len(self.compared),
            "equal": len(self.compared) - len(self.different),
            "different": list(self.different),
            "made_by_exporter": list(self.made_by_exporter),
            "tied": dict(self.tied),
            "left_out": list(self.left_out),
        }


def compare_initialisers(path: Path, program: Program, model: nn.Module) -> Initialisers:
    """Every initialiser of the file against the tensor of its name in the model."""
    own = {**dict(_constants(program)), **_tensors(model)}
    compared, different, made = [], [], []
    for name, data in _file_tensors(path):
        tensor = own.get(name)
        if tensor is None:
            made.append(name)
            continue
        compared.append(name)
        # a complex number is written as two real ones
        real = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
        if data != (_onnx_dtype(real), tuple(real.shape), bytes_of(real)):
            different.append(name)
    tied, left_out = _not_in_file(own, set(compared))
    return Initialisers(tuple(compared), tuple(different), tuple(made), tied, tuple(left_out))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {**dict(model.named_buffers(remove_duplicate=False)), **parameters}


def _constants(program: Program) -> Iterator[tuple[str, Tensor]]:
    for name, value in program.exported.constants.items():
        if isinstance(value, Tensor):
            yield name, value


def _file_tensors(path: Path) -> Iterator[tuple[str, tuple[int, tuple[int, ...], bytes]]]:
    import onnx
    from onnx import numpy_helper

    for one in onnx.load(path).graph.initializer:
        array = numpy_helper.to_array(one)
        yield one.name, (one.data_type, tuple(array.shape), array.tobytes())


def _onnx_dtype(tensor: Tensor) -> int:
    from onnx import TensorProto

    return int(TensorProto.DataType.Value(_ONNX_NAMES[tensor.dtype])) if tensor.dtype in _ONNX_NAMES else -1


_ONNX_NAMES: Mapping[torch.dtype, str] = {
    torch.float32: "FLOAT",
    torch.float64: "DOUBLE",
    torch.float16: "FLOAT16",
    torch.bfloat16: "BFLOAT16",
    torch.bool: "BOOL",
    torch.uint8: "UINT8",
    torch.int8: "INT8",
    torch.int16: "INT16",
    torch.int32: "INT32",
    torch.int64: "INT64",
}


def _not_in_file(own: Mapping[str, Tensor], compared: set[str]) -> tuple[dict[str, str], list[str]]:
    there: dict[Any, str] = {_place(own[name]): name for name in own if name in compared}
    tied, left_out = {}, []
    for name, tensor in own.items():
        if name in compared:
            continue
        if (other := there.get(_place(tensor))) is not None:
            tied[name] = other
        else:
            left_out.append(name)
    return tied, left_out


def _place(tensor: Tensor) -> Any:
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tuple(tensor.stride())
