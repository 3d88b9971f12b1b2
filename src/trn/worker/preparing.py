"""Everything that the trainer's process needs, made ready by the worker: it fetches nothing and decodes nothing itself.

    inputs ──fetch, digests checked──> files ──decode──> Arrow IPC, bound to the fingerprint of the data
    job ─────────────────────────────> job_spec.json ──> contract.json ──> python -m trn.runner --contract

Both files lie in `.trn/worker/<run_id>/` beside the runs, for this worker's eyes and its trainer's alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trn.doors.beginning import read_beginning
from trn.doors.device_options import want_of_device
from trn.doors.processes import Asked, read_processes
from trn.doors.staying import Start
from trn.doors.storable import storable
from trn.errors import UsageError
from trn.files import make_folder, write_atomic
from trn.launch.confined import ConfinedLauncher, Confinement
from trn.launch.contract import CONTRACT_VERSION, TrainerSubprocessContractV1, write_contract
from trn.records import JobRow, pretty_json
from trn.transfer.client import Client
from trn.worker.finished import note_asked
from trn.worker.handover import decode
from trn.worker.inputs import RESUME_CHECKPOINT, fetch_inputs
from trn.worker.job import Job
from trn.worker.stopping import Stopping

__all__ = ["prepare"]

_GRACE_S = 30.0


def prepare(job: Job, row: JobRow, client: Client, stopping: Stopping, say: Callable[[str], None]) -> Start:
    """Fetch, decode and write down; returns what is to be started. Raises TrnError: then nothing was started."""
    document, settings = job.document(), job.settings
    is_there = (job.run_dir / "reports" / "resolved_config.json").is_file()
    wanted = [one for one in job.form.worker.inputs if not (is_there and one.name == RESUME_CHECKPOINT)]
    inputs = fetch_inputs(*(wanted, job.cache_dir, job.own_folder, client), is_stopped=stopping.is_asked, say=say)
    stopping.require_not()
    begins_at = inputs.pop(RESUME_CHECKPOINT, None) or job.form.worker.resume_checkpoint_path
    _put_in_place(document, inputs)
    arrow = _decoded(job, document, stopping)
    folder = make_folder(job.own_folder)
    write_atomic(folder / "job_spec.json", pretty_json(document))
    contract = TrainerSubprocessContractV1(
        contract_version=CONTRACT_VERSION,
        trainer_plugin=str(document["trainer"]),
        job_spec_path=str(folder / "job_spec.json"),
        arrow_ipc_path="" if arrow is None else str(arrow),
        checkpoints_dir=str(job.run_dir / "checkpoints"),
        samples_dir=str(job.run_dir / "samples"),
        events_path=str(job.run_dir / "reports" / "events.jsonl"),
    )
    write_contract(folder / "contract.json", contract)
    note_asked(job)
    limits = document.get("limits") or {}
    seconds = float(limits.get("max_runtime_seconds") or 0.0)
    grace_s = float(limits.get("grace_seconds") or _GRACE_S)
    stop_s = settings.stop_s or None
    # behind the run's own limit, which begins to count later, and after which it saves
    time_s = seconds + stop_s if seconds and stop_s else None
    confinement = Confinement(memory_bytes=settings.memory_bytes, time_s=time_s, grace_s=grace_s, stop_s=stop_s)
    environ = _environment(job)
    processes = read_processes(Asked(), ddp=False, device="cpu", before=None, launcher="local", environ={})
    return Start(
        runs_dir=job.runs_dir,
        run_id=job.run_id,
        arguments=[
            *("--contract", str(folder / "contract.json"), *_beginning(job, None if is_there else begins_at)),
            *(() if stop_s is None else ("--stop-seconds", f"{stop_s:g}")),
        ],
        processes=processes,
        config=str(settings.job_spec_path),
        grace_s=grace_s,
        want=want_of_device(str(document["device"]), os.environ),
        launcher=lambda held: ConfinedLauncher(confinement, environ, lease=held),
    )


def _put_in_place(document: dict[str, Any], inputs: dict[str, str]) -> None:
    """Where the settled job looks for what was fetched."""
    data = [path for name, path in sorted(inputs.items()) if name.startswith("dataset/")]
    if data:
        document["dataset"] = {**(document.get("dataset") or {}), "parquet_paths": data}
    own = {name: path for name, path in inputs.items() if "/" not in name}
    if own:
        document["inputs"] = {**(document.get("inputs") or {}), **own}


def _decoded(job: Job, document: dict[str, Any], stopping: Stopping) -> Path | None:
    """The training data as one Arrow file; None where there are none to decode: batches in the job itself."""
    dataset = document.get("dataset") or {}
    paths = dataset.get("parquet_paths")
    if not paths:
        return None
    folder = Path(dataset["cache"]) if dataset.get("cache") else job.runs_dir / ".trn" / "arrow"
    return decode(paths, dataset.get("columns") or (), folder, is_stopped=stopping.is_asked)


def _beginning(job: Job, named: str | None) -> list[str]:
    """Go on with the run that is there; one that is not begins at the checkpoint that is `named`, as a fork."""
    place = ["--run-id", job.run_id, "--runs-dir", str(job.runs_dir)]
    if named is None:
        return [*place, "--auto-resume"]
    try:
        begin = read_beginning(os.path.abspath(named), None, run_dir=job.run_dir, resume=False, auto_resume=False)
    except UsageError as error:
        raise UsageError(
            f"no run can begin there: {error.message}",
            where=f"resume_checkpoint_path ({error.where or named})",
            hint="Name a file in the folder of a run, like .../checkpoints/step-00000200.pt.",
        ) from error
    return [*place, *(part for option in begin.options for part in option)]


def _environment(job: Job) -> dict[str, str]:
    """What the trainer's process may see: nothing that looks like a secret, and the job's folder to import from."""
    kept = storable(os.environ)[0]
    paths = [kept.get("PYTHONPATH", ""), str(job.form.path.parent)]
    return kept | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
