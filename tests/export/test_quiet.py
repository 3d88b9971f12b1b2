"""What an exporter says is not heard; what others say is."""

from __future__ import annotations

import logging
import sys
import threading
import warnings

import pytest

from trn.export.quiet import quiet


def test_only_the_thread_that_exports_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    def other() -> None:
        print("a heartbeat")
        print("a warning of the disk", file=sys.stderr, flush=True)

    with quiet():
        print("a graph")
        print("a library is missing", file=sys.stderr, flush=True)
        warnings.warn("a type is odd", stacklevel=1)
        logging.getLogger("torch.onnx").warning("a node is odd")
        logging.getLogger("torch._export.some").warning("an axis is odd")
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(10)
    print("after")
    assert capsys.readouterr() == ("a heartbeat\nafter\n", "a warning of the disk\n")


def test_what_was_set_is_put_back_after_an_error() -> None:
    before = (sys.stdout, sys.stderr, logging.getLogger("torch.onnx").level, list(warnings.filters))
    with pytest.raises(ZeroDivisionError), quiet():
        raise ZeroDivisionError
    assert (sys.stdout, sys.stderr, logging.getLogger("torch.onnx").level, list(warnings.filters)) == before
