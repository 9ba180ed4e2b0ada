"""Eight bits a value: whole numbers q, and for each row and view a scale and a minimum.

value = minimum + scale * q, worked out in float32. Rows are independent and nothing is learnt from
the data, so a row has the same bytes in whatever piece and by whichever process it is quantised.

Source: the choice among nineteen quantisers, `storage.md` section 2.

Shapes: `*rows` any leading dimensions, D the array's width.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from kdcache.shapes import Bool, Float, UInt8

_STEPS = 255
# A smaller scale would be a subnormal float32, which has few digits and which some devices take
# for zero.
_SMALLEST_SCALE = np.finfo(np.float32).tiny
_ROWS_AT_ONCE = 1024  # a block of the result stays in the processor's cache between two operations


@dataclass(frozen=True, eq=False)
class Quantised:
    """Values as they lie on disk."""

    values: UInt8[np.ndarray, "*rows D"]
    scale: Float[np.ndarray, "*rows"]
    minimum: Float[np.ndarray, "*rows"]

    def __getitem__(self, index: Any) -> "Quantised":
        """Some of the rows, by numpy's rules for the leading dimensions."""
        return Quantised(self.values[index], self.scale[index], self.minimum[index])

    def parts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The arrays on disk, in the order of `Grid.parts`."""
        return self.values, self.scale, self.minimum


@dataclass(frozen=True, eq=False)
class Taken:
    """Rows that another array of uint8 holds already."""

    places: Bool[np.ndarray, "*rows"]
    """Which of the rows these are; what stands at the others means nothing."""
    rows: Quantised

    def put(self, into: Quantised) -> None:
        """Put them in their places among other rows."""
        for ours, theirs in zip(into.parts(), self.rows.parts(), strict=True):
            ours[self.places] = theirs[self.places]


Stored = np.ndarray | Quantised
"""Rows as a cache keeps them: floats, or quantised."""


def quantise(values: Float[np.ndarray, "*rows D"]) -> Quantised:
    """Each row at 256 levels from its smallest value to its largest, halves rounded to even.

    Order is kept, the smallest value is exact, and no value is off by more than half a scale (and
    the last bit of a float32). A constant row is exact: its scale is 0.

    Args:
        values: finite, of magnitude 1e38 at most.
    """
    exact = values.astype(np.float32, copy=False)
    # Which of the two zeros is the smaller one is the processor's choice; adding 0 leaves one.
    minimum = exact.min(axis=-1) + np.float32(0)
    width = exact.max(axis=-1) - minimum
    scale = np.maximum(width / np.float32(_STEPS), _SMALLEST_SCALE)
    scale = np.where(width > 0, scale, np.float32(0))
    steps = exact - minimum[..., None]
    steps /= np.where(scale > 0, scale, np.float32(1))[..., None]
    return Quantised(np.rint(steps, out=steps).astype(np.uint8), scale, minimum)


def dequantise(
    stored: Stored, out: Float[np.ndarray, "*rows D"] | None = None
) -> Float[np.ndarray, "*rows D"]:
    """The values in float32; those that are not quantised are given back as they are.

    Args:
        out: where to put them; C-contiguous, float32.
    """
    if not isinstance(stored, Quantised):
        return stored
    if out is None:
        out = np.empty(stored.values.shape, np.float32)
    assert out.flags.c_contiguous, "reshaping would copy it, and the copy would be written to"
    rows = out.reshape(-1, out.shape[-1])
    values = stored.values.reshape(rows.shape)
    scale, minimum = stored.scale.reshape(-1, 1), stored.minimum.reshape(-1, 1)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        np.multiply(values[part], scale[part], out=rows[part])
        rows[part] += minimum[part]
    return out
