"""Transforms for workers in tests of a single process: a worker imports this module by its name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pyarrow as pa
import torch


def make_rows() -> Any:
    """The ids of the rows, what stands in the column `n`, and three draws."""

    def transform(rows: pa.RecordBatch, row_ids: np.ndarray, row_passes: np.ndarray) -> Any:
        draws = [float(torch.rand(())), float(np.random.rand())]
        return {"n": torch.from_numpy(rows.column("n").to_numpy().copy()), "ids": row_ids.tolist(), "draws": draws}

    return transform


def make_slow() -> Any:
    """Takes longer than anybody waits who was asked to stop."""

    def transform(rows: pa.RecordBatch, row_ids: np.ndarray, row_passes: np.ndarray) -> Any:
        time.sleep(3)
        return rows

    return transform


def make_about() -> Any:
    """Facts of the worker itself."""

    def transform(rows: pa.RecordBatch, row_ids: np.ndarray, row_passes: np.ndarray) -> Any:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        return {
            "pid": os.getpid(),
            "blocked": sorted(one.name for one in blocked),
            "threads": [thread.name for thread in threading.enumerate()],
            "path": list(sys.path),
            "ready": torch.ones(1_000_000),
        }

    return transform


def make_what_no_pickle_takes() -> Any:
    def transform(rows: pa.RecordBatch, row_ids: np.ndarray, row_passes: np.ndarray) -> Any:
        return subprocess, lambda: rows

    return transform


def make_nothing() -> Any:
    raise OSError("the tokenizer is missing")


def make_out_of_memory() -> Any:
    def transform(rows: pa.RecordBatch, row_ids: np.ndarray, row_passes: np.ndarray) -> Any:
        raise MemoryError("a tensor of 1 TB")

    return transform
