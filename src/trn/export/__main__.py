"""`python -m trn.export RUN_DIR`: the child process behind `trn export`."""

from __future__ import annotations

import argparse
import contextlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from trn.errors import TrnError, exit_code
from trn.export.checkpoint import Exported, export_checkpoint
from trn.export.program import first_line
from trn.export.sidecar import FORMATS
from trn.records import pretty_json
from trn.reopen import Reopened, reopen

__all__ = ["main"]

_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0; 85 where the comparison failed, with everything written; else that of what refused it."""
    args = _parser().parse_args(argv)
    try:
        return _export(args)
    except TrnError as error:
        print(error, file=sys.stderr)
        is_memory = isinstance(error.__cause__, (MemoryError, torch.OutOfMemoryError))
        return exit_code("out_of_memory") if is_memory else error.exit_status
    except MemoryError:
        print("the memory of this machine does not suffice.", file=sys.stderr)
        return exit_code("out_of_memory")
    except KeyboardInterrupt:
        return _INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the boundary of the process: whatever an exporter makes of a model
        traceback.print_exc()
        print(f"the export ended with {type(error).__name__}: {first_line(error)}.", file=sys.stderr)
        return exit_code("crashed")


def _export(args: argparse.Namespace) -> int:
    # what a trainer prints must not stand before the answer
    with contextlib.redirect_stdout(sys.stderr):
        run = reopen(
            args.run_dir, checkpoint=args.checkpoint, device=args.device, code=args.code, allow_change=args.allow_change
        )
        made = export_checkpoint(
            run.plan,
            run.trainer,
            run.state,
            run.ctx,
            run.meta,
            payload=run.payload,
            formats=tuple(dict.fromkeys(args.format or ["onnx"])),
            opset=args.opset,
            parity_policy=args.parity_policy,
            atol=args.atol,
            code_sha256=run.code_sha256,
        )
    if args.json:
        sys.stdout.write(pretty_json(_document(run, made)).decode())
    for one in made:
        _tell(one, run)
    return 0 if all(one.is_published for one in made) else exit_code("parity_failed")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="trn export", description="Export a checkpoint of a run.")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--checkpoint", default="best", help="best, last, a step or a file; without a best: last")
    parser.add_argument("--format", action="append", choices=FORMATS, help="onnx if not said; may be repeated")
    parser.add_argument("--opset", type=int, help="of ONNX, 18 or more; as planned if not said")
    parser.add_argument("--parity-policy", choices=("fail", "warn"), help="what a failed comparison does")
    parser.add_argument("--atol", type=float, help="allowed absolute difference; by the model itself if not said")
    parser.add_argument("--device", help="where the model is built; as planned if not said")
    parser.add_argument("--code", type=Path, help="the folder of the trainer's code")
    parser.add_argument("--allow-change", action="append", default=[], metavar="NAME", help="code: use other code")
    parser.add_argument("--json", action="store_true", help="one document on stdout")
    return parser


def _document(run: Reopened, made: Sequence[Exported]) -> dict[str, object]:
    checkpoint = {"file": run.meta.file, "sha256": run.meta.sha256, "step": run.meta.step}
    return {
        "run_id": run.plan.run_id,
        "run_dir": run.plan.run_dir,
        "checkpoint": checkpoint,
        "ok": all(one.is_published for one in made),
        "exports": [one.to_json() for one in made],
    }


def _tell(one: Exported, run: Reopened) -> None:
    main_file = next(iter(one.files))
    print(f"trn: step {run.meta.step} -> {main_file} ({one.format})", file=sys.stderr)
    if one.parity is None:
        return
    if one.parity["status"] == "passed":
        worst = max(one.parity["max_abs"].values(), default=0.0)
        print(f"trn: compared with PyTorch: equal within {worst:.2g}", file=sys.stderr)
        return
    word = "published all the same" if one.is_published else "kept aside in exports/rejected"
    print(f"trn: the comparison failed, {word}: {one.parity['reason']}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
