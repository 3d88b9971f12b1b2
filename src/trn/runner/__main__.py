"""`python -m trn.runner`: the child process behind `trn run` and `trn resume`."""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from trn.devices import adopt_lease
from trn.errors import TrainerError, TrnError, exit_code
from trn.loop.stop import StopRequest
from trn.ranks import read_world
from trn.records import RESERVED_RUN_IDS, RUN_ID_PATTERN, cancel_path, from_json
from trn.runner import signals
from trn.runner.cancelled import CancelWatch
from trn.runner.console import say, set_up_logging
from trn.runner.orphaned import OrphanWatch
from trn.subprocess_contract import read_contract


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trn.runner", description="Run or resume one training.")
    parser.add_argument("--job-id", required=True)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--follow", action="store_true", help="be a rank other than 0: do what that one says")
    what.add_argument("--config", type=Path, help="a spec: plan it, then run it")
    what.add_argument("--contract", type=Path, metavar="FILE", help="a worker's contract: its spec, as with --config")
    what.add_argument("--run-dir", type=Path, help="the folder of a run: take it up, or with --run-id fork it")
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--flag", dest="flags", action="append", default=[], type=_flag, metavar="JSON", help="[name, key, value]"
    )
    parser.add_argument("--profile")
    parser.add_argument("--run-id")
    parser.add_argument("--fork-from", type=Path, metavar="RUN_DIR", help="with --config: begin from this run's state")
    parser.add_argument("--checkpoint", metavar="NAME", help="the checkpoint to go on or to fork from")
    parser.add_argument("--runs-dir", type=Path)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="the run must exist")
    how.add_argument("--auto-resume", action="store_true", help="continue the run, or start it")
    how.add_argument("--dry-run", action="store_true", help="print the plan and write nothing")
    parser.add_argument(
        "--plan-only", action="store_true", help="make the run's folder, and leave it for a later job to begin"
    )
    parser.add_argument("--allow-change", action="append", default=[], metavar="NAME", help="go on in spite of it")
    parser.add_argument(
        "--door-pid", type=_pid, help="stop when this is no longer the parent; `parent`: whoever is now"
    )
    parser.add_argument(
        "--stop-seconds", type=float, help="with --door-pid: how long it may take to end once that is gone"
    )
    args = parser.parse_args(argv)
    if not RUN_ID_PATTERN.fullmatch(args.job_id):
        parser.error(f"--job-id: {args.job_id!r} is no id")
    is_id = args.run_id is None or (RUN_ID_PATTERN.fullmatch(args.run_id) and args.run_id not in RESERVED_RUN_IDS)
    if args.run_dir is not None and not is_id:  # with a spec, the spec's schema refuses it
        parser.error(f"--run-id: {args.run_id!r} cannot be the id of a run")
    has_spec = args.config is not None or args.contract is not None
    if args.fork_from is not None and (not has_spec or args.resume or args.dry_run):
        parser.error("--fork-from goes with --config, and not with --resume or --dry-run")
    if args.contract is not None and (args.sets or args.flags or args.profile is not None):
        parser.error("--contract names a settled spec: not with --set, --flag or --profile")
    if args.plan_only and (args.follow or args.dry_run):
        parser.error("--plan-only makes a folder: not with --follow or --dry-run")
    if args.checkpoint is not None and args.fork_from is None and not (args.resume or args.run_dir):
        parser.error("--checkpoint says where a resume or a fork begins")
    return args


def _pid(text: str) -> int:
    return os.getppid() if text == "parent" else int(text)


def _flag(text: str) -> list[Any]:
    """Name, key and value of a flag that the user gave."""
    parts = from_json(text.encode())
    if not isinstance(parts, list) or [type(part) for part in parts[:-1]] != [str, str]:
        raise ValueError(text)
    return parts


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status. Errors are one line on stderr; only a trainer's own are preceded by their traceback."""
    args = parse(sys.argv[1:] if argv is None else argv)
    stop = StopRequest(door_pid=args.door_pid)
    signals.install(stop)
    adopt_lease(os.environ)  # held to the end of this process, also when its door is gone
    # cuBLAS reads this when it starts; without it deterministic mode refuses to run on CUDA
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # a rank that is gone would show in twenty lines of addresses, beside the one that says so
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # Of two thousand modules nothing is garbage: torch is imported in five sixths of the time while nobody looks for
    # any, and half a second is saved at the exit. prepare_torch lets the collector loose on what comes after them.
    gc.disable()
    atexit.register(gc.freeze)
    try:
        if args.contract is not None:
            args.contract = read_contract(args.contract)
            args.runs_dir = args.runs_dir or Path(args.contract.checkpoints_dir).parent.parent
        # torch and much else: signals are in place before these take their seconds
        from trn.runner.company import Company, lead, meet
        from trn.runner.contracted import arrow_of
        from trn.runner.follow import follow
        from trn.runner.output import mask_output
        from trn.runner.start import run

        if not args.dry_run:  # that answer is for the user alone
            mask_output()
        if args.door_pid is not None and args.stop_seconds is not None:
            OrphanWatch(args.door_pid, args.stop_seconds, stop).start()
        world = read_world(os.environ)
        set_up_logging(world)
        if world.rank == 0 and (folder := args.runs_dir or (args.run_dir and args.run_dir.parent)):
            CancelWatch(cancel_path(folder.resolve(), args.job_id), stop).start()
        if world.world_size == 1 or args.dry_run or args.plan_only:  # what is only planned needs nobody else
            arrow = None if args.contract is None else arrow_of(args.contract)
            return run(args, stop, Company(world, arrow=arrow))
        company = meet(world, stop)
        return lead(company, partial(run, args, stop)) if world.rank == 0 else follow(company, stop)
    except TrnError as error:
        if isinstance(error, TrainerError) and error.__cause__ is not None:
            say("".join(traceback.format_exception(error.__cause__)).rstrip())
        say(str(error))
        return error.exit_status
    except OSError as error:
        say(f"storage error [io_error]: {error}")
        return exit_code("io_error")


def _leave(code: int) -> NoReturn:
    """End this process, also when a trainer left threads running that would keep it for ever.

    So does a read of data that the feed has given up waiting for: the libraries of stores wait for it when they end.
    """
    left = [
        thread.name for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()
    ]
    if left:
        say(f"ended while threads of the trainer were still running: {', '.join(left)}")
    is_reading = any(thread.name == "trn-feed" for thread in threading.enumerate())
    if is_reading:
        say("ended while data were still being read: their store had not answered")
    if left or is_reading:
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    _leave(main())
