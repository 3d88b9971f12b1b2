"""`python -m trn.runner`: the child process behind `trn run` and `trn resume`."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from trn.errors import Stopped, TrainerError, TrnError
from trn.loop.stop import StopRequest
from trn.runner import signals


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trn.runner", description="Run or resume one training.")
    parser.add_argument("--job-id", required=True)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", type=Path, help="a spec: plan it, then run it")
    what.add_argument("--run-dir", type=Path, help="the folder of a run: take it up")
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--profile")
    parser.add_argument("--run-id")
    parser.add_argument("--runs-dir", type=Path)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="the run must exist")
    how.add_argument("--auto-resume", action="store_true", help="continue the run, or start it")
    how.add_argument("--dry-run", action="store_true", help="print the plan and write nothing")
    parser.add_argument("--allow-change", action="append", default=[], metavar="NAME", help="go on in spite of it")
    parser.add_argument("--door-pid", type=int, help="stop when this is no longer the parent")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status. Errors are one line on stderr; only a trainer's own are preceded by their traceback."""
    args = parse(sys.argv[1:] if argv is None else argv)
    stop = StopRequest(door_pid=args.door_pid)
    signals.install(stop)
    # cuBLAS reads this when it starts; without it deterministic mode refuses to run on CUDA
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    from trn.runner.start import run  # imports torch: signals are in place before that takes its seconds

    try:
        return run(args, stop)
    except Stopped as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except TrnError as error:
        if isinstance(error, TrainerError) and error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        print(error, file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
