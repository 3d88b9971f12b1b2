"""The command line of this process, as it may be written down."""

from __future__ import annotations

import sys

__all__ = ["shown_argv"]


def shown_argv() -> list[str]:
    """The arguments that this process was given, without the values of secrets."""
    from trn.provenance.process import process_redactor  # heavy: only for who submits a job

    return process_redactor().argv([text.encode(errors="backslashreplace").decode() for text in sys.argv])
