"""A part of an image set, which is an image set too."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdcache.images.image_set import ImageSet
from kdcache.shapes import Int64


@dataclass(frozen=True, eq=False)
class ImagePart(ImageSet):
    """Some rows of a set."""

    whole: ImageSet
    rows: Int64[np.ndarray, " R"]
    """Places in `whole`."""

    def read(self, row: int) -> bytes:
        """The encoded file of one row of the part."""
        return self.whole.read(int(self.rows[row]))

    def read_rows(self, rows: Sequence[int]) -> list[bytes]:
        """The encoded files of some rows of the part."""
        return self.whole.read_rows([int(self.rows[row]) for row in rows])


def take_rows(images: ImageSet, rows: Int64[np.ndarray, " R"]) -> ImagePart:
    """The images of these rows, which rise; the classes are those of the whole set."""
    assert (np.diff(rows) > 0).all()
    paths = [images.paths[row] for row in rows.tolist()]
    return ImagePart(images.source, paths, images.labels[rows], images.classes, images, rows)
