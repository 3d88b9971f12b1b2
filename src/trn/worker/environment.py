"""The variables that a worker is told by, read once into values. An empty one counts as unset.

WORKER_MODE                   trainer; inference says plainly that it is not built
TRAINER_JOB_SPEC_PATH         the job file; /app/.cozy/trainer_job.json where nothing is said
TRAINER_PLUGIN                the trainer: fills what the job leaves open, and never differs from it
TRAINER_ALLOW_PLUGINS         comma list: what a job that came from an orchestrator may name besides entry points
TRAINER_ARTIFACTS_DIR         runs/ is in it, and what follows: checkpoints/, samples/, metrics/events.jsonl
TRAINER_CHECKPOINTS_DIR, TRAINER_SAMPLES_DIR, TRAINER_EVENTS_PATH     each by itself
TRAINER_CACHE_DIR             inputs by their digest, and decoded data; .trn/ beside the runs
TRAINER_MAX_RUNTIME_SECONDS, TRAINER_CANCEL_FILE, TRAINER_CANCELLED
TRAINER_MEMORY_BYTES          what the trainer's process may allocate
TRAINER_STOP_SECONDS          how long the trainer's process may take to end once it is asked to; 600
TRAINER_UPLOAD_SECONDS        how long uploads may take after the end; 600
TRAINER_ORCHESTRATED, TRAINER_ORCHESTRATOR_URL, TRAINER_LEASE_WAIT_SECONDS
TRAINER_CAPABILITY_TOKEN[_FILE], TRAINER_PUBLIC_KEY_FILE, TRAINER_TOKEN_HOSTS
TRAINER_UPLOAD_{METRICS,CHECKPOINT,SAMPLE,TERMINAL}_URL
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trn.errors import UsageError
from trn.transfer.places import place_of
from trn.worker.refusal import StartupRefused

__all__ = ["UPLOADS", "Settings", "read_settings"]

UPLOADS = ("metrics", "checkpoint", "sample", "terminal")

_JOB_SPEC_PATH = "/app/.cozy/trainer_job.json"
_TRUE = frozenset({"1", "true", "t", "yes", "y"})
_FALSE = frozenset({"0", "false", "f", "no", "n"})
_STOP_S = 600.0
_UPLOAD_S = 600.0


@dataclass(frozen=True)
class Settings:
    """What the environment says; None and empty where it is silent."""

    job_spec_path: Path
    plugin: str | None = None
    allowed_plugins: frozenset[str] = frozenset()
    runs_dir: Path | None = None
    checkpoints_dir: Path | None = None
    samples_dir: Path | None = None
    events_path: Path | None = None
    cache_dir: Path | None = None
    max_runtime_s: float | None = None
    cancel_file: Path | None = None
    is_cancelled: bool = False
    memory_bytes: int | None = None
    stop_s: float = _STOP_S
    upload_s: float = _UPLOAD_S
    is_orchestrated: bool | None = None
    orchestrator_url: str | None = None
    lease_wait_s: float = 0.0
    uploads: Mapping[str, str] = field(default_factory=dict)
    token_hosts: frozenset[str] | None = None
    public_key_file: Path | None = None


def read_settings(environ: Mapping[str, str]) -> Settings:
    """What the worker was told. Raises UsageError for the mode, StartupRefused for the rest."""
    _require_mode(environ)
    path = _path(environ, "TRAINER_JOB_SPEC_PATH") or Path(_JOB_SPEC_PATH)
    if not path.is_file():
        is_named = bool(_text(environ, "TRAINER_JOB_SPEC_PATH"))
        raise StartupRefused(
            "missing_job_spec_path",
            f"{'the job file' if is_named else 'it is not set, and the usual place'} {path} is no file.",
            where="TRAINER_JOB_SPEC_PATH",
            hint="Name the job's JSON file.",
        )
    artifacts = _folder(environ, "TRAINER_ARTIFACTS_DIR")
    runs_dir = _folder(environ, "TRN_RUNS_DIR") or (artifacts / "runs" if artifacts else None)
    checkpoints = _folder(environ, "TRAINER_CHECKPOINTS_DIR") or (artifacts / "checkpoints" if artifacts else None)
    samples = _folder(environ, "TRAINER_SAMPLES_DIR") or (artifacts / "samples" if artifacts else None)
    return Settings(
        job_spec_path=path,
        plugin=_text(environ, "TRAINER_PLUGIN"),
        allowed_plugins=_words(environ, "TRAINER_ALLOW_PLUGINS") or frozenset(),
        runs_dir=runs_dir,
        checkpoints_dir=checkpoints,
        samples_dir=samples,
        events_path=events_path_of(environ),
        cache_dir=_folder(environ, "TRAINER_CACHE_DIR"),
        max_runtime_s=_seconds(environ, "TRAINER_MAX_RUNTIME_SECONDS", zero="no limit"),
        cancel_file=_path(environ, "TRAINER_CANCEL_FILE"),
        is_cancelled=_switch(environ, "TRAINER_CANCELLED") or False,
        memory_bytes=_bytes(environ, "TRAINER_MEMORY_BYTES"),
        stop_s=_or(_seconds(environ, "TRAINER_STOP_SECONDS", zero="no limit"), _STOP_S),
        upload_s=_or(_seconds(environ, "TRAINER_UPLOAD_SECONDS", zero="no time"), _UPLOAD_S),
        is_orchestrated=_switch(environ, "TRAINER_ORCHESTRATED"),
        orchestrator_url=_url(environ, "TRAINER_ORCHESTRATOR_URL"),
        lease_wait_s=_or(_seconds(environ, "TRAINER_LEASE_WAIT_SECONDS", zero="no waiting"), 0.0),
        uploads={name: url for name in UPLOADS if (url := _url(environ, f"TRAINER_UPLOAD_{name.upper()}_URL"))},
        token_hosts=_words(environ, "TRAINER_TOKEN_HOSTS"),
        public_key_file=_path(environ, "TRAINER_PUBLIC_KEY_FILE"),
    )


def events_path_of(environ: Mapping[str, str]) -> Path | None:
    """Where the worker's journal goes; None where nothing says it. Raises StartupRefused."""
    if (path := _path(environ, "TRAINER_EVENTS_PATH")) is not None:
        _require_folder(path.parent, "TRAINER_EVENTS_PATH")
        return path
    if (metrics := _folder(environ, "TRAINER_METRICS_DIR")) is None:
        artifacts = _folder(environ, "TRAINER_ARTIFACTS_DIR")
        metrics = artifacts / "metrics" if artifacts else None
    return metrics / "events.jsonl" if metrics else None


