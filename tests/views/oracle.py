"""Rendering once more, as slowly and plainly as it can be said: Python's own whole numbers where
weights are made, numpy's of 64 bits for pixels, no strips, no planes, no compiler.

`products` is the same with matrices of float32, as a GPU would do it.
"""

import itertools
import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import torch

ORDERS = tuple(itertools.permutations(("brightness", "contrast", "saturation", "hue")))


def resize_matrix(length, size):
    """[size, length] whole numbers whose rows add up to 4096."""
    matrix = np.zeros((size, length), np.int64)
    reach = max(Fraction(length, size), Fraction(1))
    for i in range(size):
        centre = (i + Fraction(1, 2)) * Fraction(length, size)
        heights = [max(1 - abs(j + Fraction(1, 2) - centre) / reach, 0) for j in range(length)]
        total, so_far, given = sum(heights), Fraction(0), 0
        for j, height in enumerate(heights):
            so_far += height
            upto = math.floor(4096 * so_far / total + Fraction(1, 2))
            matrix[i, j], given = upto - given, upto
    return matrix


def blur_matrix(sigma, size):
    """[size, size] whole numbers whose rows add up to 4096; what lies outside is the border's."""
    with localcontext() as context:
        context.prec = 60
        width = Decimal(sigma) / 1024 * size / 224
        reach = math.ceil(3 * width)
        heights = [(-Decimal(k * k) / (2 * width * width)).exp() for k in range(reach + 1)]
        total = heights[0] + 2 * sum(heights[1:])
        weights = [round(4096 * height / total) for height in heights]
    weights[0] = 4096 - 2 * sum(weights[1:])
    matrix = np.zeros((size, size), np.int64)
    for y in range(size):
        for k in range(-reach, reach + 1):
            matrix[y, min(max(y + k, 0), size - 1)] += weights[abs(k)]
    return matrix


def twice(pixels, first, second, product):
    """Along the first axis and then along the second; 12 bits in between."""
    between = (product(first, pixels) + 128) // 256
    return (product(second, between.transpose(1, 0, 2)) + 32768).transpose(1, 0, 2) // 65536


def whole(matrix, pixels):
    return np.einsum("sl,lnc->snc", matrix, pixels)


def products(matrix, pixels):
    """The product by float32 matrices, which must be exact."""
    left, right = torch.from_numpy(matrix).float(), torch.from_numpy(pixels).float()
    made = left @ right.reshape(len(right), -1)
    return made.reshape(len(matrix), *pixels.shape[1:]).numpy().astype(np.int64)


def geometry(pixels, view, size, product=whole):
    top, left, height, width = (int(view[f]) for f in ("top", "left", "height", "width"))
    box = pixels[top : top + height, left : left + width].astype(np.int64)
    made = twice(box, resize_matrix(height, size), resize_matrix(width, size), product)
    return (made[:, ::-1] if view["flip"] else made).astype(np.uint8)


def colour(pixels, view, product=whole):
    pixels = pixels.astype(np.int64)
    if view["jitter"]:
        for name in ORDERS[view["order"]]:
            pixels = CHANGES[name](pixels, int(view[name]))
    if view["grey"]:
        pixels = np.repeat(grey(pixels)[..., None], 3, -1)
    if view["sigma"]:
        # Along the rows first, and so the axes change places before and after.
        matrix = blur_matrix(int(view["sigma"]), len(pixels))
        pixels = twice(pixels.transpose(1, 0, 2), matrix, matrix, product).transpose(1, 0, 2)
    return pixels.astype(np.uint8)


def grey(pixels):
    return (pixels @ np.array([19595, 38470, 7471]) + 32768) // 65536


def blend(origin, pixels, factor):
    return np.clip((origin * (4096 - factor) + pixels * factor) // 4096, 0, 255)


def contrast(pixels, factor):
    levels = grey(pixels)
    mean = math.floor(Fraction(int(levels.sum()), levels.size) + Fraction(1, 2))
    return blend(mean, pixels, factor)


def hue(pixels, shift):
    """Each channel falls by how far its place on the hexagon is from where it is at the most."""
    most, least = pixels.max(-1), pixels.min(-1)
    apart = most - least
    red, green, blue = np.moveaxis(pixels, -1, 0)
    place = np.where(
        most == red,
        green - blue,
        np.where(most == green, blue - red + 2 * apart, red - green + 4 * apart),
    )
    around = np.maximum(6 * apart * 4096, 1)
    place = (place * 4096 + 6 * shift * apart) % around
    channels = []
    for offset in (5, 3, 1):
        k = (place + offset * apart * 4096) % around
        below = np.clip(np.minimum(k, 4 * apart * 4096 - k), 0, apart * 4096)
        channels.append(most - (below + 2048) // 4096)
    return np.stack(channels, -1)


CHANGES = {
    "brightness": lambda pixels, factor: blend(0, pixels, factor),
    "contrast": contrast,
    "saturation": lambda pixels, factor: blend(grey(pixels)[..., None], pixels, factor),
    "hue": hue,
}
