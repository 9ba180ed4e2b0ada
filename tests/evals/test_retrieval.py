"""Retrieval figures are those of loops over rankings."""

import numpy as np
import pytest

from kdcache.evals import Features
from kdcache.evals.protocols import retrieval as module
from kdcache.evals.protocols.retrieval import retrieval


def blobs(seed, num, num_classes=5, dim=6, noise=1.5):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), rng.integers(num_classes, size=num)])
    centres = np.random.default_rng(99).normal(size=(num_classes, dim))
    values = (centres[labels] + noise * rng.normal(size=(len(labels), dim))).astype(np.float32)
    return Features(values, labels, tuple(f"class{c}" for c in range(num_classes)), "data")


def plain(gallery, queries, ks):
    """One query at a time: precision at every image of its class, and the first one's place."""
    precisions, first = [], []
    for query, label in zip(queries.values.astype(float), queries.labels, strict=True):
        base = gallery.values.astype(float)
        cosine = base @ query / np.linalg.norm(base, axis=1)
        ranked = gallery.labels[np.argsort(-cosine)] == label
        found, sums = 0, 0.0
        for place, right in enumerate(ranked, start=1):
            if right:
                found += 1
                sums += found / place
        precisions.append(sums / found)
        first.append(int(np.argmax(ranked)) + 1)
    recall = {f"recall@{k}": 100 * np.mean(np.array(first) <= k) for k in ks}
    return {"mAP": 100 * np.mean(precisions), **recall}


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_those_of_a_loop(seed):
    gallery, queries = blobs(seed, 60), blobs(seed + 10, 40)
    found = retrieval(gallery, queries, (1, 5))
    assert found == pytest.approx(plain(gallery, queries, (1, 5)))


def test_average_precision_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    gallery, queries = blobs(0, 60), blobs(1, 40)
    unit = [s.values / np.linalg.norm(s.values, axis=1, keepdims=True) for s in (gallery, queries)]
    cosine = unit[1] @ unit[0].T
    each = [
        metrics.average_precision_score(gallery.labels == label, row)
        for label, row in zip(queries.labels, cosine, strict=True)
    ]
    assert retrieval(gallery, queries, (1,))["mAP"] == pytest.approx(100 * np.mean(each))


def test_queries_taken_in_parts_give_the_same(monkeypatch):
    gallery, queries = blobs(0, 60), blobs(1, 40)
    whole = retrieval(gallery, queries, (1, 5))
    monkeypatch.setattr(module, "_QUERIES_AT_ONCE", 7)
    assert retrieval(gallery, queries, (1, 5)) == pytest.approx(whole)


def test_perfect_features_find_all_of_their_class_first():
    perfect = Features(np.eye(3, dtype=np.float32), np.arange(3), ("a", "b", "c"), "d")
    assert retrieval(perfect, perfect, (1,)) == {"mAP": 100.0, "recall@1": 100.0}
