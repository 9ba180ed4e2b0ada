"""What rows of targets look like: which of them no teacher would have said.

Everything is decided on the bits as they lie, for those of float16 are several times faster to look
at than its numbers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from kdcache.shapes import Bool, Shaped, UInt64

# The sign is masked away: what is left rises with the magnitude, and is 0 for both zeros.
_BITS: dict[str, tuple[Any, int, int]] = {
    "float16": (np.uint16, 0x7FFF, 0x7C00),
    "float32": (np.uint32, 0x7FFF_FFFF, 0x7F80_0000),
    "uint8": (np.uint8, 0xFF, 0x100),
}
"""By number type: the integer of the same bits, all but the sign, and infinity."""

_PROBES = 4
"""Dimensions of a row that are looked at before all of them are."""


@dataclass(frozen=True)
class Marks:
    """What is noticed of each row."""

    zero: Bool[np.ndarray, " R"]
    not_finite: Bool[np.ndarray, " R"]
    constant: Bool[np.ndarray, " R"]
    """The same number in every dimension, and not zero."""
    prints: UInt64[np.ndarray, " R"]
    """A number that equal rows share, and others do not: the sum of the row's bits as words."""


def mark_rows(values: Shaped[np.ndarray, "R D"]) -> Marks:
    """The marks of some rows, which lie one after the other."""
    integer, magnitude, infinity = _BITS[values.dtype.name]
    bits = values.view(integer)
    sizes = bits & integer(magnitude)
    zero = _same_throughout(sizes, of=0)
    return Marks(
        zero=zero,
        not_finite=_any_from(sizes, infinity),
        constant=_same_throughout(bits) & ~zero & (bits.shape[1] > 1),
        prints=_prints(values),
    )


def join(parts: list[Marks]) -> Marks:
    """The marks of rows that follow on each other."""
    names = ("zero", "not_finite", "constant", "prints")
    return Marks(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _same_throughout(
    bits: Shaped[np.ndarray, "R D"], of: int | None = None
) -> Bool[np.ndarray, " R"]:
    """Which rows are one number in all dimensions: that number, or any."""
    width = bits.shape[1]
    # A few dimensions rule out nearly every row; those that are left are looked at whole.
    few = bits[:, np.linspace(0, width - 1, min(width, _PROBES)).astype(int)]
    found = np.asarray((few == (few[:, :1] if of is None else of)).all(axis=1))
    rows = np.flatnonzero(found)
    found[rows] = (bits[rows] == (bits[rows, :1] if of is None else of)).all(axis=1)
    return found


def _any_from(sizes: Shaped[np.ndarray, "R D"], bound: int) -> Bool[np.ndarray, " R"]:
    """Which rows hold something as large as this; hardly ever one does."""
    if sizes.max() < bound:
        return np.zeros(len(sizes), np.bool_)
    return np.asarray((sizes >= bound).any(axis=1))


def _prints(values: Shaped[np.ndarray, "R D"]) -> UInt64[np.ndarray, " R"]:
    row_bytes = values.shape[1] * values.itemsize
    word = next(size for size in (8, 4, 2, 1) if row_bytes % size == 0)
    words = values.view(f"u{word}")
    # Three times as fast as `sum` along short rows, and wraps round just as well.
    return np.asarray(np.einsum("rw->r", words, dtype=np.uint64, casting="safe"))
