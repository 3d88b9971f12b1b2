"""ONNX Runtime on the CPU: the file opened as others will open it, its names and axes held against the export."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from trn.errors import TrainerError
from trn.trainer.exporting import Export

__all__ = ["PROVIDER", "check_axes", "open_session", "run_session"]

PROVIDER = "CPUExecutionProvider"
_ERRORS_ONLY = 3


def open_session(path: Path, threads: int) -> Any:
    """An InferenceSession of the file; raises what the runtime raises."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(_ERRORS_ONLY)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=[PROVIDER])


def run_session(session: Any, inputs: Mapping[str, Tensor]) -> list[np.ndarray[Any, Any]]:
    """The outputs in their order."""
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in inputs.items()}
    return [np.asarray(one) for one in session.run(None, arrays)]


def check_axes(session: Any, export: Export) -> dict[str, list[str | int]]:
    """The shape of each input in the file. Raises TrainerError unless names and dynamic axes are the declared ones."""
    found = {one.name: list(one.shape) for one in session.get_inputs()}
    outputs = [one.name for one in session.get_outputs()]
    if list(found) != list(export.inputs) or outputs != list(export.outputs):
        raise TrainerError(
            f"the file has the inputs {', '.join(found)} and the outputs {', '.join(outputs)}.",
            where="export",
            hint=f"Export declares {', '.join(export.inputs)} and {', '.join(export.outputs)}: an output that is an "
            "input, or is given twice, needs a .clone() in the model.",
        )
    for problem in _axis_problems(found, export):
        raise problem
    return found


def _axis_problems(found: Mapping[str, list[str | int]], export: Export) -> Iterator[TrainerError]:
    for name, shape in found.items():
        declared = export.dynamic.get(name, {})
        for axis, size in enumerate(shape):
            if (axis in declared) == isinstance(size, int):
                is_said = "dynamic" if axis in declared else "fixed"
                yield TrainerError(
                    f"it is declared {is_said}, and the file has {size!r}.",
                    where=f"export: input {name!r}, axis {axis}",
                )
