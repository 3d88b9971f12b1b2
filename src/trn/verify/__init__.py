"""Is a run's folder what its records say? Every hash and schema, the journal against the plan, the outcome against all.

Here: reading and comparing. Nothing is written, nothing is repaired, no stranger's code is imported, no tensor is
loaded. Not here: replaying steps, comparing two runs.

    folder ──checks──> findings ──> `ok`, or one line a problem and exit status 86

    python -m trn.verify RUN_DIR [--json]
"""

from trn.verify.checks import CHECKS, Finding, verify_run

__all__ = ["CHECKS", "Finding", "verify_run"]
