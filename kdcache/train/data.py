"""What the steps of a run show: images joined to the rows of a cache, rendered as it says."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdcache.distributed import Share, share_of
from kdcache.errors import DataError
from kdcache.images import ImageSet, index_images
from kdcache.progress import Progress, silent
from kdcache.shapes import Int64, UInt8
from kdcache.store import Cache
from kdcache.targets import SampleStream, pick_neighbours
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

    def read_rows(self, rows: Sequence[int]) -> list[bytes]:
        """The encoded images of some rows."""
        assert (self.places[list(rows)] >= 0).all(), "a row has no image"
        return self.images.read_rows(self.places[list(rows)].tolist())


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
class Plan:
    """Which samples and views each step shows: a pure function of the step."""

    stream: SampleStream
    schedule: ViewSchedule
    graph: Int64[np.ndarray, "N K"] | None = None
    """The samples next to each sample, for a method that shows neighbours too; -1 pads."""
    num_neighbours: int = 0
    """Neighbours beside each sample."""
    accumulate: int = 1
    """Equal parts of a batch that are looked at one after the other; all processes share each."""
    rank: int = 0
    """Which of `world_size` shares of each part this process has."""
    world_size: int = 1

    @property
    def share(self) -> Share:
        """This process's share of the images of a part."""
        count = self.stream.batch_size // self.stream.repeats // self.accumulate
        return share_of(count, self.rank, self.world_size)

    def views(self, step: int) -> list[int]:
        """The views of each image: those of the step's epoch, or of its epochs in turn."""
        return [v for epoch in self.stream.epochs(step) for v in self.schedule.views(epoch)]

    def samples(self, step: int) -> list[Int64[np.ndarray, " B"]]:
        """This process's images of the batch, part by part; then the first neighbour of each, and
        so on."""
        parts = self.stream.batch(step).reshape(self.accumulate, -1)
        batch = parts[:, self.share.rows].reshape(-1)
        if self.graph is None:
            return [batch]
        near = pick_neighbours(
            self.graph,
            batch,
            count=self.num_neighbours,
            seed=self.stream.seed,
            epoch=self.stream.turn(step),
        )
        return [batch, *near.T]


class StepPixels(NamedTuple):
    """The views of a step, one tensor a view; a named tuple, so that torch can pin what is in it.

    First those of the batch itself, then those of the first neighbours, and so on; each of them
    epoch by epoch.
    """

    student: list[UInt8[Tensor, "B _ _ 3"]]
    """At the student's size; only the views that it looks at."""
    teacher: list[UInt8[Tensor, "B _ _ 3"]]
    """At the teacher's size, all views; none unless the teacher is live."""


@dataclass(frozen=True)
class StepImages:
    """Item n: the rendered views of step n."""

    maker: ViewMaker
    plan: Plan
    rows: Int64[np.ndarray, " N"]
    """The row of each sample in the makers' images."""
    rendered: int
    """How many of an epoch's views the student looks at, from the first."""
    teacher_maker: ViewMaker | None = None
    """Renders for a live teacher."""

    def __getitem__(self, step: int) -> StepPixels:
        """The views of a step.

        Raises:
            DataError: an image has changed, or cannot be read any more.
        """
        views = np.array(self.plan.views(step))
        samples = self.plan.samples(step)
        per_epoch = self.plan.schedule.per_step
        looked_at = views.reshape(-1, per_epoch)[:, : self.rendered].reshape(-1)
        student = self._render(self.maker, samples, looked_at)
        if self.teacher_maker is None:
            return StepPixels(student, [])
        if self.teacher_maker.size == self.maker.size and self.rendered == per_epoch:
            return StepPixels(student, student)
        return StepPixels(student, self._render(self.teacher_maker, samples, views))

    def _render(
        self,
        maker: ViewMaker,
        samples: list[Int64[np.ndarray, " B"]],
        views: Int64[np.ndarray, " V"],
    ) -> list[UInt8[Tensor, "B _ _ 3"]]:
        return [view for group in samples for view in render(maker, self.rows[group], views)]


def render(
    maker: ViewMaker, rows: Int64[np.ndarray, " B"], views: Int64[np.ndarray, " V"]
) -> list[UInt8[Tensor, "B _ _ 3"]]:
    """The given views of the given rows, one tensor a view.

    Raises:
        DataError: an image has changed, or cannot be read any more.
    """
    made = maker.make(rows, views)
    for row, reason in made.unreadable.items():
        raise DataError(
            f"`{maker.images.paths[row]}` cannot be read: {reason}",
            hint="put the file back as it was, or take it out (and extract again)",
        )
    return [torch.from_numpy(view) for view in made.pixels]
