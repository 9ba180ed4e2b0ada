"""Reading one array of a cache as it lies on disk: a whole view, or any rows of any views.

The fast ways need numpy and mmap only. An array that another program rewrote in another Zarr
layout is read through zarr-python, with a warning, as that is far slower.
"""

import json
import math
import os
import struct
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.errors import CacheCorrupt
from kdcache.shapes import Int, Shaped
from kdcache.store.layout import ArraySpec, Grid, crc32c
from kdcache.store.selection import Selection
from kdcache.store.stitch import Stitched, can_stitch

_READ_BYTES = 512 << 10
"""Asked for at once when a shard is read whole: half the time of 16 MiB, cold and warm."""
_CACHE_LINE = 64


class ArrayReader:
    """One array `[N, V, D]`, or a side array `[N, V]`, of a finished cache."""

    def __init__(self, root: Path, name: str, selection: Selection | None = None) -> None:
        """Read the array `name`; with a selection, only what that has is here."""
        self._root = root
        metadata = json.loads((root / name / "zarr.json").read_bytes())
        num_rows, num_views, *row_shape = metadata["shape"]
        dim = row_shape[0] if row_shape else 1
        self.spec = ArraySpec(name, dim, metadata["data_type"])
        self._shape = (num_rows, num_views)
        self._row_shape = tuple(row_shape)
        self._grid = Grid.from_metadata(name, metadata)
        self._blocks = _blocks(self._grid, selection) if self._grid is not None else []
        self._is_dense: dict[int, bool] = {}
        self._is_mapped = np.zeros(num_views, np.bool_)

    def slab(
        self, view: int, out: Shaped[np.ndarray, "N ..."] | None = None
    ) -> Shaped[np.ndarray, "N ..."]:
        """All rows of one view."""
        num_rows, num_views = self._shape
        if not 0 <= view < num_views:
            raise IndexError(f"view {view} of {num_views}")
        if out is None:
            out = _aligned((num_rows, *self._row_shape), self.spec.numpy_dtype)
        assert out.shape == (num_rows, *self._row_shape)
        assert out.dtype == self.spec.numpy_dtype
        assert out.flags.c_contiguous
        if self._grid is None or not self._dense(self._grid, view):
            out[:] = self._zarr[:, view]
            return out
        if len(self._blocks) < self._grid.num_blocks:
            out[:] = 0
        for block in self._blocks:
            rows = self._grid.block_rows(block)
            path = self._root / self._grid.shard_file(block, view)
            _read_into(path, out[rows.start : rows.stop].data.cast("B"))
        return out

    def rows(
        self, rows: Int[np.ndarray, " B"], views: Int[np.ndarray, " B"]
    ) -> Shaped[np.ndarray, "B ..."]:
        """A copy of the given rows, each of its view."""
        for what, given, count in zip(("rows", "views"), (rows, views), self._shape, strict=True):
            if len(given) and not (given.min() >= 0 and given.max() < count):
                raise IndexError(f"{what} {given.min()} to {given.max()} of {count}")
        if self._stitched is not None and self._map(self._stitched, views):
            return self._stitched.gather(rows, views)
        return self._rows_by_zarr(rows, views)

    @cached_property
    def _stitched(self) -> Stitched | None:
        if self._grid is None or not can_stitch(self._grid):
            return None
        return Stitched(self._root, self._grid)

    def _map(self, stitched: Stitched, views: Int[np.ndarray, " B"]) -> bool:
        """Map the views that are not mapped yet; whether all of them could be."""
        is_mapped = self._is_mapped[views]
        if is_mapped.all():
            return True
        for view in np.unique(views[~is_mapped]).tolist():
            assert self._grid is not None
            if not self._dense(self._grid, view):
                return False
            stitched.map_view(view, self._blocks)
            self._is_mapped[view] = True
        return True

    def _dense(self, grid: Grid, view: int) -> bool:
        if view not in self._is_dense:
            self._is_dense[view] = all(
                _is_dense(self._root / grid.shard_file(block, view), grid, block)
                for block in self._blocks
            )
        return self._is_dense[view]

    def _rows_by_zarr(
        self, rows: Int[np.ndarray, " B"], views: Int[np.ndarray, " B"]
    ) -> Shaped[np.ndarray, "B ..."]:
        out = np.empty((len(rows), *self._row_shape), self.spec.numpy_dtype)
        for view in np.unique(views).tolist():
            picked = views == view
            wanted, place = np.unique(rows[picked], return_inverse=True)
            out[picked] = self._zarr.oindex[wanted, view][place]
        return out

    @cached_property
    def _zarr(self) -> Any:
        import zarr

        warnings.warn(
            f"`{self._root / self.spec.name}` cannot be mapped into memory as it lies; it is read"
            " through zarr-python, which is far slower",
            RuntimeWarning,
            stacklevel=3,
        )
        return zarr.open_array(self._root / self.spec.name, mode="r")


def _blocks(grid: Grid, selection: Selection | None) -> list[int]:
    """The blocks of which shards are here."""
    blocks = range(grid.num_blocks)
    return [b for b in blocks if selection is None or selection.has_block(grid.block_rows(b))]


def _is_dense(path: Path, grid: Grid, block: int) -> bool:
    """Whether a shard is its rows in order and then its index.

    Raises:
        CacheCorrupt: the index does not fit its checksum.
    """
    expected = grid.tail(block)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(size - len(expected), 0))
        tail = file.read()
    if tail == expected:
        return size == grid.shard_bytes(block)
    if len(tail) < len(expected) or struct.unpack("<I", tail[-4:])[0] != crc32c(tail[:-4]):
        raise CacheCorrupt(
            f"the shard index of `{path}` does not fit its checksum",
            hint="`kdcache verify` names every broken file; fetch or extract them again",
        )
    return False


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Shaped[np.ndarray, "N ..."]:
    """An array to read into, at the start of a cache line: the system copies faster to there."""
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + _CACHE_LINE, np.uint8)
    start = -room.ctypes.data % _CACHE_LINE
    return room[start : start + size].view(dtype).reshape(shape)


def _read_into(path: Path, target: memoryview) -> None:
    with path.open("rb", buffering=0) as file:
        done = 0
        while done < len(target):
            count = file.readinto(target[done : done + _READ_BYTES])
            if not count:
                raise CacheCorrupt(
                    f"`{path}` ends after {done} bytes, and its rows take {len(target)}",
                    hint="fetch or extract the cache again",
                )
            done += count
