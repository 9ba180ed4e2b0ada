"""The index: which bytes stand behind each row, so that views and caches can name them.

An image id is the first 16 bytes of SHA-256 of the encoded file: with 10^9 images the chance that
any two differ and share an id is about 10^-21.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from kdcache.errors import DataError
from kdcache.images.formats import why_no_image
from kdcache.images.image_set import ImageSet
from kdcache.progress import Progress, silent
from kdcache.shapes import Int64, UInt8

_ID_BYTES = 16
_ROWS_A_TASK = 256
_ROWS_AT_ONCE = 16
"""Rows that are read, and held in memory, together."""


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """What one pass over the bytes of all images told."""

    ids: UInt8[np.ndarray, "N 16"]
    """Image ids, in the order of the rows."""
    num_bytes: Int64[np.ndarray, " N"]
    """Sizes of the encoded files."""
    suspects: dict[int, str]
    """Rows whose bytes are plainly no image, with the reason."""


def image_id(data: bytes) -> bytes:
    """The name of an encoded image: the first 16 bytes of its SHA-256."""
    return hashlib.sha256(data).digest()[:_ID_BYTES]


def index_images(images: ImageSet, threads: int = 8, progress: Progress = silent) -> ImageIndex:
    """Ids, sizes and suspects of all rows; each file is read once.

    Args:
        threads: that read at the same time; at most 16 files for each are in memory.

    Raises:
        DataError: a file is gone since the set was opened.
    """
    ids = np.empty((len(images), _ID_BYTES), dtype=np.uint8)
    num_bytes = np.empty(len(images), dtype=np.int64)

    def index_rows(rows: Sequence[int]) -> dict[int, str]:
        suspects = {}
        groups = (rows[at : at + _ROWS_AT_ONCE] for at in range(0, len(rows), _ROWS_AT_ONCE))
        for row, data in (pair for group in groups for pair in _read(images, group)):
            ids[row] = np.frombuffer(image_id(data), dtype=np.uint8)
            num_bytes[row] = len(data)
            reason = why_no_image(data)
            if reason is not None:
                suspects[row] = reason
        return suspects

    tasks = [
        range(start, min(start + _ROWS_A_TASK, len(images)))
        for start in range(0, len(images), _ROWS_A_TASK)
    ]
    suspects: dict[int, str] = {}
    with ThreadPoolExecutor(threads) as pool:
        # map drops the tasks that are still waiting when one of them raises.
        for rows, found in zip(tasks, pool.map(index_rows, tasks), strict=True):
            suspects |= found
            progress(len(rows))
    return ImageIndex(ids, num_bytes, suspects)


def _read(images: ImageSet, rows: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    return zip(rows, images.read_rows(rows), strict=True)


def dataset_fingerprint(images: ImageSet, index: ImageIndex) -> str:
    """A SHA-256, in hexadecimal, of all paths, image ids and label names in their order.

    Where the set lies does not enter: the same data below another root has the same fingerprint.
    """
    digest = hashlib.sha256()
    for row, path in enumerate(images.paths):
        label = int(images.labels[row])
        name = b"-" if label < 0 else b"+" + images.classes[label].encode()
        # Lengths go before the texts, so that no two different sets spell the same bytes.
        for part in (path.encode(), index.ids[row].tobytes(), name):
            digest.update(b"%d:" % len(part))
            digest.update(part)
    return digest.hexdigest()


def refuse_suspects(images: ImageSet, index: ImageIndex, *, hint: str) -> None:
    """Say which files are no images, before anything is computed.

    Raises:
        DataError: there are such files.
    """
    if index.suspects:
        row = min(index.suspects)
        raise DataError(
            f"{len(index.suspects):,} of {len(images):,} files are no images, the first is "
            f"`{images.paths[row]}`: {index.suspects[row]}",
            hint=hint,
        )
