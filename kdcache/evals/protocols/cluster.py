"""Cluster alignment: how far the clusters of a network are the classes.

k-means finds as many clusters as there are classes in the training images; each cluster is given a
class of its own, so that the shares of it that are of its class add up to the most; the figure is
how many test images fall into the cluster of their class.

*Source:* Koohpayegani et al., "CompRess", NeurIPS 2020, arXiv:2010.14713,
`eval_cluster_alignment.py`: L2-normalised features of centred views, 20 iterations over all points,
cost -|cluster and class| / |cluster|, the assignment made on the training images.

Shapes: N training images, Q test images, F feature, C classes and clusters.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from kdcache.errors import DataError
from kdcache.evals.assignment import assign
from kdcache.evals.exam import Exam
from kdcache.evals.features import Features, check_comparable, unit_rows
from kdcache.evals.protocols._base import Asked, Preset, Protocol
from kdcache.evals.result import Score, top_k_percent
from kdcache.nearest import kmeans
from kdcache.settings import Settings
from kdcache.shapes import Float, Int64


class Config(Settings):
    """How clusters are found."""

    iterations: int = Field(default=20, ge=1)
    """Of k-means."""


def cluster_alignment(train: Features, test: Features, iterations: int, seed: int) -> float:
    """Percent of the test images in the cluster of their class.

    Raises:
        DataError: images without a class, an unknown class, fewer images than classes.
    """
    wanted = check_comparable(train, test)
    num_classes = len(train.classes)
    if len(train) < num_classes:
        raise DataError(
            f"`{train.source}` has {len(train)} readable images of {num_classes} classes",
            hint="put more images into train/",
        )
    base = unit_rows(train.values)
    centroids = kmeans(base, num_classes, iterations=iterations, seed=seed)
    table = np.zeros((num_classes, num_classes))
    np.add.at(table, (_nearest(base, centroids), train.labels), 1)
    sizes = table.sum(axis=1, keepdims=True)
    class_of = assign(-table / np.maximum(sizes, 1))
    right = class_of[_nearest(unit_rows(test.values), centroids)] == wanted
    return top_k_percent(int(right.sum()), len(test))


def _nearest(
    rows: Float[np.ndarray, "N F"], centroids: Float[np.ndarray, "C F"]
) -> Int64[np.ndarray, " N"]:
    """The centroid at the least distance, which is not that of the largest product."""
    half_square = 0.5 * np.square(centroids).sum(axis=1)
    parts = [
        (rows[start : start + 4096] @ centroids.T - half_square).argmax(axis=1)
        for start in range(0, len(rows), 4096)
    ]
    return np.concatenate(parts)


def _run(exam: Exam, asked: Sequence[Asked]) -> list[Score]:
    return [_score(exam, one) for one in asked]


def _score(exam: Exam, asked: Asked) -> Score:
    config = asked.config
    assert isinstance(config, Config)
    train = exam.features(exam.splits.gallery, asked.view)
    test = exam.features(exam.splits.queries, asked.view)
    return Score(
        protocol=asked.family,
        setting={**asked.setting(), "clusters": len(train.classes)},
        metric="top1",
        value=cluster_alignment(train, test, config.iterations, exam.seed),
        num_queries=len(test),
        num_classes=len(train.classes),
    )


PROTOCOL = Protocol(
    presets={
        "compress": Preset(
            Config(),
            "CompRess, arXiv:2010.14713, eval_cluster_alignment.py (1,000 clusters for "
            "1,000 classes)",
        )
    },
    run=_run,
    of_features=True,
)
