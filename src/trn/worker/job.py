"""What a worker is asked to do: environment and job file together, checked against each other, nothing done yet."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from trn.addresses import parse_target
from trn.doors.storable import without_secrets
from trn.doors.targets import check_run_id
from trn.errors import PlanRefused, SpecError, UsageError
from trn.spec.job_form import JobForm, read_job_file
from trn.transfer.places import may_have_token, place_of
from trn.worker.environment import Settings, events_path_of, read_settings
from trn.worker.refusal import StartupRefused

__all__ = ["Job", "place_of_journal", "settle_job"]


@dataclass(frozen=True)
class Job:
    """One job, settled as far as that is possible without its inputs."""

    settings: Settings
    form: JobForm
    runs_dir: Path
    run_id: str

    @property
    def run_dir(self) -> Path:
        return self.runs_dir / self.run_id

    @property
    def own_folder(self) -> Path:
        """What the worker writes for this run, beside the runs."""
        return self.runs_dir / ".trn" / "worker" / self.run_id

    @property
    def cache_dir(self) -> Path:
        return self.settings.cache_dir or self.runs_dir / ".trn" / "inputs"

    @property
    def is_orchestrated(self) -> bool:
        """Whether somebody else decides who trains this run."""
        return is_orchestrated(self.settings, self.form)

    @property
    def cancel_file(self) -> Path | None:
        named = self.form.worker.cancel_file_path
        return self.settings.cancel_file or (Path(os.path.abspath(named)) if named else None)

    @property
    def uploads(self) -> dict[str, str]:
        """Where each kind goes: the environment before the job, and the orchestrator where neither says."""
        named = {name: url for name, url in self.form.worker.uploads.items() if url}
        base = self.settings.orchestrator_url
        paths = {"metrics": "metrics", "checkpoint": "checkpoints", "sample": "samples", "terminal": "terminal"}
        own = {name: f"{base.rstrip('/')}/runs/{self.run_id}/{path}" for name, path in paths.items()} if base else {}
        return own | named | dict(self.settings.uploads)

    @property
    def token_hosts(self) -> frozenset[str]:
        """Who may see the token: whom the operator named, never a host that only the job file names."""
        if self.settings.token_hosts is not None:
            return self.settings.token_hosts
        urls = [self.settings.orchestrator_url, *self.settings.uploads.values()]
        return frozenset(place_of(url).host_and_port for url in urls if url)

    def document(self) -> dict[str, Any]:
        """The settled spec, as the trainer's process reads it."""
        document = self.form.to_json_document()
        document |= {"run_id": self.run_id, "runs_dir": str(self.runs_dir)}
        if self.settings.max_runtime_s is not None:
            document["limits"] = {**(document.get("limits") or {}), "max_runtime_seconds": self.settings.max_runtime_s}
        return document


def is_orchestrated(settings: Settings, form: JobForm) -> bool:
    if settings.is_orchestrated is not None:
        return settings.is_orchestrated
    return form.worker.orchestrated or settings.orchestrator_url is not None


def place_of_journal(environ: Mapping[str, str]) -> Path | None:
    """Where a refusal may leave an event, before anything else is known."""
    try:
        return events_path_of(environ)
    except StartupRefused:
        return None


def settle_job(environ: Mapping[str, str]) -> Job:
    """The job that the environment asks for. Raises UsageError, SpecError, StartupRefused, PlanRefused."""
    settings = read_settings(environ)
    try:
        form = read_job_file(settings.job_spec_path, plugin=settings.plugin)
    except SpecError as error:
        raise without_secrets(error) from error
    if not form.document.get("trainer"):
        raise StartupRefused(
            "missing_trainer_import",
            "neither the job file nor the environment names a trainer.",
            where="TRAINER_PLUGIN",
            hint="Write module:Class into one of them.",
        )
    runs_dir = settings.runs_dir or Path(os.path.abspath(form.document.get("runs_dir") or "runs"))
    run_id = form.document.get("run_id")
    if not isinstance(run_id, str):
        raise UsageError("a worker's job needs an id, by which the next start finds its run.", where="run_id")
    job = Job(settings, form, runs_dir, check_run_id(run_id))
    _refuse_secrets_of_ours(form)
    if form.document.get("ddp"):  # before a lease is asked for, or a byte fetched
        raise PlanRefused(
            "one process trains in a worker, and the job says true.",
            where="ddp",
            hint="Leave it out, or start the run with `trn run --nproc`.",
        )
    if job.is_orchestrated:
        if settings.orchestrator_url is None:
            raise UsageError(
                "the job is orchestrated, and nobody says by whom.",
                where="TRAINER_ORCHESTRATOR_URL",
                hint="Set it, or leave `orchestrated` out.",
            )
        _require_allowed(str(form.document["trainer"]), settings)
        _refuse_other_places(job)
    return job


def _refuse_secrets_of_ours(form: JobForm) -> None:
    """A job says where its journal goes, and never with which secret of the worker's: it could name the token."""
    for text in form.document.get("events") or ():
        target = parse_target(str(text))
        named = [name for name in target.options if name.endswith(("_env", "_file"))]
        if named:
            raise PlanRefused(
                f"a job may not name a secret of the worker, found {named[0]} for {target.url}.",
                where="events",
                hint="Leave it out; `trn relay RUN --to URL` sends the journal with secrets of your own.",
            )


def _refuse_other_places(job: Job) -> None:
    """A job that came over the network is not the one to say where its artifacts and its end go."""
    for name, url in job.form.worker.uploads.items():
        if url and not may_have_token(place_of(url), job.token_hosts):
            raise PlanRefused(
                f"an orchestrated job uploads to hosts that the operator named, found {place_of(url).host}.",
                where=f"uploads.{name}_url",
                hint="Set TRAINER_UPLOAD_*_URL, or list the host in TRAINER_TOKEN_HOSTS.",
            )


def _require_allowed(trainer: str, settings: Settings) -> None:
    """A job that came over the network names what is installed as a trainer, or what the operator lists."""
    installed = {point.name for point in entry_points(group="trn.trainers")}
    if trainer in installed | settings.allowed_plugins or trainer == settings.plugin:
        return
    raise PlanRefused(
        f"an orchestrated job may name an installed trainer ({', '.join(sorted(installed)) or 'there is none'}), or"
        f" what the operator allows; found {trainer!r}.",
        where="trainer",
        hint="Set TRAINER_PLUGIN, or list it in TRAINER_ALLOW_PLUGINS.",
    )
