"""From a spec to a plan: everything is decided, checked and digested here, before the process that trains begins.

Here: finding the trainer, opening the data, filling defaults, the budget, the fingerprint, and publishing the run's
folder by one rename. Not here: reading a spec (spec), what happens in the folder afterwards (runner).

    Spec ──trainer, data, budget──> Plan ──folder filled aside──rename──> <runs_dir>/<run_id>/
"""

from trn.plan.data import plan_order
from trn.plan.device import torch_device
from trn.plan.inputs import require_inputs
from trn.plan.measure import make_forecast, warn_of_few_tokens
from trn.plan.params import make_params
from trn.plan.planner import make_plan, refuse_unfit_world, use_spec_folder
from trn.plan.publish import publish_run
from trn.plan.versions import NOT_LIBRARIES, versions_here

__all__ = [
    "NOT_LIBRARIES",
    "make_forecast",
    "make_params",
    "make_plan",
    "plan_order",
    "publish_run",
    "refuse_unfit_world",
    "require_inputs",
    "torch_device",
    "use_spec_folder",
    "versions_here",
    "warn_of_few_tokens",
]
