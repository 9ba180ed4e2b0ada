"""The cache on disk: written piece by piece, sealed once, read at the speed of memory."""

from kdcache.store.common import common_blocks, grid_of, map_shard
from kdcache.store.fidelity import describe_fidelity
from kdcache.store.grow import grow_cache, hint_at_ancestor
from kdcache.store.head import describe_head, head_files
from kdcache.store.index import RowIndex, load_unreadable
from kdcache.store.layout import FORMAT, PIECE_ROWS, ArraySpec, Dtype, Grid
from kdcache.store.manifest import Manifest, Problem, check_digests, require_digest
from kdcache.store.neighbours import Neighbours, describe_graph, neighbour_files
from kdcache.store.publish import FileDigest
from kdcache.store.quantise import Quantised, Stored, dequantise, quantise
from kdcache.store.reader import Cache, open_cache, read_manifest
from kdcache.store.writer import CacheWriter, create_cache, differences, make_receipt

__all__ = [
    "FORMAT",
    "PIECE_ROWS",
    "ArraySpec",
    "Cache",
    "CacheWriter",
    "Dtype",
    "FileDigest",
    "Grid",
    "Manifest",
    "Neighbours",
    "Problem",
    "Quantised",
    "RowIndex",
    "Stored",
    "check_digests",
    "common_blocks",
    "create_cache",
    "dequantise",
    "describe_fidelity",
    "describe_graph",
    "describe_head",
    "differences",
    "grid_of",
    "grow_cache",
    "head_files",
    "hint_at_ancestor",
    "load_unreadable",
    "make_receipt",
    "map_shard",
    "neighbour_files",
    "open_cache",
    "quantise",
    "read_manifest",
    "require_digest",
]
