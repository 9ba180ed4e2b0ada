"""Render: a decoded image and a view's parameters become pixels, one view at a time.

Extraction and training share one renderer; its id and version are part of a cache's name, because
resize and colour differ between libraries while the parameters of a view do not. The box is cut
before the resize, which reads nothing outside it and is always antialiased; colour follows at the
rendered size.

*Source:* the order of operations is MoCo-v2's (crop, jitter, grey, blur, flip; a flip commutes with
the rest and comes first here); pipeline.md, sections 2 to 4, for the choice of libraries.
"""

import itertools
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
import torch
from torch.nn import functional

from kdcache.errors import ConfigError
from kdcache.shapes import UInt8
from kdcache.views.draw import FACTOR_ONE, SIGMA_ONE
from kdcache.views.policies import REFERENCE_SIZE


@runtime_checkable
class Renderer(Protocol):
    """A way to make pixels; the same parameters and libraries give the same bits."""

    id: str
    version: int

    def environment(self) -> dict[str, str]:
        """The libraries and the processor features that this renderer's bits depend on."""
        ...

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


class R0:
    """Bytes resized by torch and coloured by OpenCV: fast, its bits tied to both libraries."""

    id = "r0"
    version = 1

    def environment(self) -> dict[str, str]:
        """The versions of torch and OpenCV, and the instruction set torch has chosen."""
        return {
            "torch": torch.__version__,
            "opencv": cv2.__version__,
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        }

    def geometry(
        self, pixels: UInt8[np.ndarray, "H W 3"], view: np.void, size: int
    ) -> UInt8[np.ndarray, "{size} {size} 3"]:
        """The view's box of the decoded image, resized and perhaps mirrored."""
        top, left = int(view["top"]), int(view["left"])
        crop = pixels[top : top + int(view["height"]), left : left + int(view["width"])]
        # The batch dimension comes first, then the permutation: only so does torch see
        # channels_last, whose bytes stay as they are on the way in and out.
        batch = torch.from_numpy(np.require(crop, requirements=["C", "W"]))[None]
        resized = functional.interpolate(
            batch.permute(0, 3, 1, 2), size=(size, size), mode="bilinear", antialias=True
        )
        square = np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())
        return cv2.flip(square, 1) if view["flip"] else square

    def colour(
        self, pixels: UInt8[np.ndarray, "S S 3"], view: np.void
    ) -> UInt8[np.ndarray, "S S 3"]:
        """What `geometry` made, after jitter, grey and blur."""
        if view["jitter"]:
            for name, change in _ORDERS[view["order"]]:
                pixels = change(pixels, int(view[name]))
        if view["grey"]:
            pixels = cv2.cvtColor(_grey(pixels), cv2.COLOR_GRAY2RGB)
        if view["sigma"]:
            pixels = _blur(pixels, view["sigma"] / SIGMA_ONE * len(pixels) / REFERENCE_SIZE)
        return pixels


def get_renderer(name: str) -> Renderer:
    """The renderer of this id.

    Raises:
        ConfigError: there is none of this id.
    """
    if name != R0.id:
        raise ConfigError(f"no renderer `{name}`", hint=f"there is: {R0.id}")
    return R0()


def _brightness(pixels: UInt8[np.ndarray, "S S 3"], factor: int) -> UInt8[np.ndarray, "S S 3"]:
    return cv2.LUT(pixels, _blend_table(0, factor))


def _contrast(pixels: UInt8[np.ndarray, "S S 3"], factor: int) -> UInt8[np.ndarray, "S S 3"]:
    grey = _grey(pixels)
    total = int(cv2.sumElems(grey)[0])  # whole numbers in float64: exact, for any thread count
    mean = (2 * total + grey.size) // (2 * grey.size)
    return cv2.LUT(pixels, _blend_table(mean, factor))


def _blend_table(origin: int, factor: int) -> UInt8[np.ndarray, " 256"]:
    """Every level moved away from (or towards) `origin` and rounded down, as Pillow blends."""
    levels = np.arange(256)
    moved = (origin * FACTOR_ONE + (levels - origin) * factor) // FACTOR_ONE
    return np.clip(moved, 0, 255).astype(np.uint8)


def _saturation(pixels: UInt8[np.ndarray, "S S 3"], factor: int) -> UInt8[np.ndarray, "S S 3"]:
    grey = cv2.cvtColor(_grey(pixels), cv2.COLOR_GRAY2RGB)
    weight = factor / FACTOR_ONE
    # OpenCV rounds to the nearest level and Pillow down; a little less than half a level is taken
    # off, so that whole numbers stay what they are.
    return cv2.addWeighted(pixels, weight, grey, 1 - weight, -0.498)


def _hue(pixels: UInt8[np.ndarray, "S S 3"], shift: int) -> UInt8[np.ndarray, "S S 3"]:
    """Hue turned in HSV, with 256 steps a turn."""
    steps = (shift * 256 + FACTOR_ONE // 2) // FACTOR_ONE
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(steps % 256)  # wraps at a full turn
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def _grey(pixels: UInt8[np.ndarray, "S S 3"]) -> UInt8[np.ndarray, "S S"]:
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)


def _blur(pixels: UInt8[np.ndarray, "S S 3"], sigma: float) -> UInt8[np.ndarray, "S S 3"]:
    side = 2 * int(np.ceil(3 * sigma)) + 1
    return cv2.GaussianBlur(pixels, (side, side), sigma, borderType=cv2.BORDER_REPLICATE)


_JITTER = (
    ("brightness", _brightness),
    ("contrast", _contrast),
    ("saturation", _saturation),
    ("hue", _hue),
)
_ORDERS = tuple(itertools.permutations(_JITTER))
