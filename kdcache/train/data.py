"""What the steps of a run show: images joined to the rows of a cache, rendered as it says."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdcache.errors import DataError
from kdcache.images import ImageSet, index_images
from kdcache.progress import Progress, silent
from kdcache.shapes import Int64, UInt8
from kdcache.store import Cache
from kdcache.targets import SampleStream
from kdcache.views import ViewMaker


@dataclass(frozen=True)
class ViewSchedule:
    """Which views an epoch shows: one after the other, from the start again when they run out."""

    per_step: int
    """Views of an image in one step."""
    num_cached: int | None
    """Views that the cache holds; None draws fresh ones for ever."""

    def views(self, epoch: int) -> list[int]:
        """The views of an epoch; before the first epoch (negative) they wrap round as well."""
        first = epoch * self.per_step
        views = range(first, first + self.per_step)
        return [v % self.num_cached if self.num_cached is not None else v for v in views]


@dataclass(frozen=True, eq=False)
class RowImages(ImageSet):
    """Images in another order, such as that of a cache's rows."""

    images: ImageSet
    places: Int64[np.ndarray, " N"]
    """Where in `images` each row is; -1 for none."""

    def read(self, row: int) -> bytes:
        """The encoded image of a row."""
        assert self.places[row] >= 0, "this row has no image"
        return self.images.read(int(self.places[row]))


def join_images(cache: Cache, images: ImageSet, progress: Progress = silent) -> RowImages:
    """The images of the cache's readable rows, found among `images`.

    A path is only a hint: images are matched by path first, those left over by the hash of their
    bytes, and each one that is read later proves its identity again.

    Raises:
        DataError: some rows of the cache have no image here.
    """
    at_path = {path: at for at, path in enumerate(images.paths)}
    places = np.full(cache.num_rows, -1, np.int64)
    readable = np.flatnonzero(cache.readable)
    places[readable] = [at_path.get(cache.paths[row], -1) for row in readable]
    lost = readable[places[readable] < 0]
    progress(len(readable) - len(lost))
    if len(lost):
        left = np.setdiff1d(np.arange(len(images)), places)
        by_id = dict(zip(_ids(images, left, progress), left, strict=True))
        places[lost] = [by_id.get(cache.image_ids[row].tobytes(), -1) for row in lost]
        lost = lost[places[lost] < 0]
    if len(lost):
        raise DataError(
            f"{len(lost):,} of the cache's {len(readable):,} images are not in "
            f"`{images.source}`, the first is `{cache.paths[lost[0]]}`",
            hint="give --data the images that the cache was made from",
        )
    return RowImages(
        source=images.source,
        paths=cache.paths,
        labels=cache.labels,
        classes=cache.classes,
        images=images,
        places=places,
    )


def _ids(images: ImageSet, rows: Int64[np.ndarray, " R"], progress: Progress) -> list[bytes]:
    """The image ids of some rows of a set, read by several threads."""
    some = RowImages(
        source=images.source,
        paths=[images.paths[row] for row in rows],
        labels=images.labels[rows],
        classes=images.classes,
        images=images,
        places=rows,
    )
    return [found.tobytes() for found in index_images(some, progress=progress).ids]


@dataclass(frozen=True)
class StepImages:
    """Item n: the rendered views of step n's samples, one tensor a view."""

    maker: ViewMaker
    stream: SampleStream
    rows: Int64[np.ndarray, " N"]
    """The row of each sample in the maker's images."""
    schedule: ViewSchedule

    def __getitem__(self, step: int) -> list[UInt8[Tensor, "B S S 3"]]:
        """The views of a step.

        Raises:
            DataError: an image has changed, or cannot be read any more.
        """
        epoch = step // self.stream.steps_per_epoch
        rows = self.rows[self.stream.batch(step)]
        made = self.maker.make(rows, np.array(self.schedule.views(epoch)))
        for row, reason in made.unreadable.items():
            path = self.maker.images.paths[row]
            raise DataError(
                f"`{path}` cannot be read: {reason}",
                hint="put the file back as it was, or take it out (and extract again)",
            )
        views = np.moveaxis(made.pixels, 1, 0)
        return [torch.from_numpy(np.ascontiguousarray(view)) for view in views]
