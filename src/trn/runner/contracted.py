"""A run that is asked for by the subprocess contract: its spec is held against it, before anything is planned or made.

contract.json ──> trainer, folders: the spec's and the run's own, or refused
             └──> Arrow file: the plan's cache, and the only place that the training data are read from
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from trn.errors import PlanRefused
from trn.spec import LoadedSpec, Spec
from trn.subprocess_contract import TrainerSubprocessContractV1

__all__ = ["arrow_of", "hold_to_contract"]


def hold_to_contract(contract: TrainerSubprocessContractV1, loaded: LoadedSpec, run_dir: Path) -> LoadedSpec:
    """The spec with the decoded data as its cache. Raises PlanRefused where the contract says something else."""
    spec = loaded.spec
    if spec.trainer != contract.trainer_plugin:
        raise _refused("trainer_plugin", contract.trainer_plugin, f"the spec's trainer, {spec.trainer!r}")
    own = {
        "checkpoints_dir": run_dir / "checkpoints",
        "samples_dir": run_dir / "samples",
        "events_path": run_dir / "reports" / "events.jsonl",
    }
    for name, path in own.items():
        said = getattr(contract, name)
        if os.path.realpath(said) != os.path.realpath(path):
            raise _refused(name, said, f"that of the run, {str(path)!r}")
    if spec.ddp:
        raise PlanRefused(
            "a contract is for one process, and the spec says true.",
            where="ddp",
            hint="Set ddp: false, or start the run with `trn run --nproc`.",
        )
    return replace(loaded, spec=_with_cache(spec, arrow_of(contract)))


def arrow_of(contract: TrainerSubprocessContractV1) -> Path | None:
    """The decoded data; None where none are handed over."""
    return Path(contract.arrow_ipc_path) if contract.arrow_ipc_path else None


def _with_cache(spec: Spec, arrow: Path | None) -> Spec:
    if arrow is None:
        return spec
    folder, said = str(arrow.parent), spec.dataset.cache
    if said is not None and os.path.realpath(said) != os.path.realpath(folder):
        raise _refused("arrow_ipc_path", str(arrow), f"a file in dataset.cache of the spec, {said!r}")
    return spec.model_copy(update={"dataset": spec.dataset.model_copy(update={"cache": folder})})


def _refused(name: str, found: str, expected: str) -> PlanRefused:
    return PlanRefused(
        f"expected {expected}, found {found!r}.",
        where=f"{name} of the contract",
        hint="Contract and spec are written together, by the worker.",
    )
