"""Clusters are aligned as CompRess aligns them, by the assignment that scipy finds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.errors import DataError
from kdcache.evals import Features
from kdcache.evals.assignment import assign
from kdcache.evals.protocols.cluster import cluster_alignment
from kdcache.nearest import kmeans


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 12),
    more=st.integers(0, 4),
    seed=st.integers(0, 2**32 - 1),
    levels=st.sampled_from([2, 5, 10**6]),
)
def test_assignment_costs_what_scipys_does(rows, more, seed, levels):
    optimize = pytest.importorskip("scipy.optimize", reason="scipy is not installed")
    rng = np.random.default_rng(seed)
    cost = rng.integers(-levels, levels, size=(rows, rows + more)) / 7  # few levels: many ties
    ours = assign(cost)
    assert len(set(ours.tolist())) == rows
    expected = cost[optimize.linear_sum_assignment(cost)].sum()
    assert cost[np.arange(rows), ours].sum() == pytest.approx(expected)


def blobs(seed, num, num_classes=6, dim=8, noise=0.6):
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=num)
    centres = np.random.default_rng(7).normal(size=(num_classes, dim))
    values = (centres[labels] + noise * rng.normal(size=(num, dim))).astype(np.float32)
    return Features(values, labels, tuple(f"class{c}" for c in range(num_classes)), "data")


def plain_alignment(train, test, centroids):
    """CompRess's script: sets of images, cost by set intersections, scipy's assignment."""
    optimize = pytest.importorskip("scipy.optimize", reason="scipy is not installed")
    num = len(train.classes)

    def clusters(side):
        unit = side.values / np.linalg.norm(side.values, axis=1, keepdims=True)
        return ((unit[:, None] - centroids[None]) ** 2).sum(-1).argmin(1)

    of_train, of_test = clusters(train), clusters(test)
    cost = np.zeros((num, num))
    for i in range(num):
        inside = set(np.flatnonzero(of_train == i))
        for j in range(num):
            named = set(np.flatnonzero(train.labels == j))
            cost[i, j] = -len(inside & named) / max(len(inside), 1)
    _, class_of = optimize.linear_sum_assignment(cost)
    right = sum(int(class_of[c] == label) for c, label in zip(of_test, test.labels, strict=True))
    return 100 * right / len(test)


@pytest.mark.parametrize("seed", range(3))
def test_alignment_is_that_of_compress_script(seed):
    train, test = blobs(seed, 300), blobs(seed + 10, 200)
    unit = train.values / np.linalg.norm(train.values, axis=1, keepdims=True)
    centroids = kmeans(unit.astype(np.float32), 6, iterations=20, seed=seed)
    assert cluster_alignment(train, test, 20, seed) == pytest.approx(
        plain_alignment(train, test, centroids)
    )


def test_kmeans_ends_where_lloyds_steps_end():
    rows = blobs(1, 200).values
    centroids = kmeans(rows, 6, iterations=100, seed=3)
    nearest = ((rows[:, None] - centroids[None]) ** 2).sum(-1).argmin(1)
    means = np.stack([rows[nearest == c].mean(0) for c in range(6)])
    np.testing.assert_allclose(means, centroids, atol=1e-4)


def test_clusters_that_are_the_classes_score_all():
    train, test = (blobs(seed, 100, num_classes=2, noise=0.01) for seed in (0, 1))
    assert cluster_alignment(train, test, 20, 0) == 100.0


def test_fewer_images_than_classes_are_refused():
    train = Features(np.eye(3, dtype=np.float32)[:2], np.array([0, 1]), ("a", "b", "c"), "d/train")
    with pytest.raises(DataError, match="2 readable images of 3 classes"):
        cluster_alignment(train, train, 20, 0)
