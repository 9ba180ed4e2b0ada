"""Draw: the parameters of a view, a pure function of (policy, seed, image id, view index).

No stream of random numbers is consumed: every parameter owns fixed words of Philox, addressed by
counter = (id word 0, id word 1, view, block) and key = seed, whatever the policy asks for. A new
parameter takes a spare slot and moves nothing.

    block   word 0        word 1        word 2        word 3
    0       flip?         jitter?       brightness    contrast
    1       saturation    hue           order         grey?
    2       blur?         sigma         spare         spare
    3       spare         spare         spare         spare
    4 + t   area          aspect        top           left        of the crop's try t = 0..9

The id words are the first 8 bytes of the image id, as two little-endian words. All arithmetic is
exact or one IEEE operation at a time, and results are integers, so that parameters are the same
bits on any machine.

*Source:* the distributions are those of torchvision's RandomResizedCrop.get_params and
ColorJitter.get_params, with MoCo-v2's blur.
"""

import math

import numpy as np
from jaxtyping import Shaped, UInt32

from kdcache.shapes import Float, Int, Int64, UInt8
from kdcache.views.philox import philox4x32, split_seed
from kdcache.views.policies import Policy

FACTOR_ONE = 4096
"""Brightness, contrast and saturation factors of 1, and a full turn of hue."""
SIGMA_ONE = 1024
"""A blur of one pixel at the reference size."""

VIEW = np.dtype(
    [
        ("top", "<i4"),
        ("left", "<i4"),
        ("height", "<i4"),
        ("width", "<i4"),
        ("flip", "?"),
        ("jitter", "?"),
        ("brightness", "<i4"),
        ("contrast", "<i4"),
        ("saturation", "<i4"),
        ("hue", "<i4"),
        ("order", "u1"),
        ("grey", "?"),
        ("sigma", "<i4"),
    ]
)
"""A view's parameters: the box in source pixels, factors in 1/4096, hue in 1/4096 of a turn, the
index of the permutation of (brightness, contrast, saturation, hue), sigma in 1/1024 pixels of a
view of 224 (0: no blur), whatever the view's own side. What is not asked for has its neutral
value."""

_SLOTS = (
    *("flip", "jitter", "brightness", "contrast"),
    *("saturation", "hue", "order", "grey"),
    *("blur", "sigma", "spare_0", "spare_1"),
)
_FIRST_TRY_BLOCK = 4
_TRIES = 10
_NUM_ORDERS = math.factorial(4)
_LARGEST_SIDE = 2**31 - 1


def draw(
    policy: Policy,
    seed: int,
    ids: UInt8[np.ndarray, "B 16"],
    views: Int[np.ndarray, " V"],
    heights: Int[np.ndarray, " B"],
    widths: Int[np.ndarray, " B"],
) -> Shaped[np.ndarray, "B V"]:
    """The parameters (`VIEW`) of these views of these images.

    Args:
        seed: 64 bits.
        views: view indices from 0 to 2**32 - 1.
        heights: of the decoded images, in pixels; so `widths`.
    """
    assert np.all((views >= 0) & (views < 2**32)), "a view index has 32 bits and no sign"
    sides = np.stack([heights, widths]).astype(np.int64)
    assert np.all((sides > 0) & (sides <= _LARGEST_SIDE)), "an image side is out of range"

    num_images, num_views = len(ids), len(views)
    key = split_seed(seed)
    id_words = np.ascontiguousarray(ids[:, :8]).view("<u4")
    names = np.empty((num_images * num_views, 3), np.uint32)
    names[:, :2] = np.repeat(id_words, num_views, axis=0)
    names[:, 2] = np.tile(views, num_images)
    heights, widths = np.repeat(sides, num_views, axis=1)

    drawn = np.zeros(len(names), VIEW)
    if policy.crop == "random":
        boxes = _random_boxes(policy, key, names, heights, widths)
    else:
        boxes = _central_boxes(policy.center_fraction, heights, widths)
    for column, field in enumerate(("top", "left", "height", "width")):
        drawn[field] = boxes[:, column]
    _draw_appearance(policy, key, names, drawn)
    return drawn.reshape(num_images, num_views)