def _require_mode(environ: Mapping[str, str]) -> None:
    mode = (_text(environ, "WORKER_MODE") or "").lower()
    if mode == "trainer":
        return
    if mode == "inference":
        raise UsageError(
            "inference is not built: this worker trains, and serves no model.",
            where="WORKER_MODE",
            hint="Set WORKER_MODE=trainer; a run's exported model is served by another tool.",
        )
    found = f"found {mode!r}" if mode else "it is not set"
    raise UsageError(f"expected trainer, {found}.", where="WORKER_MODE", hint="Set WORKER_MODE=trainer.")


def _text(environ: Mapping[str, str], name: str) -> str | None:
    return environ.get(name, "").strip() or None


def _path(environ: Mapping[str, str], name: str) -> Path | None:
    text = _text(environ, name)
    if text is None:
        return None
    if "\0" in text:
        raise StartupRefused("invalid_artifact_paths", "it is no path.", where=name)
    return Path(os.path.abspath(text))


def _folder(environ: Mapping[str, str], name: str) -> Path | None:
    """One that is there, or can be made."""
    path = _path(environ, name)
    if path is not None:
        _require_folder(path, name)
    return path


def _require_folder(path: Path, name: str) -> None:
    there = next((place for place in (path, *path.parents) if os.path.exists(place)), None)
    if there is not None and not os.path.isdir(there):
        raise StartupRefused(
            "invalid_artifact_paths", f"expected a folder, and {there} is none.", where=name, hint="Name another one."
        )


def _url(environ: Mapping[str, str], name: str) -> str | None:
    """Refused here, and not when a training of hours is to be sent there."""
    text = _text(environ, name)
    try:
        if text is not None:
            place_of(text)
    except ValueError as error:
        raise UsageError(f"this URL is not taken: {error}.", where=name) from None
    return text


def _words(environ: Mapping[str, str], name: str) -> frozenset[str] | None:
    text = _text(environ, name)
    return None if text is None else frozenset(word.strip() for word in text.split(",") if word.strip())


def _seconds(environ: Mapping[str, str], name: str, *, zero: str) -> float | None:
    text = _text(environ, name)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < 1e9:
        raise StartupRefused(
            "invalid_timeout", f"expected seconds from 0, found {text!r:.40}.", where=name, hint=f"0 means {zero}."
        )
    return seconds


def _bytes(environ: Mapping[str, str], name: str) -> int | None:
    text = _text(environ, name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and 0 < int(text[:20]) < 1 << 62):
        raise UsageError(f"expected a number of bytes above 0, found {text!r:.40}.", where=name)
    return int(text)


def _switch(environ: Mapping[str, str], name: str) -> bool | None:
    text = _text(environ, name)
    if text is None:
        return None
    if text.lower() not in _TRUE | _FALSE:
        raise UsageError(f"expected true or false, found {text!r:.40}.", where=name)
    return text.lower() in _TRUE


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
