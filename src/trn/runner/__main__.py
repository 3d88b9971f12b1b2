"""`python -m trn.runner`: the child process behind `trn run` and `trn resume`."""

from __future__ import annotations

import argparse
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from trn.errors import TrainerError, TrnError, exit_code
from trn.loop.stop import StopRequest
from trn.records import RUN_ID_PATTERN
from trn.runner import signals
from trn.runner.console import say


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
    args = parser.parse_args(argv)
    if not RUN_ID_PATTERN.fullmatch(args.job_id):
        parser.error(f"--job-id: {args.job_id!r} is no id")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status. Errors are one line on stderr; only a trainer's own are preceded by their traceback."""
    args = parse(sys.argv[1:] if argv is None else argv)
    stop = StopRequest(door_pid=args.door_pid)
    signals.install(stop)
    # cuBLAS reads this when it starts; without it deterministic mode refuses to run on CUDA
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        from trn.runner.start import run  # imports torch: signals are in place before that takes its seconds

        return run(args, stop)
    except TrnError as error:
        if isinstance(error, TrainerError) and error.__cause__ is not None:
            say("".join(traceback.format_exception(error.__cause__)).rstrip())
        say(str(error))
        return error.exit_status
    except OSError as error:
        say(f"storage error [io_error]: {error}")
        return exit_code("io_error")


def _leave(code: int) -> NoReturn:
    """End this process, also when a trainer left threads running that would keep it for ever."""
    left = [
        thread.name for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()
    ]
    if left:
        say(f"ended while threads of the trainer were still running: {', '.join(left)}")
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    _leave(main())
