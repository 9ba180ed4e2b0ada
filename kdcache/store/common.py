"""What two caches have in common: blocks whose files are the same bytes in both, and rows."""

import json
from dataclasses import replace

import numpy as np

from kdcache.shapes import Int64, Shaped
from kdcache.store.layout import Grid
from kdcache.store.reader import Cache


def grid_of(cache: Cache, name: str) -> Grid | None:
    """How an array of a finished cache is cut; None where it has none, or a foreign layout."""
    if f"{name}/zarr.json" not in cache.manifest.files:
        return None
    return Grid.from_metadata(name, json.loads((cache.path / name / "zarr.json").read_bytes()))


def map_shard(cache: Cache, grid: Grid, block: int, view: int) -> Shaped[np.ndarray, "R ..."]:
    """The rows in one file, mapped; the caller has made sure that the file is as promised."""
    path = cache.path / grid.shard_file(block, view)
    shape = (len(grid.block_rows(block)), *grid.row_shape)
    return np.memmap(path, grid.spec.numpy_dtype, "r", shape=shape)


def common_blocks(grid: Grid, there: Grid, rows: Int64[np.ndarray, " N"]) -> list[int]:
    """The blocks that hold the same rows of the same width and type in both, in every common view.

    Args:
        rows: the other array's row of each row of `grid`, -1 for none.
    """
    if replace(there, num_rows=grid.num_rows, num_views=grid.num_views) != grid:
        return []
    return [
        block
        for block in range(min(grid.num_blocks, there.num_blocks))
        if (own := grid.block_rows(block)) == there.block_rows(block)
        and np.array_equal(rows[own.start : own.stop], np.arange(own.start, own.stop))
    ]
