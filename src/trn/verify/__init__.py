"""Is a run's folder what its records say? Every hash and schema, the journal against the plan, the outcome against all.

Here: reading and comparing. Nothing is written, nothing is repaired, no stranger's code is imported. Tensors are read
only where an epoch's digest is of them, through torch's restricted loader. Not here: replaying steps, comparing runs.

    folder ──checks──> findings ──> `ok`, or one line a problem and exit status 86

    python -m trn.verify RUN_DIR [--json]
"""

from trn.verify.checks import CHECKS, verify_run
from trn.verify.finding import Finding

__all__ = ["CHECKS", "Finding", "verify_run"]
