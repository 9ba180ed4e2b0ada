"""Caches of made-up features whose structure is known."""

from pathlib import Path

import numpy as np

from kdcache.progress import silent_bar
from kdcache.store import ArraySpec, Cache, RowIndex, create_cache, open_cache

BAR = silent_bar


def cache_of(
    path: Path,
    features: np.ndarray,
    labels: np.ndarray | None = None,
    unreadable: tuple[int, ...] = (),
    array: str = "feature",
) -> Cache:
    """A finished float32 cache of [N, V, F] values."""
    num_rows, num_views, dim = features.shape
    labels = np.full(num_rows, -1) if labels is None else labels
    index = RowIndex(
        image_ids=np.arange(num_rows * 16, dtype=np.int64).astype(np.uint8).reshape(-1, 16),
        labels=labels.astype(np.int32),
        classes=tuple(f"c{label}" for label in range(labels.max() + 1)),
        paths=[f"{row}.jpg" for row in range(num_rows)],
    )
    writer = create_cache(
        path,
        recipe={"made": "up"},
        arrays=[ArraySpec(array, dim, "float32")],
        num_views=num_views,
        index=index,
        made_with={},
    )
    for piece in writer.missing():
        rows = writer.piece_rows(piece)
        values = features[rows.start : rows.stop].astype(np.float32)
        bad = {row: "broken" for row in unreadable if row in rows}
        writer.put_piece(piece, {array: values}, bad, {})
    writer.seal()
    return open_cache(path)


def clusters(
    *, num_rows: int = 400, num_views: int = 2, dim: int = 24, classes: int = 5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Features as of a pooled backbone: a mean that all share, and class directions that are weak
    beside loud ones in which two views of an image differ."""
    random = np.random.default_rng(seed)
    labels = np.arange(num_rows) % classes
    centres = np.zeros((classes, dim))
    centres[:, : dim // 3] = random.normal(size=(classes, dim // 3))
    image = centres[labels] + 0.3 * random.normal(size=(num_rows, dim)) * (
        np.arange(dim) < dim // 3
    )
    noise = random.normal(size=(num_rows, num_views, dim))
    noise *= np.where(np.arange(dim) < dim // 3, 0.3, 4.0)
    return 6.0 + image[:, None] + noise, labels
