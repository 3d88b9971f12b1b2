"""Cores and memory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from trn.devices import cpu_threads

PAGES = """
import resource, sys
import torch
from trn.devices import keep_freed_memory
torch.set_num_threads(1)
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
for step in range(12):
    if step == 5:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(20_000_000) * 2  # 80 MB: above 32 MB glibc never adapts by itself
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    return int(subprocess.run([sys.executable, "-c", PAGES, how], capture_output=True, text=True, check=True).stdout)


def test_the_threads_of_a_run_are_the_cores_it_may_use() -> None:
    assert cpu_threads() == len(os.sched_getaffinity(0))


@pytest.mark.slow
def test_freed_memory_is_used_again_without_new_pages() -> None:
    # seven steps: the pages of one block at most, against those of two blocks in each
    assert faults("keep") * 10 < faults("give back")
