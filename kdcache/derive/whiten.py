"""A projection head by principal components: the directions that matter most, at equal strength.

Source: PCA whitening as image retrieval uses it: Jegou, Chum, "Negative evidences and co-occurences
in image retrieval", ECCV 2012.

Shapes: F teacher feature, D embedding.
"""

import numpy as np

from kdcache.derive.rows import readable_rows, sample
from kdcache.heads import ProjectionHead
from kdcache.progress import Progress
from kdcache.shapes import Float
from kdcache.store import Cache

EIGENVALUE_FLOOR = 1e-2
"""Of the largest: weaker directions are taken to have this variance, so that they stay weak."""

MAX_IMAGES = 50_000
"""More do not change the covariance much, and cost F x F for each of their views."""

_ROWS_AT_ONCE = 8192


def fit_whitening(
    cache: Cache, dim: int, *, seed: int, progress: Progress
) -> tuple[ProjectionHead, float]:
    """A linear layer, and the share of the variance that lies in its `dim` directions.

    The covariance is over all views of the readable images, or of `MAX_IMAGES` of them, in
    float64.

    Args:
        progress: counts views.
    """
    mean = cache.statistics("feature")["mean"]
    rows = sample(readable_rows(cache), MAX_IMAGES, seed)
    covariance = np.zeros((len(mean), len(mean)))
    for view in range(cache.num_views):
        for part in np.array_split(rows, -(-len(rows) // _ROWS_AT_ONCE)):
            values = cache.rows("feature", part, np.full(len(part), view)).astype(np.float64) - mean
            covariance += values.T @ values
        progress(1)
    covariance /= len(rows) * cache.num_views
    variances, directions = np.linalg.eigh(covariance)
    variances, directions = variances[::-1][:dim], _signed(directions[:, ::-1][:, :dim])
    floored = np.maximum(variances, EIGENVALUE_FLOOR * variances[0])
    weight = (directions / np.sqrt(floored)).T
    head = ProjectionHead.from_arrays(
        [{"kind": "linear", "in": len(mean), "out": dim, "bias": True}],
        {
            "0.weight": weight.astype(np.float32),
            "0.bias": (-weight @ mean).astype(np.float32),
        },
    )
    kept = variances.sum() / np.trace(covariance)
    return head.requires_grad_(False).eval(), float(kept)


def _signed(directions: Float[np.ndarray, "F D"]) -> Float[np.ndarray, "F D"]:
    """An eigenvector has no sign of its own: its largest component is made positive."""
    largest = np.abs(directions).argmax(axis=0)
    signed: Float[np.ndarray, "F D"] = directions * np.sign(
        directions[largest, np.arange(directions.shape[1])]
    )
    return signed
