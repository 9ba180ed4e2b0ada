"""Rendered batches for a frozen network: one view of every image, in a given order.

Shapes: R rows of a batch.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdcache.images import ImageSet, index_images
from kdcache.progress import silent
from kdcache.shapes import Int64, UInt8
from kdcache.views import Policy, ViewMaker, get_renderer
from kdcache.workers import render_ahead


class Batch(NamedTuple):
    """What could be rendered of a batch of rows, and why the rest could not."""

    rows: Int64[np.ndarray, " R"]
    pixels: UInt8[Tensor, "R S S 3"]
    unreadable: dict[int, str]


class _Views:
    """Item i is batch i: workers render whole batches, so nothing is collated afterwards."""

    def __init__(
        self, maker: ViewMaker, view: int, order: Int64[np.ndarray, " N"], batch_size: int
    ) -> None:
        self._maker = maker
        self._view = view
        self._order = order
        self._batch_size = batch_size

    def __len__(self) -> int:
        return math.ceil(len(self._order) / self._batch_size)

    def __getitem__(self, item: int) -> Batch:
        rows = self._order[item * self._batch_size : (item + 1) * self._batch_size]
        made = self._maker.make(rows, np.array([self._view]))
        readable = np.array([row not in made.unreadable for row in rows.tolist()], dtype=bool)
        pixels = torch.from_numpy(made.pixels[0][readable])
        return Batch(rows[readable], pixels, dict(made.unreadable))


def build_maker(
    images: ImageSet,
    policy: Policy,
    image_size: int,
    *,
    ids: UInt8[np.ndarray, "N 16"] | None = None,
    seed: int = 0,
    workers: int = 0,
) -> ViewMaker:
    """What renders these images.

    Args:
        ids: the image ids where they are known; else every file is read once to find them.
    """
    if ids is None:
        ids = index_images(images, threads=max(workers, 1), progress=silent).ids
    return ViewMaker(images, ids, policy, seed, get_renderer(), image_size)


def render(
    maker: ViewMaker,
    order: Int64[np.ndarray, " N"],
    view: int,
    *,
    batch_size: int,
    workers: int,
) -> Iterator[Batch]:
    """The images in this order, `batch_size` rows at a time; the last batch may be shorter."""
    views = _Views(maker, view, order, batch_size)
    return render_ahead(views, range(len(views)), workers=workers)
