"""kNN agrees with a loop over every pair, ties included, and refuses what it cannot score."""

import numpy as np
import pytest

from kdcache.errors import ConfigError, DataError
from kdcache.evals import Features, knn_accuracy
from kdcache.evals.protocols import knn as knn_module


def features(values, labels, classes=("ant", "bee", "cat"), source="data"):
    return Features(
        np.asarray(values, dtype=np.float32), np.asarray(labels, dtype=np.int64), classes, source
    )


def blobs(rng, num, num_classes=5, dim=6, noise=1.5):
    labels = rng.integers(num_classes, size=num)
    centres = np.random.default_rng(99).normal(size=(num_classes, dim))
    names = tuple(f"class{c}" for c in range(num_classes))
    return features(centres[labels] + noise * rng.normal(size=(num, dim)), labels, names)


def slow_accuracy(gallery, queries, k, vote="plain", temperature=0.07):
    """One query at a time in float64, sorting all pairs; ties as the docstring promises."""
    right = 0
    for query, label in zip(queries.values.astype(float), queries.labels, strict=True):
        pairs = []
        for other, name in zip(gallery.values.astype(float), gallery.labels, strict=True):
            cosine = query @ other / np.sqrt((query @ query) * (other @ other))
            pairs.append((cosine, int(name)))
        nearest = sorted(pairs, key=lambda pair: -pair[0])[:k]
        votes, alike = {}, {}
        for cosine, name in nearest:
            weight = 1.0 if vote == "plain" else np.exp(cosine / temperature)
            votes[name] = votes.get(name, 0.0) + weight
            alike[name] = alike.get(name, 0.0) + cosine
        best = min(votes, key=lambda name: (-votes[name], -alike[name], name))
        right += gallery.classes[best] == queries.classes[label]
    return 100 * right / len(queries.labels)


@pytest.mark.parametrize("vote", ["plain", "weighted"])
@pytest.mark.parametrize("seed", range(3))
def test_accuracy_is_that_of_a_loop_over_every_pair(seed, vote):
    rng = np.random.default_rng(seed)
    gallery, queries = blobs(rng, 60), blobs(rng, 40)
    ks = (1, 2, 4, 10, 60)
    expected = {k: pytest.approx(slow_accuracy(gallery, queries, k, vote)) for k in ks}
    assert knn_accuracy(gallery, queries, ks, vote) == expected


def test_accuracy_is_that_of_scikit_learn():
    neighbors = pytest.importorskip("sklearn.neighbors", reason="scikit-learn is not installed")
    rng = np.random.default_rng(0)
    gallery, queries = blobs(rng, 200), blobs(rng, 100)
    judge = neighbors.KNeighborsClassifier(1, metric="cosine").fit(gallery.values, gallery.labels)
    expected = 100 * judge.score(queries.values, queries.labels)
    assert knn_accuracy(gallery, queries, (1,))[1] == pytest.approx(expected)


def test_equal_votes_go_to_the_class_that_is_more_similar_in_sum():
    # From [1, 0]: bee at 0.8 twice (sum 1.6), ant at 1.0 and 0.28 (sum 1.28), so bee wins 2 : 2
    # though the nearest of all is an ant.
    gallery = features([[1, 0], [7, 24], [4, 3], [4, -3]], [0, 0, 1, 1])
    bee, ant = features([[1, 0]], [1]), features([[1, 0]], [0])
    assert knn_accuracy(gallery, bee, (4,)) == {4: 100.0}
    assert knn_accuracy(gallery, ant, (1, 4)) == {1: 100.0, 4: 0.0}


def test_equal_votes_of_equal_similarity_go_to_the_first_class():
    gallery = features([[3, 4], [3, -4]], [2, 1])
    assert knn_accuracy(gallery, features([[1, 0]], [1]), (2,)) == {2: 100.0}


def test_one_near_neighbour_outweighs_two_far_ones_only_in_the_weighted_vote():
    gallery = features([[1, 0], [3, 4], [3, -4]], [0, 1, 1])
    query = features([[1, 0]], [0])
    assert knn_accuracy(gallery, query, (3,), "plain") == {3: 0.0}
    assert knn_accuracy(gallery, query, (3,), "weighted") == {3: 100.0}


