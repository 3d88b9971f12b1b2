"""`python -m trn.verify RUN_DIR`: the child process behind `trn verify`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from trn.errors import TrnError, exit_code
from trn.records import pretty_json
from trn.verify import verify_run


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 when all holds, 86 when something does not."""
    parser = argparse.ArgumentParser(prog="trn verify", description="Check a run's folder against its own records.")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--json", action="store_true", help="one document on stdout")
    args = parser.parse_args(argv)
    try:
        findings = verify_run(args.run_dir)
    except TrnError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    problems = [finding for finding in findings if finding.problem is not None]
    if args.json:
        document = {"run_dir": str(args.run_dir), "ok": not problems, "findings": [asdict(one) for one in findings]}
        sys.stdout.write(pretty_json(document).decode())
    else:
        for finding in findings:
            mark, rest = ("ok  ", "") if finding.problem is None else ("BAD ", f": {finding.problem}")
            print(f"{mark} {finding.what}{rest}", file=sys.stderr)
        print(f"{len(problems)} problems in {len(findings)} checks" if problems else "verified", file=sys.stderr)
    return exit_code("verification_failed") if problems else 0


if __name__ == "__main__":
    sys.exit(main())
