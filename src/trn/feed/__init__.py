"""The feed: parquet files in, batches in a reproducible order out.

    paths or dataset.json -> Dataset -----.
                                           +-> Parts: decode, gather (on a thread) -> Feed -> RawBatch -> to_tensors
    fingerprint, seed, batch ... -> Order -'

Here belong: what the data is (`dataset`, `footer`, `manifest`), in which order its rows come (`order`, pure), reading
them (`sources`, `blocks`, `parts`, `ahead`, `feed`), Arrow to torch (`tensors`), and making a data set of text
(`text`). Not here: what a trainer does with a batch, and where the cursor is saved.

`trn.feed.tensors.to_tensors` is imported from its own module, so that everything else works without torch.
`python -m trn.feed index|text` is the command behind `trn data`.
"""

from trn.feed.blocks import BlockReader
from trn.feed.dataset import DataFile, Dataset, check_unchanged, open_dataset
from trn.feed.feed import Feed, RawBatch, read_sequential
from trn.feed.manifest import open_manifest, write_manifest
from trn.feed.order import Batch, Cursor, Order, Span

__all__ = [
    "Batch",
    "BlockReader",
    "Cursor",
    "DataFile",
    "Dataset",
    "Feed",
    "Order",
    "RawBatch",
    "Span",
    "check_unchanged",
    "open_dataset",
    "open_manifest",
    "read_sequential",
    "write_manifest",
]
