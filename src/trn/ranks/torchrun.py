"""`python -m trn.ranks.torchrun`: torchrun, quiet, and with an ending that can be read.

It takes the options of `python -m torch.distributed.run` and does the same. What torchrun logs about itself is not
shown, and in the place of its table of failures the first rank that failed is written to torchrun's error file
(`trn.ranks.error_file`), with its exit status, negative for a signal. Ends with that status, or 128 plus the signal.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler
from torch.distributed.run import parse_args, run

from trn.errors import exit_code
from trn.ranks import error_file

_ASKED = (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)
"""How a rank ends that torchrun, or a user, asked to: seldom the cause."""
_LEASE = "TRN_LEASE_FDS"
"""Of `trn.devices.lease`: `FD:INODE` of each descriptor."""
_CAUSE_S = 2
"""So much later, in torchrun's whole seconds, can the death of a rank be noticed than another one complains of it."""


def main(arguments: Sequence[str] | None = None) -> int:
    logging.disable(logging.CRITICAL)
    _hand_down(os.environ.get(_LEASE, ""))
    try:
        run(parse_args(arguments))  # type: ignore[no-untyped-call]  # torch gives these two no types
    except ChildFailedError as error:
        status, reason = first_failure(error.failures)
    except SignalException as error:
        return 128 + error.sigval
    except Exception as error:  # noqa: BLE001 - the boundary of the process; torchrun's own errors have no common base
        status, reason = exit_code("rank_lost"), f"torchrun could not start the ranks: {_first_line(error)}"
        sys.stderr.write(f"ranks error [rank_lost]: {reason}\n")
        sys.stderr.flush()
    else:
        return 0
    error_file.write(status, reason)
    return status if status > 0 else 128 - status


def _hand_down(lease: str) -> None:
    """Let the ranks inherit the descriptors of a lease: they may outlive this process, and its devices are theirs."""
    fds = []
    for entry in lease.split(","):
        with contextlib.suppress(ValueError, OSError):
            fd = int(entry.partition(":")[0])
            fds += [fd] if os.get_inheritable(fd) else []
    if fds:  # torchrun closes all that it was not given by itself, and takes nothing from its caller
        # setattr: to a type checker the module has no such name to be set
        setattr(subprocess_handler, "Popen", functools.partial(subprocess.Popen, pass_fds=fds))  # noqa: B010 - not in its types


def first_failure(failures: Mapping[int, ProcessFailure]) -> tuple[int, str]:
    """The exit status of the rank that failed first, negative for a signal, and the reason with its name.

    A rank that was killed is the cause, where the others end within the same moment because it is gone. One that said
    why it ends was killed later: torchrun hurries those that are a moment behind the first.
    """
    said = {rank: error_file.read(Path(failure.error_file)) for rank, failure in failures.items()}

    def began(rank: int) -> int:
        failure = failures[rank]
        was_killed = failure.exitcode < 0 and failure.exitcode not in _ASKED and said[rank] is None
        return failure.timestamp - (_CAUSE_S if was_killed else 0)

    # in one second, one that says why comes before one that was only asked to end; else torchrun's own order tells
    rank = min(failures, key=lambda rank: (began(rank), said[rank] is None))
    status, word = failures[rank].exitcode, said[rank]
    if word is not None:
        return (word[0] if status < 0 else status), f"rank {rank}: {word[1]}"
    if status < 0:
        return status, f"rank {rank} was killed by {failures[rank].signal_name()}"
    return status, f"rank {rank} ended with exit status {status}"


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
