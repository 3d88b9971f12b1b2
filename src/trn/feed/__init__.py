"""The feed: parquet files in, batches in a reproducible order out.

    paths or dataset.json -> Dataset -----.
                                           +-> Parts: decode, gather (on a thread) -> Feed -> RawBatch -> to_tensors
    fingerprint, seed, batch ... -> Order -'

Here belong: what the data is (`dataset`, `footer`, `manifest`), in which order its rows come (`order`, pure), where
files lie (`sources`; of URLs `remote`, `stores`), reading them (`blocks`, `parts`, `gather`, `ahead`, `feed`; decoded
once `cache`, `mapped`), what nulls become (`nulls`), Arrow to torch (`tensors`), looking at data (`verbs`), and making
data sets: of text (`text`), of documents (`pack`). Not here: what a trainer does with a batch, and where the cursor is
saved.

`trn.feed.tensors.to_tensors` is imported from its own module, so that everything else works without torch.
`python -m trn.feed` is the command behind `trn data`.
"""

from trn.feed.blocks import BlockReader
from trn.feed.cache import Cache, find_cache_at, has_cache, make_cache, open_cache, open_cache_at, refuse_uncacheable
from trn.feed.dataset import DataFile, Dataset, check_unchanged, open_dataset
from trn.feed.feed import Feed, RawBatch, read_sequential
from trn.feed.manifest import open_manifest, write_manifest
from trn.feed.mapped import MappedRows
from trn.feed.nulls import Fill, Fills
from trn.feed.order import Batch, Cursor, Order, Span

__all__ = [
    "Batch",
    "BlockReader",
    "Cache",
    "Cursor",
    "DataFile",
    "Dataset",
    "Feed",
    "Fill",
    "Fills",
    "MappedRows",
    "Order",
    "RawBatch",
    "Span",
    "check_unchanged",
    "find_cache_at",
    "has_cache",
    "make_cache",
    "open_cache",
    "open_cache_at",
    "open_dataset",
    "open_manifest",
    "read_sequential",
    "refuse_uncacheable",
    "write_manifest",
]
