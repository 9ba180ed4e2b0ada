"""Render: a decoded image and a view's parameters become pixels, one view at a time.

Extraction and training share one renderer; its id and version are part of a cache's name, because
resize and colour differ between libraries while the parameters of a view do not. This one computes
in whole numbers (`kernels`), so that a cache made on one machine is trained from on any other with
the very pixels that its teacher saw. The box is cut before the resize, which reads nothing outside
it and is always antialiased; colour follows at the rendered size.

*Source:* the order of operations is MoCo-v2's (crop, jitter, grey, blur, flip; a flip commutes with
the rest and comes first here), each of them Pillow's but for rounding; pipeline.md, sections 2 to
4, for the measurements.
"""

import itertools
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np

from kdcache.errors import CacheMismatch
from kdcache.shapes import Int32, UInt8
from kdcache.views import kernels
from kdcache.views.draw import FACTOR_ONE, SIGMA_ONE
from kdcache.views.policies import REFERENCE_SIZE

_STRIP = 256
"""Columns that are resized together: what they become fits into a processor's own memory."""


@runtime_checkable
class Renderer(Protocol):
    """A way to make pixels; the same parameters give the same bits."""

    id: str
    version: int

    def geometry(
        self, pixels: UInt8[np.ndarray, "H W 3"], view: np.void, size: int
    ) -> UInt8[np.ndarray, "{size} {size} 3"]:
        """The view's box of the decoded image, resized and perhaps mirrored."""
        ...

    def colour(
        self, pixels: UInt8[np.ndarray, "S S 3"], view: np.void
    ) -> UInt8[np.ndarray, "S S 3"]:
        """What `geometry` made, after jitter, grey and blur."""
        ...


class R1:
    """Whole numbers only: the same bits on every machine, whatever the libraries."""

    id = "r1"
    version = 1

    def geometry(
        self, pixels: UInt8[np.ndarray, "H W 3"], view: np.void, size: int
    ) -> UInt8[np.ndarray, "{size} {size} 3"]:
        """The view's box of the decoded image, resized and perhaps mirrored."""
        top, left = int(view["top"]), int(view["left"])
        height, width = int(view["height"]), int(view["width"])
        inside = 0 <= top <= len(pixels) - height and 0 <= left <= pixels.shape[1] - width
        assert inside, f"box {view} is not inside an image of {len(pixels)} x {pixels.shape[1]}"
        # Rows are added up, which is fast; then rows and columns change places, twice.
        down, across = kernels.taps(height, size), kernels.taps(width, size)
        if view["flip"]:
            first, count, weights = (np.ascontiguousarray(part[::-1]) for part in across)
            across = first, count, weights
        source = np.ascontiguousarray(pixels).reshape(len(pixels), -1)
        turned = np.empty((width, size, 3), np.uint16)
        for start in range(0, width, _STRIP):
            stop = min(start + _STRIP, width)
            rows = np.empty((size, stop - start, 3), np.uint16)
            kernels.shrink_first(source, top, 3 * (left + start), *down, rows.reshape(size, -1))
            cv2.transpose(rows, dst=turned[start:stop])
        columns = np.empty((size, size, 3), np.uint8)
        kernels.shrink_second(turned.reshape(width, -1), *across, columns.reshape(size, -1))
        return np.asarray(cv2.transpose(columns))

    def colour(
        self, pixels: UInt8[np.ndarray, "S S 3"], view: np.void
    ) -> UInt8[np.ndarray, "S S 3"]:
        """What `geometry` made, after jitter, grey and blur."""
        size = len(pixels)
        if view["jitter"] or view["grey"]:
            planes = np.empty((3, size * size), np.uint8)
            kernels.to_planes(np.ascontiguousarray(pixels).reshape(-1), planes)
            if view["jitter"]:
                for name, change in _ORDERS[view["order"]]:
                    change(planes, int(view[name]))
            if view["grey"]:
                planes[:] = _grey(planes)[0]
            pixels = np.empty((size, size, 3), np.uint8)
            kernels.from_planes(planes, pixels.reshape(-1))
        if view["sigma"]:
            weights = blur_weights(int(view["sigma"]), size)
            rows = np.empty((size, 3 * size), np.uint16)
            kernels.blur_along(np.ascontiguousarray(pixels).reshape(size, -1), weights, rows)
            pixels = np.empty((size, size, 3), np.uint8)
            kernels.blur_across(rows, weights, pixels.reshape(size, -1))
        return pixels


def get_renderer() -> Renderer:
    """The renderer that views are made with."""
    return R1()


def renderer_of(recipe: Mapping[str, Any], cache: Path) -> Renderer:
    """The renderer that the views of a cache were made with.

    Args:
        recipe: of the cache.
        cache: named where it is refused.

    Raises:
        CacheMismatch: this kdcache renders otherwise.
    """
    said, here = recipe["views"]["renderer"], get_renderer()
    if (said["id"], said["version"]) != (here.id, here.version):
        raise CacheMismatch(
            f"`{cache}` was rendered by `{said['id']}` version {said['version']}; this kdcache "
            f"renders by `{here.id}` version {here.version}",
            hint="install the kdcache that made the cache, or extract again",
        )
    return here


@cache
def blur_weights(sigma: int, size: int) -> Int32[np.ndarray, " _"]:
    """Of a Gaussian blur: the weights of the middle, its first neighbours, and so on to 3 sigma.

    Those on both sides and the middle add up to `kernels.ONE`. Decimal numbers are rounded the same
    way everywhere, which the exponential of a processor's library is not.

    Args:
        sigma: in 1/1024 pixels of a view of 224.
        size: of the view, in pixels.
    """
    width = Decimal(sigma * size) / (SIGMA_ONE * REFERENCE_SIZE)
    reach = int((3 * width).to_integral_value(rounding="ROUND_CEILING"))
    heights = [(-(Decimal(k) ** 2) / (2 * width**2)).exp() for k in range(reach + 1)]
    total = heights[0] + 2 * sum(heights[1:])
    sides = [int((kernels.ONE * height / total).to_integral_value()) for height in heights[1:]]
    return np.array([kernels.ONE - 2 * sum(sides), *sides], np.int32)


def _brightness(planes: UInt8[np.ndarray, "3 P"], factor: int) -> None:
    kernels.blend_with_level(planes, 0, factor)


def _contrast(planes: UInt8[np.ndarray, "3 P"], factor: int) -> None:
    count = planes.shape[1]
    mean = (2 * _grey(planes)[1] + count) // (2 * count)
    kernels.blend_with_level(planes, mean, factor)


def _saturation(planes: UInt8[np.ndarray, "3 P"], factor: int) -> None:
    kernels.blend_with_grey(planes, _grey(planes)[0], factor)


def _hue(planes: UInt8[np.ndarray, "3 P"], shift: int) -> None:
    kernels.turn_hue(planes, shift)


def _grey(planes: UInt8[np.ndarray, "3 P"]) -> tuple[UInt8[np.ndarray, " P"], int]:
    """Luma, and the sum of it."""
    levels = np.empty(planes.shape[1], np.uint8)
    return levels, kernels.grey(planes, levels)


assert FACTOR_ONE == kernels.ONE, "factors are drawn in the unit that kernels blend in"

_JITTER: tuple[tuple[str, Callable[[UInt8[np.ndarray, "3 P"], int], None]], ...] = (
    ("brightness", _brightness),
    ("contrast", _contrast),
    ("saturation", _saturation),
    ("hue", _hue),
)
_ORDERS = tuple(itertools.permutations(_JITTER))
