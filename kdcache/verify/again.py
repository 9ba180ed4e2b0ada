"""Files of a cache that only its images, or images and teacher, can make again.

Shards are made as they were the first time, by the engine of extraction: the same pieces, the same
batches. It works in the cache's `.work/`, and goes on there after an interruption.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdcache.extract import extract, job_again, made_with, maker_of, renderers
from kdcache.files import canonical_json
from kdcache.images import ImageIndex, ImageSet, index_images
from kdcache.progress import Bar
from kdcache.shapes import Bool
from kdcache.store import Grid, Manifest, RowIndex, create_cache, head_files, layout, plain
from kdcache.store.index import index_files, readable_files
from kdcache.store.publish import WORK
from kdcache.teachers import Teacher
from kdcache.verify.images import Matched, match_images, rows_of
from kdcache.views import ViewMaker, Witness, witness_mask, witnesses_to_arrays

_ROWS_AT_ONCE = 4096
"""Whose witnesses are looked for together."""


@dataclass(frozen=True, eq=False)
class Means:
    """What a cache was made from, as it is at hand now."""

    images: ImageSet
    teacher: Callable[[], Teacher]
    """Loads it; asked for when it is needed."""
    device: torch.device
    workers: int
    bar: Bar

    @cached_property
    def index(self) -> ImageIndex:
        """The ids of all images."""
        with self.bar("index", total=len(self.images), unit="images") as progress:
            return index_images(self.images, progress=progress)


def index_again(means: Means) -> dict[str, bytes]:
    """The files that say what the rows are, if the images are the very set they were."""
    images = means.images
    return index_files(RowIndex(means.index.ids, images.labels, images.classes, images.paths))


def head_again(teacher: Teacher) -> dict[str, bytes]:
    """The files of the teacher's own head."""
    head = teacher.head
    return {} if head is None else head_files(head.layers, head.to_arrays())


def match_again(means: Means, index: RowIndex, readable: Bool[np.ndarray, " N"]) -> Matched:
    """The images of the rows."""
    with means.bar("match", total=len(means.images), unit="images") as progress:
        return match_images(index, readable, means.images, thorough=True, progress=progress)


def views_again(
    means: Means,
    recipe: Mapping[str, Any],
    index: RowIndex,
    readable: Bool[np.ndarray, " N"],
    matched: Matched,
    root: Path,
) -> ViewMaker:
    """Renders the views of the cache."""
    rows, ids = rows_of(index, readable, means.images, matched)
    return maker_of(recipe, rows, ids, root)


def unreadable_again(
    maker: ViewMaker, index: RowIndex, readable: Bool[np.ndarray, " N"]
) -> dict[str, bytes]:
    """The files that say which rows could not be read, and why."""
    rows = np.flatnonzero(~readable)
    why = maker.make(rows, np.array([0])).unreadable if len(rows) else {}
    if len(why) < len(rows):
        return {}  # an image can be decoded now
    return readable_files(index, readable, why)


def witness_again(
    maker: ViewMaker, readable: Bool[np.ndarray, " N"], num_views: int
) -> dict[str, bytes]:
    """The files of the witness; none where one of its images is not here."""
    num_rows, views = len(readable), np.arange(num_views)
    found: list[Witness] = []
    for start in range(0, num_rows, _ROWS_AT_ONCE):
        rows = np.arange(start, min(start + _ROWS_AT_ONCE, num_rows))
        kept = witness_mask(rows, views, num_rows, num_views) & readable[rows, None]
        for row in rows[kept.any(axis=1)]:
            mask = kept[row - start]
            if maker.images.read(int(row)) == b"":
                return {}
            shown = views[mask]
            made = maker.make(np.array([row]), shown, np.ones((1, len(shown)), np.bool_))
            found += made.witnesses
    files = {"witness/zarr.json": plain.group_file({})}
    for name, values in witnesses_to_arrays(found).items():
        files |= plain.array_files(f"witness/{name}", values)
    return files


def shards_again(
    root: Path,
    manifest: Manifest,
    recipe: Mapping[str, Any],
    index: RowIndex,
    maker: ViewMaker,
    means: Means,
    blocks: Collection[tuple[Grid, int]],
) -> Path:
    """The folder that holds the shards of these blocks, at their paths, made now.

    Raises:
        DataError, CacheMismatch: as extraction does.
    """
    job = job_again(recipe, maker, means.teacher(), manifest.num_views)
    versions = made_with(means.device)
    # What was begun with other libraries is not gone on with.
    folder = root / WORK / f"again-{hashlib.sha256(canonical_json(versions)).hexdigest()[:8]}"
    writer = create_cache(
        folder,
        recipe=recipe,
        arrays=job.array_specs(),
        num_views=manifest.num_views,
        index=index,
        made_with=versions,
    )
    pieces = {piece for grid, block in blocks for piece in _pieces(grid, block)}
    left = [piece for piece in writer.missing() if piece in pieces]
    total = sum(len(writer.piece_rows(piece)) for piece in pieces)
    done = total - sum(len(writer.piece_rows(piece)) for piece in left)
    with means.bar("repair", total=total, unit="images", done=done) as progress:
        rendering = renderers(job, device=means.device, workers=means.workers)
        extract(job, writer, left, rendering, device=means.device, progress=progress)
    for grid, block in blocks:  # who was killed may have left all pieces, and no shard
        writer.seal_shards_around(grid.block_rows(block))
    return folder


def _pieces(grid: Grid, block: int) -> range:
    rows = grid.block_rows(block)
    return range(rows.start // layout.PIECE_ROWS, -(-rows.stop // layout.PIECE_ROWS))
