"""Kernels: the inner loops of rendering, in whole numbers of at most 32 bits.

Compiled by numba for the processor they run on, once, and kept on disk for the next process.
Nothing here is a float and nothing overflows, so that it does not matter which instructions the
compiler takes: every machine makes the same bits. Weights are in 1/4096. A first pass leaves twelve
bits, a second one eight; no sum reaches 2**24, so that products of float32 matrices (a GPU's, say)
give the same numbers in any order of summation.
"""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numba import int32, int64, types, uint8, uint16, void

from kdcache.shapes import Int32, UInt8, UInt16

F = TypeVar("F", bound=Callable[..., Any])

ONE = 4096
"""A weight, or a factor, of 1."""

_HALF_OF_FIRST, _BITS_OF_FIRST = 128, 8
_HALF_OF_SECOND, _BITS_OF_SECOND = 32768, 16


_READ_ONLY = types.Array(uint8, 2, "C", readonly=True)  # what may be written to is taken as well


def _compiled(signature: Any) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        plain = inspect.unwrap(function)  # tests wrap what they check the shapes of
        try:
            made: F = numba.njit(signature, cache=True, error_model="numpy")(plain)
        except RuntimeError:  # no place on disk may be written to: compiled by every process
            made = numba.njit(signature, error_model="numpy")(plain)
        return made

    return decorate


