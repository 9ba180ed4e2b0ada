"""Stitching: the shards of one array, mapped side by side, are one ndarray that no one copied.

An uncompressed shard is its rows and then its index, so its rows can be mapped as they lie. An
address range for the whole array is reserved first, and each shard is mapped into its place. Any
other way to gather random rows was measured 15 to 2000 times slower.
"""

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from kdcache.shapes import Int, Shaped
from kdcache.store.layout import Grid

_MAP_FIXED = 0x10  # the same on Linux and macOS; Python's mmap does not name it


def can_stitch(grid: Grid) -> bool:
    """Whether this system maps files side by side, and the shards are whole pages."""
    return hasattr(mmap, "MAP_ANON") and _step_bytes(grid) % mmap.ALLOCATIONGRANULARITY == 0


class Stitched:
    """One array as an ndarray `[V x N, ...]`, of which the views that were mapped can be read.

    A mapped file must not be shortened: the system answers a read behind its end with SIGBUS.
    """

    def __init__(self, root: Path, grid: Grid) -> None:
        self._root = root
        self._grid = grid
        self._view_bytes = grid.num_blocks * _step_bytes(grid)
        # Anonymous read-only pages cost nothing until a shard takes their place. The object owns
        # the whole range, and unmaps it when the last array that looks at it is gone.
        size = grid.num_views * self._view_bytes
        self._range = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANON, mmap.PROT_READ)
        values = np.frombuffer(self._range, grid.spec.numpy_dtype)
        self._address = values.ctypes.data
        self._stored_rows = self._view_bytes // grid.row_bytes
        self._values = values.reshape(grid.num_views * self._stored_rows, *grid.row_shape)

    def map_view(self, view: int, blocks: Iterable[int]) -> None:
        """Make these blocks of a view readable; the rows of others are zeros."""
        for block in blocks:
            path = self._root / self._grid.shard_file(block, view)
            offset = view * self._view_bytes + block * _step_bytes(self._grid)
            _map_file(
                path, self._address + offset, self._grid.stored_rows(block) * self._grid.row_bytes
            )
        # Otherwise the kernel reads ahead: 486 times the bytes of the rows that were asked for.
        self._range.madvise(mmap.MADV_RANDOM, view * self._view_bytes, self._view_bytes)

    def gather(
        self, rows: Int[np.ndarray, " B"], views: Int[np.ndarray, " B"]
    ) -> Shaped[np.ndarray, "B ..."]:
        """A copy of the given rows, each of its view."""
        # One index over all of it: `take` copies whole rows, which indexing by two arrays does not.
        taken: np.ndarray = self._values.take(views * self._stored_rows + rows, axis=0)
        return taken


def _step_bytes(grid: Grid) -> int:
    """The distance from shard to shard."""
    return grid.shard_rows * grid.row_bytes


def _map_file(path: Path, address: int, size: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int64,
    ]
    handle = os.open(path, os.O_RDONLY)
    try:
        flags = mmap.MAP_SHARED | _MAP_FIXED
        if libc.mmap(address, size, mmap.PROT_READ, flags, handle, 0) != address:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(path))
    finally:
        os.close(handle)
