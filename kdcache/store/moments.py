"""Mean and variance of an array's dimensions, the same to the last bit however it was made.

Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
variances", 1979, eq. 2.1.
"""

from pathlib import Path

import numpy as np

from kdcache.progress import Progress, silent
from kdcache.shapes import Bool, Float
from kdcache.store import plain
from kdcache.store.layout import Grid
from kdcache.store.quantise import Quantised, Stored, dequantise


class Moments:
    """Population mean and variance of rows that arrive in chunks; the order of chunks matters."""

    def __init__(self, dim: int) -> None:
        self._count = 0
        self._mean = np.zeros(dim)
        self._squares = np.zeros(dim)

    def add(self, values: Float[np.ndarray, "R D"]) -> None:
        count = len(values)
        if count == 0:
            return
        exact = values.astype(np.float64)
        mean = exact.sum(axis=0) / count
        squares = np.square(exact - mean).sum(axis=0)
        step = mean - self._mean
        total = self._count + count
        self._squares += squares + np.square(step) * (self._count * count / total)
        self._mean += step * (count / total)
        self._count = total

    def arrays(self) -> dict[str, Float[np.ndarray, " D"]]:
        """`mean` and `variance`, in the units of the values."""
        return {"mean": self._mean, "variance": self._squares / max(self._count, 1)}


def statistics_files(
    root: Path, grid: Grid, readable: Bool[np.ndarray, " N"], progress: Progress = silent
) -> dict[str, bytes]:
    """The files of the group `statistics` that belong to one array, of its shards.

    Args:
        progress: counts shards, those of scale and minimum too.
    """
    moments = Moments(grid.spec.dim)
    for view in range(grid.num_views):
        for block in range(grid.num_blocks):
            rows = grid.block_rows(block)
            shard = _load_shard(root, grid, block, view)
            for start in range(0, len(rows), grid.chunk_rows):
                chunk = dequantise(shard[start : start + grid.chunk_rows])
                at = rows.start + start
                moments.add(chunk[readable[at : at + len(chunk)]])
            progress(len(grid.parts()))
    group = f"statistics/{grid.spec.name}"
    files = {"statistics/zarr.json": plain.group_file({})}
    files[f"{group}/zarr.json"] = plain.group_file({})
    for key, values in moments.arrays().items():
        files |= plain.array_files(f"{group}/{key}", values)
    return files


def _load_shard(root: Path, grid: Grid, block: int, view: int) -> Stored:
    """The rows of one block and view, of all the arrays on disk that hold them."""
    num_rows = len(grid.block_rows(block))
    parts = [
        np.fromfile(
            root / part.shard_file(block, view),
            part.spec.numpy_dtype,
            num_rows * part.spec.dim,
        ).reshape(num_rows, *part.row_shape)
        for part in grid.parts()
    ]
    return Quantised(*parts) if grid.spec.is_quantised else parts[0]
