"""Reading a file of a cache once, for its digest and for what its rows look like."""

import hashlib
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np

from kdcache.shapes import UInt8
from kdcache.store import Grid
from kdcache.store.publish import FileDigest
from kdcache.verify.content import Marks, join, mark_rows

BUFFER_BYTES = 2 << 20
"""What is read at once: stays in the processor's cache while it is hashed and looked at."""


@dataclass(frozen=True)
class ShardScan:
    """What one pass over a shard told."""

    digest: FileDigest
    marks: Marks | None
    """Of the rows and the padding behind them; None where the file ends before they do."""
    tail: bytes
    """What follows them: the shard index."""


def scan_file(path: Path) -> FileDigest:
    """Size and digest of a file."""
    sha256, size = hashlib.sha256(), 0
    buffer = np.empty(min(BUFFER_BYTES, path.stat().st_size + 1), np.uint8)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer.data):
            sha256.update(buffer[:count].data)
            size += count
    return FileDigest(size, sha256.hexdigest())


def scan_shard(path: Path, grid: Grid, block: int) -> ShardScan:
    """Digest, index and the looks of all rows of a shard."""
    sha256, parts, short = hashlib.sha256(), [], 0
    num_rows = grid.stored_rows(block)
    step = min(max(1, BUFFER_BYTES // grid.row_bytes), num_rows)
    buffer = np.empty((step, grid.row_bytes), np.uint8)
    with path.open("rb", buffering=0) as file:
        size = 0
        for start in range(0, num_rows, step):
            rows = buffer[: min(step, num_rows - start)]
            count = _fill(file, rows)
            sha256.update(rows.data.cast("B")[:count])
            size += count
            short += rows.nbytes - count
            if not short:
                parts.append(mark_rows(rows.view(grid.spec.numpy_dtype)))
        tail = file.read()
    sha256.update(tail)
    digest = FileDigest(size + len(tail), sha256.hexdigest())
    return ShardScan(digest, None if short else join(parts), tail)


def read_rows(path: Path, grid: Grid, block: int, rows: list[int]) -> tuple[bytes, Marks]:
    """The index of a shard, and the looks of some of its rows, counted from the block's first.

    Raises:
        EOFError: the file ends before one of them does.
    """
    found = np.empty((len(rows), grid.row_bytes), np.uint8)
    with path.open("rb", buffering=0) as file:
        for place, row in zip(found, rows, strict=True):
            file.seek(row * grid.row_bytes)
            if _fill(file, place[None]) < grid.row_bytes:
                raise EOFError
        file.seek(grid.stored_rows(block) * grid.row_bytes)
        tail = file.read()
    return tail, mark_rows(found.view(grid.spec.numpy_dtype))


def _fill(file: FileIO, rows: UInt8[np.ndarray, "R B"]) -> int:
    """Read until the rows are full or the file ends; how many bytes came."""
    target = rows.data.cast("B")
    done = 0
    while done < len(target):
        count = file.readinto(target[done:])
        if not count:
            break
        done += count
    return done
