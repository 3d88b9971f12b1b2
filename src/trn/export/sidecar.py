"""NAME.meta.json beside an export: what it was made of, what made it, and each of its files with its sha256.

Strict JSON, one object; `meta_sha256` is the sha256 of the canonical JSON of all other keys. Published last: without it
there is no export, whatever else lies there. A reader refuses a wrong own digest, and files that are not as it says.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from trn.checkpoint.meta import CheckpointMeta
from trn.files import sha256_file
from trn.records import SCHEMA_VERSION, Json, pretty_json, sha256_json, utc_now
from trn.spec.plan_model import Plan

__all__ = ["FORMATS", "files_of", "head_of", "sidecar_bytes", "sidecar_name", "versions_of"]

FORMATS = ("onnx", "safetensors", "hf")
_LIBRARIES = {
    "onnx": ("torch", "onnx", "onnxscript", "onnxruntime"),
    "safetensors": ("torch", "safetensors"),
    "hf": ("torch", "transformers", "safetensors"),
}
_NAMES = {"onnx": "model.onnx", "safetensors": "model.safetensors", "hf": "hf"}


def sidecar_name(export_format: str) -> str:
    return f"{_NAMES[export_format]}.meta.json"


def head_of(plan: Plan, meta: CheckpointMeta, weights: str, code_sha256: str) -> Json:
    """Whose weights: run, plan, code, checkpoint; `weights` is live, or average for the moving average of them."""
    return {
        "run_id": plan.run_id,
        "plan_fingerprint": meta.plan_fingerprint,
        "code_sha256": code_sha256,
        "checkpoint": {"file": meta.file, "sha256": meta.sha256, "step": meta.step, "epoch": meta.epoch},
        "weights": weights,
    }


def files_of(folder: Path, paths: Iterable[Path]) -> list[Json]:
    """Name below `folder`, sha256 and size of each file."""
    return [
        {
            "name": path.relative_to(folder).as_posix(),
            "sha256": sha256_file(path),
            "size_bytes": path.stat().st_size,
        }
        for path in sorted(paths)
    ]


def versions_of(export_format: str) -> dict[str, str]:
    """Of all that has a part in the files; "" for what says none."""
    return {
        "python": platform.python_version(),
        "trn": _version("trn-runtime"),
        **{name: _version(name) for name in _LIBRARIES[export_format]},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def sidecar_bytes(export_format: str, head: Json, files: list[Json], details: Json) -> bytes:
    """The file's content: `details` are the format's own keys."""
    value: Json = {
        "schema_version": SCHEMA_VERSION,
        "format": export_format,
        "created_at": utc_now(),
        **head,
        "files": files,
        "versions": versions_of(export_format),
        **details,
    }
    return pretty_json(value | {"meta_sha256": sha256_json(value)})
