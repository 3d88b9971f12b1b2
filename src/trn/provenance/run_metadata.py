"""run_metadata.json: who this run is and where its code came from, in one flat object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["build_run_metadata"]

SCHEMA_VERSION = 1


def build_run_metadata(
    *,
    created_at: str,
    run_name: str,
    output_dir: str,
    config: str,
    base_configs: Sequence[str],
    dataset_seed: int,
    git: Mapping[str, Any],
    upstream: Mapping[str, Any],
    launcher: Mapping[str, Any],
    files: Mapping[str, str],
    experiment: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of run_metadata.json; `files` maps the name of each start-up artifact to its path in the run.

    `experiment` is what the author noted, without its secrets.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "created_at": created_at,
        "config": config,
        "base_config": list(base_configs),
        "run_name": run_name,
        "output_dir": output_dir,
        "git_sha": git["sha"],
        "git_branch": git["branch"],
        "git_dirty": git["dirty"],
        "git_status_porcelain": list(git["status_porcelain"]),
        "git_reason": git["reason"],
        "dataset_seed": dataset_seed,
        "upstream": dict(upstream),
        "launcher": dict(launcher),
        "run_manifest_files": dict(files),
        "experiment": dict(experiment),
    }
