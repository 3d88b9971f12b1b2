"""`python -m trn.evaluate RUN_DIR`: the child process behind `trn eval`."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from trn.errors import StorageError, TrainerError, TrnError, exit_code
from trn.evaluate.data import ValidationData, given_data, planned_data
from trn.evaluate.evaluation import Evaluated, evaluate, refuse_without_evaluate
from trn.evaluate.record import record_of, write_record
from trn.provenance.process import process_redactor
from trn.records import Json, pretty_json
from trn.reopen import Reopened, read_run, reopen

__all__ = ["main"]

_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0; 80 where a metric is not finite; else that of what refused it."""
    args = _parser().parse_args(argv)
    try:
        return _evaluate(args)
    except TrnError as error:
        cause = error.__cause__
        if isinstance(error, TrainerError) and cause is not None:
            _say("".join(traceback.format_exception(cause)).rstrip())
        _say(str(error))
        is_memory = isinstance(cause, (MemoryError, torch.OutOfMemoryError))
        return exit_code("out_of_memory") if is_memory else error.exit_status
    except MemoryError:
        _say("the memory of this machine does not suffice.")
        return exit_code("out_of_memory")
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # whoever read the numbers is gone, and the record is kept: what is still held back goes nowhere
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="trn eval", description="Evaluate a checkpoint of a run.")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--checkpoint", default="best", help="best, last, a step or a file; without a best: last")
    parser.add_argument("--data", action="append", default=[], help="others than the run's own; may be repeated")
    parser.add_argument("--batch-size", type=_at_least_one, metavar="N")
    parser.add_argument("--max-batches", type=_at_least_zero, metavar="N", help="0: all")
    parser.add_argument("--device", help="as planned if not said")
    parser.add_argument("--code", type=Path, help="the folder of the trainer's code")
    parser.add_argument("--allow-change", action="append", default=[], metavar="NAME", help="code: use other code")
    parser.add_argument("--json", action="store_true", help="one document on stdout")
    return parser


def _evaluate(args: argparse.Namespace) -> int:
    # what a trainer prints must not stand before the answer
    with contextlib.redirect_stdout(sys.stderr):
        run_dir = args.run_dir.resolve()
        plan = read_run(run_dir)
        cut = {"batch_size": args.batch_size, "max_batches": args.max_batches}
        # data are looked at first: that takes no time, and reopening does
        data = given_data(plan, args.data, **cut) if args.data else planned_data(plan, **cut)
        run = reopen(
            run_dir, checkpoint=args.checkpoint, device=args.device, code=args.code, allow_change=args.allow_change
        )
        refuse_without_evaluate(run)
        found = evaluate(run, data)
        _tell_reports(run)
        record = record_of(run, data, found)
    failed, name = None, None
    try:
        name = write_record(run_dir, record)
    except StorageError as error:
        failed = error  # the numbers are told all the same
    _tell(run, data, found, record, name, as_json=args.json)
    if failed is not None:
        raise failed
    return 0


def _tell(
    run: Reopened, data: ValidationData, found: Evaluated, record: Json, name: str | None, *, as_json: bool
) -> None:
    if as_json:
        sys.stdout.write(pretty_json({"record": name, **record}).decode())
    else:
        for metric, value in found.metrics.items():
            print(f"{metric} {value!r}")
    sys.stdout.flush()
    whose = "the run's validation data" if data.source == "plan" else "the data given"
    batches = f", at most {data.max_batches} batches of {data.batch_size}" if data.max_batches else ""
    _say(f"trn: {run.meta.file} on {whose}: {data.dataset.rows:,} rows{batches}")
    if found.is_equal:
        _say("trn: the same numbers as the run's own at this step, to the bit")
    elif found.run_metrics is not None:
        own = ", ".join(f"{metric} {value!r}" for metric, value in found.run_metrics.items())
        _say(f"trn: the run's own at this step: {own}")
    if name is not None:
        _say(f"trn: recorded in {name}")


def _tell_reports(run: Reopened) -> None:
    """What would stand in the journal of a run, such as that the model could not be compiled."""
    for kind, fields in run.reports():
        words = [f"{name} {value}" for name, value in fields.items()]
        _say(" ".join(f"trn: {kind}: {', '.join(words)}".split()))


def _say(text: str) -> None:
    print(process_redactor().text(text), file=sys.stderr)


def _at_least_one(text: str) -> int:
    return _number(text, 1)


def _at_least_zero(text: str) -> int:
    return _number(text, 0)


def _number(text: str, least: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10) or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number from {least} on, found {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
