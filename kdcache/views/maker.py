"""ViewMaker: rows and view indices become pixels; the whole way from bytes to a rendered view.

An image is read and decoded once for all its views, and every view is rendered alone from its own
parameters: batch, worker, process and order leave no trace in the pixels.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdcache.errors import DataError
from kdcache.images import ImageSet, Unreadable, decode, image_id
from kdcache.shapes import Bool, Int, UInt8
from kdcache.views.draw import draw
from kdcache.views.policies import Policy
from kdcache.views.render import Renderer
from kdcache.views.witness import Witness, witness_of

# Images decoded before their views are drawn together: enough to make drawing cheap (numpy's
# overhead is per call), few enough to be held in memory when they are large.
_DRAWN_TOGETHER = 16


@dataclass(eq=False)
class Made:
    """The views of a batch."""

    pixels: list[UInt8[np.ndarray, "R _ _ 3"]]
    """An array a view, each square and of its own side; zeros where an image is unreadable."""
    unreadable: dict[int, str]
    """Why, by row."""
    witnesses: list[Witness]
    """Of the views that were asked for; none of unreadable images."""
    decode_s: float = 0.0
    """Seconds of reading, checking and decoding."""
    render_s: float = 0.0
    """Seconds of all else."""


@dataclass(frozen=True, eq=False)
class ViewMaker:
    """Makes the views of one policy and seed of a set of images. Can be pickled."""

    images: ImageSet
    ids: UInt8[np.ndarray, "N 16"]
    """The image ids at the time the images were indexed."""
    policy: Policy
    seed: int
    renderer: Renderer
    size: int
    """Height and width of the rendered views, in pixels; where the policy has small crops, those of
    its large one."""

    def make(
        self,
        rows: Int[np.ndarray, " R"],
        views: Int[np.ndarray, " V"],
        witness: Bool[np.ndarray, "R V"] | None = None,
    ) -> Made:
        """The given views of the images in the given rows.

        Args:
            witness: which of them to take a witness of (`witness_mask`); none by default.

        Raises:
            DataError: an image is not the one that was indexed.
        """
        (made,) = self.make_at([self.size], rows, views, witness)
        return made

    def make_at(
        self,
        sizes: Sequence[int],
        rows: Int[np.ndarray, " R"],
        views: Int[np.ndarray, " V"],
        witness: Bool[np.ndarray, "R V"] | None = None,
    ) -> list[Made]:
        """The same views in several sizes, of one decoding.

        Raises:
            DataError: an image is not the one that was indexed.
        """
        all_made = []
        for size in sizes:
            sides = [self.policy.side(view, size) for view in views.tolist()]
            pixels = [np.zeros((len(rows), side, side, 3), np.uint8) for side in sides]
            all_made.append(Made(pixels=pixels, unreadable={}, witnesses=[]))
        if witness is None:
            witness = np.zeros((len(rows), len(views)), np.bool_)
        for start in range(0, len(rows), _DRAWN_TOGETHER):
            part = range(start, min(start + _DRAWN_TOGETHER, len(rows)))
            self._make_part(rows, views, witness, part, all_made)
        return all_made

    def _make_part(
        self,
        rows: Int[np.ndarray, " R"],
        views: Int[np.ndarray, " V"],
        witness: Bool[np.ndarray, "R V"],
        part: range,
        all_made: list[Made],
    ) -> None:
        started = time.perf_counter()
        decoded: dict[int, UInt8[np.ndarray, "H W 3"]] = {}
        encoded = self.images.read_rows(rows[part.start : part.stop].tolist())
        for i, data in zip(part, encoded, strict=True):
            try:
                decoded[i] = self._decode(int(rows[i]), data)
            except Unreadable as error:
                for made in all_made:
                    made.unreadable[int(rows[i])] = str(error)
        decode_s = time.perf_counter() - started
        places = list(decoded)
        sides = np.array([image.shape[:2] for image in decoded.values()], np.int64).reshape(-1, 2)
        ids = self.ids[rows[places]]
        drawn = draw(self.policy, self.seed, ids, views, sides[:, 0], sides[:, 1])
        for made in all_made:
            started = time.perf_counter()
            for i, parameters in zip(places, drawn, strict=True):
                for j, view in enumerate(parameters):
                    shaped = self.renderer.geometry(decoded[i], view, made.pixels[j].shape[1])
                    final = self.renderer.colour(shaped, view)
                    made.pixels[j][i] = final
                    if witness[i, j]:
                        made.witnesses.append(
                            witness_of(int(rows[i]), int(views[j]), view, decoded[i], shaped, final)
                        )
            made.decode_s += decode_s
            made.render_s += time.perf_counter() - started

    def _decode(self, row: int, data: bytes) -> UInt8[np.ndarray, "H W 3"]:
        found, expected = image_id(data), self.ids[row].tobytes()
        if found != expected:
            raise DataError(
                f"`{self.images.paths[row]}` has changed since it was indexed: "
                f"its id is `{found.hex()}`, not `{expected.hex()}`",
                hint="put the original file back, or index the images again with `kdcache extract`",
            )
        return decode(data)
