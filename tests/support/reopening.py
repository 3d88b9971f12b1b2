"""Reopening a run within the test's own process, and putting that process back afterwards."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from trn.checkpoint import rng

__all__ = ["contents", "put_back_process"]


@contextlib.contextmanager
def put_back_process() -> Iterator[None]:
    """Import path, modules, torch's settings, random streams and folder are afterwards what they were.

    Inside, no module is there that another test wrote and imported.
    """
    path, folder = list(sys.path), Path.cwd()
    others = {name: module for name, module in sys.modules.items() if _is_of_a_test(module)}
    for name in others:
        del sys.modules[name]
    sys.path[:] = [entry for entry in path if "/pytest-of-" not in entry]
    threads, streams = torch.get_num_threads(), rng.held()
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    cudnn = (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic)
    try:
        yield
    finally:
        os.chdir(folder)
        sys.path[:] = path
        for name in [name for name, module in sys.modules.items() if _is_of_a_test(module)]:
            del sys.modules[name]
        sys.modules.update(others)
        torch.set_num_threads(threads)
        if torch.are_deterministic_algorithms_enabled() != is_deterministic:  # it imports much
            torch.use_deterministic_algorithms(is_deterministic)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn
        rng.put_back(streams)
        gc.unfreeze()


def _is_of_a_test(module: object) -> bool:
    return "/pytest-of-" in str(getattr(module, "__file__", None) or "")


def contents(folder: Path) -> dict[str, str]:
    """Every file of a folder with its digest."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
