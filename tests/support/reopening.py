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
    """Import path, modules, torch's settings, random streams and folder are afterwards what they were."""
    path, modules, folder = list(sys.path), set(sys.modules), Path.cwd()
    threads, streams = torch.get_num_threads(), rng.held()
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    cudnn = (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic)
    try:
        yield
    finally:
        os.chdir(folder)
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if "/pytest-of-" in str(getattr(sys.modules[name], "__file__", None) or ""):  # written by a test
                del sys.modules[name]
        torch.set_num_threads(threads)
        if torch.are_deterministic_algorithms_enabled() != is_deterministic:  # it imports much
            torch.use_deterministic_algorithms(is_deterministic)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn
        rng.put_back(streams)
        gc.unfreeze()


def contents(folder: Path) -> dict[str, str]:
    """Every file of a folder with its digest."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