def test_length_of_features_does_not_matter():
    rng = np.random.default_rng(5)
    gallery, queries = blobs(rng, 80), blobs(rng, 50)
    factor = np.float32(2.0) ** rng.integers(-3, 4, size=(80, 1))
    longer = features(gallery.values * factor, gallery.labels, gallery.classes)
    assert knn_accuracy(longer, queries) == knn_accuracy(gallery, queries)


def test_queries_taken_in_parts_give_the_same(monkeypatch):
    rng = np.random.default_rng(6)
    gallery, queries = blobs(rng, 80), blobs(rng, 50)
    whole = knn_accuracy(gallery, queries)
    monkeypatch.setattr(knn_module, "_QUERIES_AT_ONCE", 7)
    assert knn_accuracy(gallery, queries) == whole


def test_classes_are_matched_by_name_not_by_place():
    gallery = features([[1, 0], [0, 1]], [0, 1], ("ant", "bee"))
    queries = features([[1, 0], [0, 1]], [1, 0], ("bee", "ant"))
    assert knn_accuracy(gallery, queries, (1,)) == {1: 100.0}


def test_class_that_the_gallery_lacks_is_refused_by_name():
    gallery = features([[1, 0], [0, 1]], [0, 1], ("ant", "bee", "cat"), "d/train")
    queries = features([[1, 0], [0, 1]], [0, 2], ("ant", "bee", "cat"), "d/val")
    with pytest.raises(DataError, match="1 of 2 classes of `d/val` are not in `d/train`: `cat`"):
        knn_accuracy(gallery, queries, (1,))


def test_class_without_queries_may_be_missing():
    gallery = features([[1, 0]], [0], ("ant",))
    queries = features([[1, 0]], [1], ("aardvark", "ant"))
    assert knn_accuracy(gallery, queries, (1,)) == {1: 100.0}


def test_images_without_a_class_are_refused():
    gallery = features([[1, 0], [0, 1]], [0, -1], source="d/train")
    with pytest.raises(DataError, match="1 of 2 images of `d/train` have no class"):
        knn_accuracy(gallery, features([[1, 0]], [0]), (1,))


@pytest.mark.parametrize("k", [0, 3])
def test_k_outside_the_gallery_is_refused(k):
    gallery = features([[1, 0], [0, 1]], [0, 1])
    with pytest.raises(ConfigError, match=f"k is `{k}`, and the gallery has 2 images") as caught:
        knn_accuracy(gallery, features([[1, 0]], [0]), (1, k))
    assert caught.value.hint == "--k takes numbers between 1 and 2, by commas"


def test_tie_counts_as_the_share_that_lots_would_win():
    # One vote for each of three classes: whoever is wanted wins a third of the time.
    gallery = features([[1, 0], [3, 4], [3, -4]], [0, 1, 2])
    query = features([[1, 0]], [1])
    assert knn_accuracy(gallery, query, (3,), ties="share") == {3: pytest.approx(100 / 3)}
    assert knn_accuracy(gallery, query, (3,)) == {3: 0.0}


def test_share_is_the_mean_of_many_drawn_lots():
    rng = np.random.default_rng(3)
    gallery, queries = blobs(rng, 60), blobs(rng, 40)
    k, drawn = 6, []
    unit = [s.values / np.linalg.norm(s.values, axis=1, keepdims=True) for s in (gallery, queries)]
    nearest = np.argsort(-(unit[1] @ unit[0].T), axis=1)[:, :k]
    for _ in range(400):
        right = 0
        for row, label in zip(nearest, queries.labels, strict=True):
            votes = np.bincount(gallery.labels[row], minlength=5)
            right += rng.choice(np.flatnonzero(votes == votes.max())) == label
        drawn.append(100 * right / len(queries))
    share = knn_accuracy(gallery, queries, (k,), ties="share")[k]
    assert share == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / 20)
    assert share != knn_accuracy(gallery, queries, (k,))[k]
