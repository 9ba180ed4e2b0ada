"""The cache on disk: written piece by piece, sealed once, read at the speed of memory."""

from kdcache.store.common import common_blocks, grid_of, map_shard
from kdcache.store.fidelity import describe_fidelity, sample_rows
from kdcache.store.group import GROUP, array_names, make_group
from kdcache.store.grow import grow_cache, hint_at_ancestor, require_whole
from kdcache.store.head import describe_head, head_files
from kdcache.store.index import RowIndex, load_image_ids, load_unreadable
from kdcache.store.layout import FORMAT, PIECE_ROWS, ArraySpec, Dtype, Grid
from kdcache.store.manifest import (
    MANIFEST,
    RECIPE,
    Manifest,
    Problem,
    check_digests,
    kept_manifest,
    require_digest,
)
from kdcache.store.neighbours import Neighbours, describe_graph, neighbour_files
from kdcache.store.publish import WORK, FileDigest, digest_of, overwrite, tidy
from kdcache.store.quantise import Quantised, Stored, Taken, dequantise, quantise
from kdcache.store.reader import PULLED, Cache, Source, open_cache, read_manifest
from kdcache.store.selection import (
    COPY,
    Copy,
    Selection,
    Shard,
    files_here,
    load_copy,
    load_shard_rows,
    shard_of,
)
from kdcache.store.size import CacheSize, Part, cache_size
from kdcache.store.writer import CacheWriter, create_cache, differences, make_receipt

__all__ = [
    "COPY",
    "FORMAT",
    "GROUP",
    "MANIFEST",
    "PIECE_ROWS",
    "PULLED",
    "RECIPE",
    "WORK",
    "ArraySpec",
    "Cache",
    "CacheSize",
    "CacheWriter",
    "Copy",
    "Dtype",
    "FileDigest",
    "Grid",
    "Manifest",
    "Neighbours",
    "Part",
    "Problem",
    "Quantised",
    "RowIndex",
    "Selection",
    "Shard",
    "Source",
    "Stored",
    "Taken",
    "array_names",
    "cache_size",
    "check_digests",
    "common_blocks",
    "create_cache",
    "dequantise",
    "describe_fidelity",
    "describe_graph",
    "describe_head",
    "differences",
    "digest_of",
    "files_here",
    "grid_of",
    "grow_cache",
    "head_files",
    "hint_at_ancestor",
    "kept_manifest",
    "load_copy",
    "load_image_ids",
    "load_shard_rows",
    "load_unreadable",
    "make_group",
    "make_receipt",
    "map_shard",
    "neighbour_files",
    "open_cache",
    "overwrite",
    "quantise",
    "read_manifest",
    "require_digest",
    "require_whole",
    "sample_rows",
    "shard_of",
    "tidy",
]
