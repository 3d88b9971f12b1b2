"""Two hosts are tested where network namespaces may be made; elsewhere these tests are not collected."""

from __future__ import annotations

import os
import subprocess


def can_make_namespaces() -> bool:
    name = f"trn-try-{os.getpid()}"
    try:
        subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True)
        subprocess.run(["ip", "netns", "del", name], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


collect_ignore = [] if can_make_namespaces() else ["test_two_hosts.py"]
