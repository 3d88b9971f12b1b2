"""The file of the first weights, settled by its content: what is loaded later is this file, or nothing."""

from __future__ import annotations

from pathlib import Path

from trn.errors import PlanRefused
from trn.files import sha256_file
from trn.records import JsonError, read_json
from trn.spec import Spec
from trn.spec.plan_model import WeightsPlan

__all__ = ["plan_weights"]

_WHERE = "weights.path"


def plan_weights(spec: Spec) -> WeightsPlan | None:
    """Raises PlanRefused for a file that cannot be read, or is not the one that the meta beside it tells of."""
    if spec.weights is None:
        return None
    path = Path(spec.weights.path)
    if path.is_dir():
        raise PlanRefused(f"{str(path)!r} is a folder.", where=_WHERE, hint="Name the file of tensors in it.")
    try:
        if not path.is_file():
            raise PlanRefused(f"there is no file {str(path)!r}.", where=_WHERE)
        sha256, size_bytes = sha256_file(path), path.stat().st_size
    except OSError as error:
        raise PlanRefused(f"{str(path)!r} cannot be read: {error.strerror or error}.", where=_WHERE) from error
    _require_committed(path, sha256)
    return WeightsPlan(path=str(path), sha256=sha256, size_bytes=size_bytes, allow_partial=spec.weights.allow_partial)


def _require_committed(path: Path, sha256: str) -> None:
    """Of a checkpoint of a run, its meta says which bytes were committed."""
    meta = path.with_suffix(".meta.json")
    if path.suffix != ".pt" or not meta.exists():
        return
    try:
        committed = read_json(meta).get("sha256")
    except (JsonError, OSError) as error:
        raise PlanRefused(
            f"{meta.name} beside it cannot be read: {error}.", where=_WHERE, hint="Name another checkpoint."
        ) from error
    if committed != sha256:
        raise PlanRefused(
            f"{str(path)!r} is not the checkpoint that {meta.name} tells of: its sha256 is another one.",
            where=_WHERE,
            hint="It is torn, or was replaced just now: try again, or name another checkpoint.",
        )
