"""`python -m trn.validate_run_meta FILE`: is this run_meta.json whole and true to its schema?

Prints `OK: FILE` and exits 0; else one line for each problem on stderr and exit 86. 2: no readable file was given.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from trn.errors import UsageError, VerificationFailed, exit_code
from trn.provenance.run_meta import validate_run_meta

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """The exit status for the arguments `argv`, which are one path."""
    if len(argv) != 1:
        sys.stderr.write("usage: python -m trn.validate_run_meta FILE\n")
        return exit_code(UsageError.code)
    try:
        problems = validate_run_meta(Path(argv[0]).read_bytes())
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        sys.stderr.write(f"{UsageError(f'cannot read the file: {error}', where=ascii(argv[0])[1:-1])}\n")
        return exit_code(UsageError.code)
    for problem in problems:
        sys.stderr.write(f"{argv[0]}: {problem}\n")
    if problems:
        return exit_code(VerificationFailed.code)
    sys.stdout.write(f"OK: {argv[0]}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