@_compiled("Tuple((int32[::1], int32[::1], int32[:, ::1]))(int64, int64)")
def taps(
    length: int, size: int
) -> tuple[Int32[np.ndarray, " S"], Int32[np.ndarray, " S"], Int32[np.ndarray, "S _"]]:
    """What a resize from `length` to `size` pixels adds up: antialiased, bilinear.

    A triangle around each output pixel's centre, as wide as two pixels of the coarser side, cut off
    at the border. All distances are whole numbers of 1 / (2 size) input pixels.

    Returns:
        For each output pixel the first input pixel, how many there are, and their weights, which
        add up to `ONE`: the running sum is rounded, so that weights too small for a 4096th are not
        all lost.
    """
    reach = 2 * max(length, size)
    most = reach // size + 2
    first = np.empty(size, np.int32)
    count = np.empty(size, np.int32)
    weights = np.zeros((size, most), np.int32)
    heights = np.empty(most, np.int64)
    for i in range(size):
        centre = (2 * i + 1) * length
        start = max((centre - reach - size) // (2 * size) + 1, 0)
        total = 0
        found = 0
        for j in range(start, length):
            height = reach - abs((2 * j + 1) * size - centre)
            if height <= 0:
                break
            heights[found] = height
            total += height
            found += 1
        so_far = 0
        given = 0
        for k in range(found):
            so_far += heights[k]
            upto = (2 * ONE * so_far + total) // (2 * total)
            weights[i, k] = upto - given
            given = upto
        first[i] = start
        count[i] = found
    return first, count, weights


@_compiled(void(_READ_ONLY, int64, int64, int32[::1], int32[::1], int32[:, ::1], uint16[:, ::1]))
def shrink_first(
    source: UInt8[np.ndarray, "H 3*W"],
    top: int,
    left: int,
    first: Int32[np.ndarray, " S"],
    count: Int32[np.ndarray, " S"],
    weights: Int32[np.ndarray, "S _"],
    out: UInt16[np.ndarray, "S N"],
) -> None:
    """Rows of bytes added up to `taps`, in 1/16 of a level.

    Args:
        top: the row of `source` that is the taps' first; `left` the first of N columns.
    """
    width = out.shape[1]
    total = np.empty(width, np.int32)
    for i in range(len(first)):
        total[:] = _HALF_OF_FIRST
        for k in range(count[i]):
            weight = weights[i, k]
            row = source[top + first[i] + k][left : left + width]
            for x in range(width):
                total[x] += weight * int32(row[x])
        to = out[i]
        for x in range(width):
            to[x] = total[x] >> _BITS_OF_FIRST


@_compiled(void(uint16[:, ::1], int32[::1], int32[::1], int32[:, ::1], uint8[:, ::1]))
def shrink_second(
    source: UInt16[np.ndarray, "L N"],
    first: Int32[np.ndarray, " S"],
    count: Int32[np.ndarray, " S"],
    weights: Int32[np.ndarray, "S _"],
    out: UInt8[np.ndarray, "S N"],
) -> None:
    """Rows of 1/16 levels added up to `taps`, in levels."""
    width = out.shape[1]
    total = np.empty(width, np.int32)
    for i in range(len(first)):
        total[:] = _HALF_OF_SECOND
        for k in range(count[i]):
            weight = weights[i, k]
            row = source[first[i] + k]
            for x in range(width):
                total[x] += weight * int32(row[x])
        to = out[i]
        for x in range(width):
            to[x] = total[x] >> _BITS_OF_SECOND


@_compiled(void(types.Array(uint8, 1, "C", readonly=True), uint8[:, ::1]))
def to_planes(pixels: UInt8[np.ndarray, " 3*P"], planes: UInt8[np.ndarray, "3 P"]) -> None:
    """RGBRGB... to RR..., GG..., BB..."""
    for i in range(planes.shape[1]):
        planes[0, i] = pixels[3 * i]
        planes[1, i] = pixels[3 * i + 1]
        planes[2, i] = pixels[3 * i + 2]


@_compiled(void(uint8[:, ::1], uint8[::1]))
def from_planes(planes: UInt8[np.ndarray, "3 P"], pixels: UInt8[np.ndarray, " 3*P"]) -> None:
    """RR..., GG..., BB... to RGBRGB..."""
    for i in range(planes.shape[1]):
        pixels[3 * i] = planes[0, i]
        pixels[3 * i + 1] = planes[1, i]
        pixels[3 * i + 2] = planes[2, i]


@_compiled(int64(uint8[:, ::1], uint8[::1]))
def grey(planes: UInt8[np.ndarray, "3 P"], out: UInt8[np.ndarray, " P"]) -> int:
    """ITU-R 601 luma, with Pillow's weights; returns the sum of all."""
    total = 0
    for i in range(len(out)):
        level = (
            int32(19595) * int32(planes[0, i])
            + int32(38470) * int32(planes[1, i])
            + int32(7471) * int32(planes[2, i])
            + int32(32768)
        ) >> 16
        out[i] = level
        total += level
    return total


@_compiled(void(uint8[:, ::1], int32, int32))
def blend_with_level(planes: UInt8[np.ndarray, "3 P"], level: int, factor: int) -> None:
    """Every level moved away from `level` (or towards it), rounded down, as Pillow blends."""
    base = int32(level * (ONE - factor))
    for c in range(3):
        plane = planes[c]
        for i in range(len(plane)):
            moved = (base + int32(factor) * int32(plane[i])) >> 12
            plane[i] = min(max(moved, 0), 255)


@_compiled(void(uint8[:, ::1], uint8[::1], int32))
def blend_with_grey(
    planes: UInt8[np.ndarray, "3 P"], greys: UInt8[np.ndarray, " P"], factor: int
) -> None:
    """Every pixel moved away from its grey (or towards it), rounded down, as Pillow blends."""
    rest = int32(ONE - factor)
    for c in range(3):
        plane = planes[c]
        for i in range(len(plane)):
            moved = (rest * int32(greys[i]) + int32(factor) * int32(plane[i])) >> 12
            plane[i] = min(max(moved, 0), 255)


@_compiled(void(uint8[:, ::1], int32))
def turn_hue(planes: UInt8[np.ndarray, "3 P"], shift: int) -> None:
    """Hue turned by `shift` / 4096 of a turn; largest and least level of a pixel stay.

    The hexagon of HSV is walked along its edge, each side of which is as long as the two levels are
    apart: no division, and no table of hues.
    """
    reds, greens, blues = planes[0], planes[1], planes[2]
    for i in range(len(reds)):
        red, green, blue = int32(reds[i]), int32(greens[i]), int32(blues[i])
        most = max(red, max(green, blue))
        apart = int32(most - min(red, min(green, blue)))
        if most == red:
            place = int32(green - blue)
        elif most == green:
            place = int32(blue - red + 2 * apart)
        else:
            place = int32(red - green + 4 * apart)
        side = int32(apart << 12)
        around = int32(6 * side)
        place = int32((place << 12) + int32(6 * shift) * apart)
        place = int32(place + around if place < 0 else place)
        place = int32(place + around if place < 0 else place)
        place = int32(place - around if place >= around else place)
        # A channel is at the most on two sides, at the least on two, and walks in between.
        for_red = int32(place + 5 * side)
        for_red = int32(for_red - around if for_red >= around else for_red)
        below = max(int32(0), min(side, min(for_red, int32(4 * side - for_red))))
        reds[i] = most - ((below + int32(2048)) >> 12)
        for_green = int32(place + 3 * side)
        for_green = int32(for_green - around if for_green >= around else for_green)
        below = max(int32(0), min(side, min(for_green, int32(4 * side - for_green))))
        greens[i] = most - ((below + int32(2048)) >> 12)
        for_blue = int32(place + side)
        for_blue = int32(for_blue - around if for_blue >= around else for_blue)
        below = max(int32(0), min(side, min(for_blue, int32(4 * side - for_blue))))
        blues[i] = most - ((below + int32(2048)) >> 12)


@_compiled(void(_READ_ONLY, int32[::1], uint16[:, ::1]))
def blur_along(
    pixels: UInt8[np.ndarray, "S 3*S"],
    weights: Int32[np.ndarray, " _"],
    out: UInt16[np.ndarray, "S 3*S"],
) -> None:
    """Pixels added up along the rows, in 1/16 of a level; a border goes on as it ends.

    Args:
        weights: of the middle, and of the first neighbours on each side, the second and so on.
    """
    height, width = pixels.shape
    reach = len(weights) - 1
    padded = np.empty(width + 6 * reach, np.uint8)
    total = np.empty(width, np.int32)
    for y in range(height):
        row = pixels[y]
        for k in range(reach):
            for c in range(3):
                padded[3 * k + c] = row[c]
                padded[3 * (reach + k) + width + c] = row[width - 3 + c]
        for x in range(width):
            padded[3 * reach + x] = row[x]
            total[x] = _HALF_OF_FIRST + weights[0] * int32(row[x])
        for k in range(1, reach + 1):
            weight = weights[k]
            before = padded[3 * (reach - k) :]
            after = padded[3 * (reach + k) :]
            for x in range(width):
                total[x] += weight * (int32(before[x]) + int32(after[x]))
        to = out[y]
        for x in range(width):
            to[x] = total[x] >> _BITS_OF_FIRST


@_compiled(void(uint16[:, ::1], int32[::1], uint8[:, ::1]))
def blur_across(
    rows: UInt16[np.ndarray, "S 3*S"],
    weights: Int32[np.ndarray, " _"],
    out: UInt8[np.ndarray, "S 3*S"],
) -> None:
    """What `blur_along` made, added up across its rows in the same way, in levels."""
    height, width = rows.shape
    total = np.empty(width, np.int32)
    for y in range(height):
        row = rows[y]
        for x in range(width):
            total[x] = _HALF_OF_SECOND + weights[0] * int32(row[x])
        for k in range(1, len(weights)):
            weight = weights[k]
            before = rows[max(y - k, 0)]
            after = rows[min(y + k, height - 1)]
            for x in range(width):
                total[x] += weight * (int32(before[x]) + int32(after[x]))
        to = out[y]
        for x in range(width):
            to[x] = total[x] >> _BITS_OF_SECOND
