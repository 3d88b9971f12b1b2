"""The uploads of one run as a process, to be killed: `python uploader.py RUN_DIR URL JOB_ID`; 0 once complete."""

from __future__ import annotations

import sys
from pathlib import Path

from trn.transfer.client import Client
from trn.worker.uploading import Endpoints, Uploads

__all__: list[str] = []


def main(run_dir: Path, url: str, job_id: str) -> int:
    endpoints = Endpoints(*(f"{url}/{place}" for place in ("metrics", "checkpoint", "sample", "terminal")))
    client = Client(None, frozenset(), timeout_s=10.0)
    uploads = Uploads(
        run_dir, run_dir.name, endpoints, client, job_id=job_id, say=print, poll_s=0.02, metrics_every_s=0.02
    )
    uploads.start()
    report = uploads.finish({"status": "completed", "job_id": job_id}, 60.0)
    print(report)
    return 0 if report.is_complete else 94


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
