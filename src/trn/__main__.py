"""`python -m trn`: the command `trn`, for launchers that start a module."""

import sys

from trn.doors.cli import main

if __name__ == "__main__":
    sys.exit(main())
