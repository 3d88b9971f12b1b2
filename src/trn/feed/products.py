"""A folder that a command makes, whole or not at all: found again, replaced only by another of its kind.

    same inputs, whole ──> up_to_date        else: filled beside its place ──one rename──> there

The folder holds a summary, a JSON object that is written last: what kind it is, the digest of all that it was made
from, and the sha256 of each file. A folder without one, or with damaged files, is not trusted.
"""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trn import files
from trn.errors import StorageError, UsageError
from trn.records import JsonError, pretty_json, read_json

__all__ = ["Product", "aside", "find_product", "make_product"]

Json = dict[str, Any]


@dataclass(frozen=True)
class Product:
    """One kind of such folders."""

    kind: str
    """What the summary says under `kind`."""
    words: str
    """What it is, for messages: "text data set"."""
    inputs: str
    """What it is made of: "text"."""
    summary: str
    outputs: tuple[str, ...]
    """The files whose digests stand in the summary, relative to the folder."""
    neighbours: tuple[str, ...] = ()
    """Other names that a replacement may throw away."""

    @property
    def own_names(self) -> frozenset[str]:
        return frozenset({self.summary, *self.neighbours, *(name.partition("/")[0] for name in self.outputs)})


def aside(out: Path, ending: str) -> Path:
    """A name of our own beside `out`: "lock" while it is built, "tmp-..." for what is not yet, or no longer, `out`."""
    return out.parent / f".{out.name}.{ending}"


def find_product(product: Product, out: Path, input_sha256: str, *, force: bool) -> Json | None:
    """The summary of a whole one from the same inputs; None where there is none and `out` may be taken.

    Raises UsageError for a folder that holds anything else, or another one that `force` does not allow to replace.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        summary = read_json(out / product.summary)
    except (JsonError, OSError):
        summary = {}
    if summary.get("kind") != product.kind:
        raise UsageError(f"holds something else than a {product.words}.", where=str(out), hint="Choose another --out.")
    digests = summary.get("files")
    digests = digests if isinstance(digests, dict) else {}
    damaged = [name for name in product.outputs if not _is_whole(out / name, digests.get(name))]
    if summary.get("input_sha256") == input_sha256 and not damaged:
        return summary
    if not force:
        what = f"a damaged {damaged[0]}" if damaged else f"a data set from other {product.inputs} or settings"
        raise UsageError(f"holds {what}.", where=str(out), hint="Choose another --out, or replace it with --force.")
    if foreign := sorted({path.name for path in out.iterdir()} - product.own_names):
        raise UsageError(f"cannot be replaced: it also holds {foreign[0]!r}.", where=str(out), hint="Move that away.")
    return None


def _is_whole(path: Path, sha256: str | None) -> bool:
    try:
        return files.sha256_file(path) == sha256
    except OSError:
        return False


def make_product(
    product: Product, out: Path, input_sha256: str, fill: Callable[[Path], Json], *, force: bool
) -> tuple[str, Json]:
    """Make it at `out`, or find it there made by another process meanwhile; "built" or "up_to_date", and the summary.

    `fill` writes all outputs into the folder it is given, and returns what else the summary says. Raises what it
    raises, UsageError while another process builds the same folder, StorageError.
    """
    files.make_folder(out.parent)
    lock = files.Lock(aside(out, "lock"))
    if not lock.acquire(note=f"pid={os.getpid()}"):
        raise UsageError("another process is building this data set.", where=str(out), hint="Wait for it to end.")
    try:
        if (summary := find_product(product, out, input_sha256, force=force)) is not None:
            return "up_to_date", summary
        return "built", _build(product, out, input_sha256, fill)
    finally:
        with contextlib.suppress(OSError, StorageError):
            if lock.is_ours():  # whoever waits for it sees that the file is gone, and takes a new one
                files.remove(lock.path)
        lock.release()


def _build(product: Product, out: Path, input_sha256: str, fill: Callable[[Path], Json]) -> Json:
    """Fill a folder beside `out`, then put it there by one rename. The caller holds the lock of `out`."""
    for left in out.parent.glob(f"{glob.escape(aside(out, 'tmp-').name)}*"):
        files.remove_tree(left)
    staged = aside(out, f"tmp-{os.getpid()}")
    try:
        files.make_folder(staged)
        summary = {
            "kind": product.kind,
            "format": 1,
            "input_sha256": input_sha256,
            **fill(staged),
            "files": {name: files.sha256_file(staged / name) for name in product.outputs},
        }
        files.write_atomic(staged / product.summary, pretty_json(summary))
        replaced = aside(out, "tmp-replaced")
        if out.exists():
            files.move(out, replaced)
        if not files.publish_folder(staged, out):
            raise StorageError("something else appeared here meanwhile; it was left as it is.", where=str(out))
        files.remove_tree(replaced)
    finally:
        files.remove_tree(staged)
    return summary
