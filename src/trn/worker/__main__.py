"""`WORKER_MODE=trainer python -m trn.worker`: one job, and its exit status."""

from __future__ import annotations

import contextlib
import os
import sys

from trn.errors import TrnError, exit_code
from trn.worker.stopping import hold_signals

__all__ = ["main"]


def main() -> int:
    """Do the job of the environment. A refusal is one line on standard error, never a traceback."""
    hold_signals()
    # half a second, in which a signal may come
    from trn.doors.text import clean
    from trn.worker.run import run_worker

    try:
        return run_worker(os.environ)
    except TrnError as error:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{clean(str(error))}\n")
        return error.exit_status
    except OSError as error:
        where = f" at {error.filename}" if error.filename else ""
        with contextlib.suppress(OSError):
            sys.stderr.write(f"storage error [io_error]{where}: {error.strerror or error}.\n")
        return exit_code("io_error")


if __name__ == "__main__":
    sys.exit(main())
