"""The vectors that images are compared by: unit rows of one view, or of all views together.

Shapes: R rows that are asked for, D the array's width.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kdcache.errors import CacheMismatch
from kdcache.heads import ProjectionHead
from kdcache.progress import Progress, silent
from kdcache.shapes import Float, Int64
from kdcache.store import Cache
from kdcache.targets import load_head

_ROWS_AT_ONCE = 8192


def check_array(cache: Cache, array: str) -> None:
    """Refuse an array that the cache neither holds nor can derive by its projection head.

    Raises:
        CacheMismatch: there is no such array.
    """
    if array in cache.arrays or (array == "embedding" and cache.head() is not None):
        return
    raise CacheMismatch(
        f"`{cache.path}` has no `{array}`, it holds: {', '.join(cache.arrays)}",
        hint=f"fit a projection head: kdcache head {cache.path}"
        if array == "embedding"
        else f"take what is there: --array {next(iter(cache.arrays))}",
    )


def readable_rows(cache: Cache) -> Int64[np.ndarray, " R"]:
    """The rows that have targets, ascending."""
    return np.flatnonzero(cache.readable)


def sample(rows: Int64[np.ndarray, " R"], count: int, seed: int) -> Int64[np.ndarray, " S"]:
    """`count` of the rows, drawn without replacement, ascending; all of them if they are fewer."""
    if count >= len(rows):
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, count, replace=False))


def unit_view(
    cache: Cache,
    array: str,
    view: int,
    rows: Int64[np.ndarray, " R"],
    head: ProjectionHead | None = None,
) -> Float[Tensor, "R D"]:
    """One view of some rows in float32, L2-normalised.

    Args:
        head: makes the embedding of the feature; None is the cache's own head, for embeddings that
            the cache does not hold.
    """
    if array not in cache.arrays and head is None:
        head = load_head(cache)
    source = array if head is None else "feature"
    values = torch.from_numpy(cache.rows(source, rows, np.full(len(rows), view)))
    values = values.float() if head is None else head.embed(values)
    for part in torch.split(values, _ROWS_AT_ONCE):
        part.copy_(functional.normalize(part, dim=1))
    return values


def unit_mean(
    cache: Cache,
    array: str,
    rows: Int64[np.ndarray, " R"],
    head: ProjectionHead | None = None,
    progress: Progress = silent,
) -> Float[Tensor, "R D"]:
    """The mean over all views of the unit rows, made unit length again: one vector an image.

    Args:
        head: as for `unit_view`.
        progress: counts views.
    """
    total = unit_view(cache, array, 0, rows, head)
    progress(1)
    for view in range(1, cache.num_views):
        total += unit_view(cache, array, view, rows, head)
        progress(1)
    return functional.normalize(total, dim=1)
