"""The platform's hand on one machine: takes the next job, starts `python -m trn.worker` for it, says how it ended.

    python examples/orchestrator/agent.py --keys keys --work work \\
        --package examples/worker --allow squares.trainer:Squares

A real platform starts a container here. The worker gets a job file, an address, the public key and a token by their
files, and a folder that outlives it, so that the next start goes on where this one ended. The operator's token and
the private key stay outside.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

__all__ = ["bring", "next_job"]


def next_job(url: str, operator_token: str) -> dict[str, Any] | None:
    """The oldest job that waits; None where there is none. The token goes past proxies and follows no redirection."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    with contextlib.closing(kind(parts.hostname or "", parts.port, timeout=30)) as connection:
        connection.request("POST", f"{parts.path}/next", headers={"Authorization": f"Bearer {operator_token}"})
        answer = connection.getresponse()
        text = answer.read()
    if answer.status not in (200, 204):
        raise SystemExit(f"{url}/next answered {answer.status}: {text[:200].decode(errors='replace')}")
    return json.loads(text) if text else None


def bring(job: dict[str, Any], *, url: str, keys: Path, work: Path, package: Path | None, allowed: str) -> int:
    """Run a worker for the job until it ends; returns its exit status. `allowed`: trainers that are not installed."""
    folder = (work / job["run_id"]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.json").write_text(json.dumps(job, indent=2))
    environ = {
        **os.environ,
        "WORKER_MODE": "trainer",
        "TRAINER_JOB_SPEC_PATH": str(folder / "job.json"),
        "TRAINER_ARTIFACTS_DIR": str(folder),
        "TRAINER_ORCHESTRATOR_URL": url,
        "TRAINER_PUBLIC_KEY_FILE": str((keys / "public.pem").absolute()),
        "TRAINER_CAPABILITY_TOKEN_FILE": str((keys / "worker.jwt").absolute()),
        "TRAINER_ALLOW_PLUGINS": allowed,  # of the operator: what a job names is no permission
    }
    if package is not None:  # what an image has installed
        environ |= {"PYTHONPATH": str(package.absolute())}
    return subprocess.run([sys.executable, "-m", "trn.worker"], env=environ, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description="Take jobs from the orchestrator until there are none.")
    parser.add_argument("--url", default="http://127.0.0.1:8090")
    parser.add_argument("--keys", type=Path, required=True, help="the folder of mint.py")
    parser.add_argument("--work", type=Path, required=True, help="where workers keep their runs")
    parser.add_argument("--package", type=Path, help="a folder with the trainer's package, where it is not installed")
    parser.add_argument("--allow", default="", help="comma list of trainers, module:Class, that a job may name")
    given = parser.parse_args()
    operator_token = (given.keys / "operator.jwt").read_text()
    done = 0
    while (job := next_job(given.url, operator_token)) is not None:
        places = {"keys": given.keys, "work": given.work, "package": given.package}
        status = bring(job, url=given.url, allowed=given.allow, **places)
        print(f"{job['run_id']}: the worker ended with {status}", flush=True)
        if status:  # whether it is worth another try, a platform knows from docs/exit-codes.md
            return status
        done += 1
    if not done:
        print("no job waits; one whose worker is gone does so once its lease is over", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
