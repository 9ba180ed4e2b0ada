"""Witness: what is kept of a few hundred rendered views, so that others can be compared with them.

Extraction keeps them in the cache; before its first step a training run renders some again and
learns whether it looks at what the teacher saw, and if not, which stage differs first.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from kdcache.shapes import Bool, Int, UInt8
from kdcache.views.philox import philox4x32

Stage = Literal["decode", "crop", "geometry", "colour"]
STAGES: tuple[Stage, ...] = ("decode", "crop", "geometry", "colour")
"""In the order in which a view is made."""

NUM_WITNESSES = 256
"""How many views of a cache are kept, on average; all of them where there are fewer."""
THUMBNAIL_SIZE = 32

_KEY = (0x7769746E, 0x65737321)
_DIGEST_BYTES = 16


@dataclass(frozen=True, eq=False)
class Witness:
    """One rendered view: a digest of each stage, and how it looked."""

    row: int
    view: int
    decode: bytes
    """Digest of the decoded image's shape and pixels."""
    crop: bytes
    """Digest of all drawn parameters, those of colour included."""
    geometry: bytes
    """Digest of the pixels after crop, resize and flip."""
    colour: bytes
    """Digest of the final pixels."""
    thumbnail: UInt8[np.ndarray, "32 32 3"]
    """The final pixels, averaged over areas."""


@dataclass(frozen=True)
class Difference:
    """Two renderings of one view that are not the same bits."""

    row: int
    view: int
    stage: Stage
    """The first stage that differs."""
    mean_levels: float
    """Mean absolute difference of the thumbnails, in levels of 255."""
    max_levels: int
    """Largest difference of the thumbnails."""


def witness_mask(
    rows: Int[np.ndarray, " R"], views: Int[np.ndarray, " V"], num_rows: int, num_views: int
) -> Bool[np.ndarray, "R V"]:
    """Which of these views a cache of `num_rows` images in `num_views` views keeps.

    A pure function of each (row, view), so that workers agree without talking.
    """
    total = num_rows * num_views
    if total <= NUM_WITNESSES:
        return np.ones((len(rows), len(views)), np.bool_)
    counter = np.zeros((len(rows), len(views), 4), np.uint32)
    high, low = np.divmod(rows.astype(np.int64), 2**32)
    counter[..., 0], counter[..., 1] = low[:, None], high[:, None]
    counter[..., 2] = views
    words = philox4x32(counter, _KEY).astype(np.uint64)
    chance = words[..., 0] << np.uint64(32) | words[..., 1]
    return np.asarray(chance < np.uint64(NUM_WITNESSES * 2**64 // total))


def witness_of(
    row: int,
    view: int,
    parameters: np.void,
    decoded: UInt8[np.ndarray, "H W 3"],
    shaped: UInt8[np.ndarray, "S S 3"],
    final: UInt8[np.ndarray, "S S 3"],
) -> Witness:
    """What is kept of a view whose stages are at hand."""
    size = (THUMBNAIL_SIZE, THUMBNAIL_SIZE)
    return Witness(
        row=row,
        view=view,
        decode=_pixel_digest(decoded),
        crop=_digest(parameters.tobytes()),
        geometry=_pixel_digest(shaped),
        colour=_pixel_digest(final),
        thumbnail=cv2.resize(final, size, interpolation=cv2.INTER_AREA),
    )


def compare(kept: Witness, now: Witness) -> Difference | None:
    """The first stage at which two renderings of a view differ, or None."""
    assert (kept.row, kept.view) == (now.row, now.view), "witnesses of two different views"
    for stage in STAGES:
        if getattr(kept, stage) != getattr(now, stage):
            levels = np.abs(kept.thumbnail.astype(int) - now.thumbnail.astype(int))
            return Difference(kept.row, kept.view, stage, float(levels.mean()), int(levels.max()))
    return None


def witnesses_to_arrays(witnesses: Sequence[Witness]) -> dict[str, np.ndarray]:
    """Witnesses as plain arrays, sorted by row and view: `row view [W]`, digests `[W 16]`,
    `thumbnail [W 32 32 3]`."""
    ordered = sorted(witnesses, key=lambda witness: (witness.row, witness.view))
    thumbnails = np.zeros((len(ordered), THUMBNAIL_SIZE, THUMBNAIL_SIZE, 3), np.uint8)
    for i, witness in enumerate(ordered):
        thumbnails[i] = witness.thumbnail
    arrays: dict[str, np.ndarray] = {
        "row": np.array([witness.row for witness in ordered], np.int64),
        "view": np.array([witness.view for witness in ordered], np.int64),
        "thumbnail": thumbnails,
    }
    for stage in STAGES:
        joined = b"".join(getattr(witness, stage) for witness in ordered)
        arrays[stage] = np.frombuffer(joined, np.uint8).reshape(-1, _DIGEST_BYTES).copy()
    return arrays


def witnesses_from_arrays(arrays: Mapping[str, np.ndarray]) -> list[Witness]:
    """The witnesses that `witnesses_to_arrays` made arrays of."""
    return [
        Witness(
            row=int(arrays["row"][i]),
            view=int(arrays["view"][i]),
            thumbnail=arrays["thumbnail"][i],
            **{stage: arrays[stage][i].tobytes() for stage in STAGES},
        )
        for i in range(len(arrays["row"]))
    ]


def _pixel_digest(pixels: UInt8[np.ndarray, "H W 3"]) -> bytes:
    height, width, _ = pixels.shape
    return _digest(f"{height}x{width}:".encode() + np.ascontiguousarray(pixels).tobytes())


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:_DIGEST_BYTES]
