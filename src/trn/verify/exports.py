"""What lies in exports/: each file is what its sidecar says, made of a checkpoint of this run; the comparison fits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from trn.checkpoint.meta import CheckpointMeta, listed_steps, meta_name
from trn.files import sha256_file
from trn.records import Json, JsonError, read_json, read_lines, sha256_json
from trn.verify.finding import Finding, Run

__all__ = ["check_exports"]

_PARITY = "reports/onnx_parity.json"
_ONNX = "model.onnx"
_SIDECAR = ".meta.json"
_REJECTED = "exports/rejected"
_PLACES = ("exports", _REJECTED)
_MAIN = {"onnx": _ONNX, "safetensors": "model.safetensors", "hf": "hf/config.json"}
"""The file that an export of a format is nothing without."""


def check_exports(run: Run) -> Iterator[Finding]:
    """Every sidecar with each of its files, files that no sidecar names, and the report on the ONNX file."""
    known: set[str] | None = None
    onnx: dict[str, Json] = {}
    for place in _PLACES:
        folder = run.folder / place
        for path in sorted(folder.glob(f"*{_SIDECAR}")) if folder.is_dir() else ():
            known = _known_checkpoints(run) if known is None else known
            name = f"{place}/{path.name}"
            try:
                sidecar = _read_sidecar(path)
                problem = _problem(run, sidecar, known) or _unfit(place, path.name, sidecar)
                found = [Finding(f"{name}: {sidecar['format']}", problem), *_files(folder, place, sidecar)]
            except JsonError as error:
                yield Finding(name, str(error))
                continue
            except (OSError, KeyError, TypeError, ValueError) as error:  # whatever somebody wrote into it
                yield Finding(name, f"{type(error).__name__}: {error}")
                continue
            yield from found
            if sidecar["format"] == "onnx":
                onnx[f"{place}/{_ONNX}"] = sidecar
        yield from _strangers(folder, place)
    yield from _parity(run, onnx)


def _read_sidecar(path: Path) -> Json:
    value = read_json(path)
    if value.pop("meta_sha256", None) != sha256_json(value):
        raise JsonError("its own digest is wrong")
    return value


def _known_checkpoints(run: Run) -> set[str]:
    """The sha256 of each checkpoint that the run has, or has ever told of."""
    events = read_lines(run.reports / "events.jsonl")
    known = {str(event["sha256"]) for event in events if event.get("event") == "checkpoint"}
    for step in listed_steps(run.checkpoints):
        try:
            known.add(CheckpointMeta.read(run.checkpoints / meta_name(step)).sha256)
        except (JsonError, OSError):
            continue  # a finding of the checkpoints' own check
    origin = run.reports / "forked_from.json"
    return known | {str(read_json(origin)["sha256"])} if origin.exists() else known


def _problem(run: Run, sidecar: Json, known: set[str]) -> str | None:
    if sidecar["run_id"] != run.plan.run_id or sidecar["plan_fingerprint"] not in run.plan.lineage:
        return "it belongs to another run or plan"
    if sidecar["checkpoint"]["sha256"] not in known:
        return f"it was made of {sidecar['checkpoint']['file']} with a sha256 that this run has no record of"
    return None


def _unfit(place: str, name: str, sidecar: Json) -> str | None:
    """What is wrong with a sidecar for the place where it lies."""
    main = _MAIN.get(sidecar["format"])
    if main is None or name != f"{main.split('/')[0]}{_SIDECAR}":
        return f"it is not where a sidecar of format {sidecar['format']!r} belongs"
    if main not in [one["name"] for one in sidecar["files"]]:
        return f"it does not name {main}"
    parity = sidecar["parity"] if sidecar["format"] == "onnx" else {"status": "passed", "policy": "fail"}
    is_rejected = (parity["status"], parity["policy"]) == ("failed", "fail")
    if is_rejected is not (place == _REJECTED):
        return f"its comparison is {parity['status']} under the policy {parity['policy']}: it does not belong here"
    return None


def _files(folder: Path, place: str, sidecar: Json) -> Iterator[Finding]:
    for one in sidecar["files"]:
        name = str(one["name"])
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            yield Finding(f"{place}/{name}", "it leads out of the folder")
        elif not (folder / name).is_file():
            yield Finding(f"{place}/{name}", "it is gone")
        else:
            size = (folder / name).stat().st_size
            same = size == one["size_bytes"] and sha256_file(folder / name) == one["sha256"]
            problem = None if same else "its size or sha256 is not the one in its sidecar: it was changed or swapped"
            yield Finding(f"{place}/{name}: sha256 {str(one['sha256'])[:12]}", problem)


def _strangers(folder: Path, place: str) -> Iterator[Finding]:
    """Files that no sidecar speaks for: of an export that a crash broke off, or put there by somebody."""
    if not folder.is_dir():
        return
    named: set[str] = set()
    for path in folder.glob(f"*{_SIDECAR}"):
        try:
            named |= {str(one["name"]).split("/")[0] for one in read_json(path)["files"]}
        except (JsonError, OSError, KeyError, TypeError):
            continue  # told already
    for entry in sorted(folder.iterdir()):
        name = entry.name
        if not name.startswith(".") and not name.endswith(_SIDECAR) and name not in named | {"rejected"}:
            yield Finding(f"{place}/{name}: no sidecar names it; do not use it, export again")


def _parity(run: Run, onnx: dict[str, Json]) -> Iterator[Finding]:
    path = run.folder / _PARITY
    if not path.exists():
        for name in onnx:
            yield Finding(_PARITY, f"it is missing, and there is {name}")
        return
    report = read_json(path)
    status = report["status"]
    if report["run_id"] != run.plan.run_id or report["plan_fingerprint"] not in run.plan.lineage:
        yield Finding(_PARITY, "it belongs to another run or plan")
    if status not in ("passed", "failed", "skipped") or report["passed"] is not {"passed": True, "failed": False}.get(
        status
    ):
        yield Finding(_PARITY, f"status {status!r} and passed {report['passed']!r} do not go together")
    if status == "passed" and f"exports/{_ONNX}" not in onnx:
        # a crash between the renames of an export; the next one makes all of it again
        yield Finding(f"{_PARITY}: of an export that is not there; export again")
        return
    sidecar = onnx.get(str(report["onnx"]))
    if status == "skipped" and f"exports/{_ONNX}" in onnx:
        yield Finding(_PARITY, "it says skipped, and there is an ONNX file")
    if sidecar is not None:
        sha256 = next((one["sha256"] for one in sidecar["files"] if one["name"] == _ONNX), None)
        if report["onnx_sha256"] != sha256 or sidecar["parity"]["status"] != status:
            yield Finding(_PARITY, f"it is not about {report['onnx']}, or says otherwise than its sidecar")
    yield Finding(f"{_PARITY}: {status}")
