"""The inputs of a job: fetched by their digests, and put where the settled job looks for them.

    inputs.dataset_parquet_*   -> dataset.parquet_paths of the job
    inputs.base_model_*        -> ctx.inputs["base_model"]
    inputs.resume_checkpoint_* -> the checkpoint that the run begins with (trn.worker.origin)

A trainer gets paths; what was fetched, and with which digest, stands in the plan.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from trn.files import link_atomic, make_folder
from trn.spec.job_form import Input
from trn.transfer.client import Client
from trn.transfer.download import Fetched, Progress, Wanted, fetch
from trn.worker.origin import bring_origin

__all__ = ["RESUME_CHECKPOINT", "fetch_inputs", "telling"]

RESUME_CHECKPOINT = "resume_checkpoint"
_SAY_EVERY_S = 10.0
_ENDING = re.compile(r"\.[A-Za-z0-9_]{1,16}")


def fetch_inputs(
    inputs: Sequence[Input],
    cache_dir: Path,
    own_dir: Path,
    client: Client,
    *,
    is_stopped: Callable[[], bool],
    say: Callable[[str], None],
) -> dict[str, str]:
    """The path of each by its name; what is laid out anew lies in `own_dir`.

    Raises DataError, Unauthorized, StorageError, Stopped.
    """

    bring: Callable[[Sequence[Wanted]], list[Fetched]] = partial(
        fetch,
        cache_dir=cache_dir,
        client=client,
        is_stopped=is_stopped,
        progress=telling(say),
        warn=lambda line: say(f"trn: {line}"),
    )
    plain = [one for one in inputs if one.name != RESUME_CHECKPOINT]
    wanted = [Wanted(one.name, one.source, one.sha256, one.size_bytes) for one in plain]
    found = {one.name: str(_named(one, cache_dir, own_dir)) for one in (bring(wanted) if wanted else ())}
    for one in inputs:
        if one.name == RESUME_CHECKPOINT:
            found[one.name] = str(bring_origin(one, own_dir / "origin", bring))
    return found


def telling(say: Callable[[str], None], clock_s: Callable[[], float] = time.monotonic) -> Progress:
    """Says how far inputs are: when all is there, and every ten seconds if there is more; a log is read by people."""
    told, told_at = (0, 0), clock_s()

    def progress(done: int, total: int | None) -> None:
        nonlocal told, told_at
        if (done, total or 0) == told or (done != total and clock_s() - told_at < _SAY_EVERY_S):
            return
        told, told_at = (done, total or 0), clock_s()
        say(f"trn: inputs: {done:,}{f' of {total:,}' if total else ''} bytes")

    return progress


def _named(found: Fetched, cache_dir: Path, folder: Path) -> Path:
    """A file from elsewhere under a name with its own ending: a cache calls it by its digest, and loaders look."""
    ending = PurePosixPath(urlsplit(found.source).path).suffix
    if "/" in found.name or not found.path.is_relative_to(cache_dir) or not _ENDING.fullmatch(ending):
        return found.path
    make_folder(folder)
    link_atomic(found.path, folder / f"{found.name}{ending}")
    return folder / f"{found.name}{ending}"