def _draw_appearance(
    policy: Policy, key: tuple[int, int], names: UInt32[np.ndarray, "P 3"], drawn: np.ndarray
) -> None:
    blocks = [_uniform(key, names, block) for block in range(len(_SLOTS) // 4)]
    u = dict(zip(_SLOTS, np.concatenate(blocks, axis=1).T, strict=True))

    drawn["flip"] = u["flip"] < policy.flip
    jitter = u["jitter"] < policy.jitter
    drawn["jitter"] = jitter
    for field in ("brightness", "contrast", "saturation"):
        reach = getattr(policy, field)
        factor = _between(u[field], 1 - reach, 1 + reach)
        drawn[field] = np.where(jitter, _quantise(factor, FACTOR_ONE), FACTOR_ONE)
    hue = _between(u["hue"], -policy.hue, policy.hue)
    drawn["hue"] = np.where(jitter, _quantise(hue, FACTOR_ONE), 0)
    drawn["order"] = np.where(jitter, np.floor(u["order"] * _NUM_ORDERS), 0)
    drawn["grey"] = u["grey"] < policy.grey
    # A small crop's blur is drawn in its own pixels.
    sigma = _between(u["sigma"], *policy.sigma) * policy.pixel_sizes(names[:, 2])
    sigma = _quantise(sigma, SIGMA_ONE)
    drawn["sigma"] = np.where(u["blur"] < policy.blur, np.maximum(sigma, 1), 0)


def _random_boxes(
    policy: Policy,
    key: tuple[int, int],
    names: UInt32[np.ndarray, "P 3"],
    heights: Int64[np.ndarray, " P"],
    widths: Int64[np.ndarray, " P"],
) -> Int64[np.ndarray, "P 4"]:
    """The first of ten tries that fits in the image, else the largest allowed central box."""
    boxes = _fallback_boxes(policy.ratio, heights, widths)
    # A rounded logarithm is the same on every libm.
    logs = [round(math.log(ratio) * 2**40) / 2**40 for ratio in policy.ratio]
    smallest, largest = policy.scales(names[:, 2])
    pending = np.arange(len(names))
    for attempt in range(_TRIES):
        if len(pending) == 0:
            break
        u = _uniform(key, names[pending], _FIRST_TRY_BLOCK + attempt)
        image_height, image_width = heights[pending], widths[pending]
        area = (image_height * image_width) * _between(u[:, 0], smallest[pending], largest[pending])
        aspect = _exp(_between(u[:, 1], *logs))
        height, width = np.rint(np.sqrt(area / aspect)), np.rint(np.sqrt(area * aspect))
        fits = (width > 0) & (width <= image_width) & (height > 0) & (height <= image_height)
        top = np.floor(u[:, 2] * (image_height - height + 1))
        left = np.floor(u[:, 3] * (image_width - width + 1))
        boxes[pending[fits]] = np.stack([top, left, height, width], axis=1)[fits]
        pending = pending[~fits]
    return boxes


def _fallback_boxes(
    ratio: tuple[float, float], heights: Int64[np.ndarray, " P"], widths: Int64[np.ndarray, " P"]
) -> Int64[np.ndarray, "P 4"]:
    """The largest central box whose aspect lies within `ratio`."""
    shape = widths / heights
    height = np.where(shape < ratio[0], np.rint(widths / ratio[0]), heights).astype(np.int64)
    width = np.where(shape > ratio[1], np.rint(heights * ratio[1]), widths).astype(np.int64)
    return np.stack([(heights - height) // 2, (widths - width) // 2, height, width], axis=1)


def _central_boxes(
    fraction: float, heights: Int64[np.ndarray, " P"], widths: Int64[np.ndarray, " P"]
) -> Int64[np.ndarray, "P 4"]:
    side = np.maximum(np.rint(fraction * np.minimum(heights, widths)).astype(np.int64), 1)
    return np.stack([(heights - side) // 2, (widths - side) // 2, side, side], axis=1)


def _uniform(
    key: tuple[int, int], names: UInt32[np.ndarray, "P 3"], block: int
) -> Float[np.ndarray, "P 4"]:
    """Four numbers in [0, 1) for every (id word 0, id word 1, view)."""
    counter = np.empty((len(names), 4), np.uint32)
    counter[:, :3] = names
    counter[:, 3] = block
    return np.asarray(philox4x32(counter, key) * 2.0**-32)


def _between(
    u: Float[np.ndarray, " P"],
    low: float | Float[np.ndarray, " P"],
    high: float | Float[np.ndarray, " P"],
) -> Float[np.ndarray, " P"]:
    return low + u * (high - low)


def _quantise(values: Float[np.ndarray, " P"], one: int) -> Float[np.ndarray, " P"]:
    return np.asarray(np.rint(values * one))


def _exp(x: Float[np.ndarray, " P"]) -> Float[np.ndarray, " P"]:
    """e to the power of x by its series, since each libm and CPU has its own last bit of exp."""
    total = np.ones_like(x)
    for n in range(20, 0, -1):
        total = 1 + total * x / n
    return total
