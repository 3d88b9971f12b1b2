"""Who does something with a reopened run, and where: the facts of run_metadata.json and runtime_env.json, once more.

They stand in the record of what is done (an evaluation, an export); the run's own files stay as its jobs wrote them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from trn.plan import NOT_LIBRARIES
from trn.provenance.environment import runtime_env
from trn.provenance.git import git_state
from trn.provenance.process import process_redactor
from trn.provenance.redact import encodable
from trn.provenance.run_metadata import build_run_metadata
from trn.records import Json, utc_now
from trn.spec.plan_model import Plan

__all__ = ["command_here", "environment_here"]


def environment_here(plan: Plan) -> Json:
    """`{runtime_env, run_metadata}` of this process, without secrets; the trainer is imported already."""
    redactor = process_redactor()
    environ = {encodable(name): encodable(text) for name, text in os.environ.items()}
    seen = runtime_env(environ, redactor, [name for name in plan.versions if name not in NOT_LIBRARIES])
    file = getattr(sys.modules.get(plan.trainer.module), "__file__", None)
    git = git_state(Path(file).parent if file else Path.cwd(), environ=os.environ)
    git |= {key: redactor.value(git[key]) for key in ("branch", "status_porcelain", "reason")}
    paths = {"config": plan.config_path, "bases": plan.base_config_path, "run_dir": plan.run_dir}
    told = redactor.value({**paths, "experiment": plan.experiment})
    metadata = build_run_metadata(
        created_at=utc_now(),
        run_name=plan.run_id,
        output_dir=told["run_dir"],
        config=told["config"],
        base_configs=told["bases"],
        dataset_seed=plan.dataset_seed,
        git=git,
        upstream=seen["upstream"],
        launcher=seen["launcher"],
        files={},
        experiment=told["experiment"],
    )
    return {"runtime_env": seen, "run_metadata": metadata}


def command_here() -> Json:
    """`{argv, cwd}` of this process, without secrets."""
    redactor = process_redactor()
    return {
        "argv": redactor.argv([encodable(text) for text in sys.argv]),
        "cwd": redactor.text(encodable(os.getcwd())),
    }
