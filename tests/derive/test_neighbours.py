"""The graph holds the nearest others, says how it was made, and is there once."""

import faiss
import numpy as np
import pytest
from derive.synthetic import BAR, cache_of, clusters

from kdcache.derive import run_neighbours
from kdcache.derive.neighbours import same_label
from kdcache.errors import CacheMismatch, ConfigError
from kdcache.heads import ProjectionHead
from kdcache.store import Neighbours, check_digests, grow_cache, head_files, open_cache


def run(cache, **changes):
    settings = {"k": 4, "array": None, "index": "exact", "nprobe": 16, "bar": BAR}
    return run_neighbours(cache, **{**settings, **changes})


def slow(features, readable, k):
    """The graph by loops in float64."""
    unit = lambda v: v / np.linalg.norm(v)  # noqa: E731
    images = {row: unit(sum(unit(view) for view in features[row])) for row in readable}
    graph, cosines = {}, {}
    for row in readable:
        others = sorted((-images[row] @ images[other], other) for other in readable if other != row)
        graph[row] = [other for _, other in others[:k]]
        cosines[row] = [-cosine for cosine, _ in others[:k]]
    return graph, cosines


@pytest.fixture
def made(tmp_path):
    features, labels = clusters(num_rows=300, num_views=3)
    return features, labels, cache_of(tmp_path / "c", features, labels, unreadable=(0, 7, 299))


def test_exact_graph_is_that_of_a_plain_loop(made):
    features, _, cache = made
    graph = run(cache).graph
    readable = np.flatnonzero(cache.readable).tolist()
    rows, cosines = slow(features, readable, 4)
    assert graph.index[readable].tolist() == [rows[row] for row in readable]
    expected = [cosines[row] for row in readable]
    assert np.allclose(graph.similarity[readable], expected, rtol=0, atol=1e-5)
    assert (graph.index[[0, 7, 299]] == -1).all()
    assert (graph.similarity[[0, 7, 299]] == 0).all()
    assert not np.isin(graph.index[readable], [0, 7, 299]).any()


def test_graph_is_kept_with_how_it_was_made(made):
    *_, cache = made
    report = run(cache)
    kept = open_cache(cache.path).neighbours()
    assert np.array_equal(kept.index, report.graph.index)
    assert np.array_equal(kept.similarity, report.graph.similarity)
    about = dict(kept.attributes)
    assert about.pop("versions")["faiss"] == faiss.__version__
    assert about == {
        "array": "feature", "k": 4, "index": "exact", "views": 3, "parameters": {}, "recall": 1.0,
    }  # fmt: skip
    assert report.cache.lineage == [report.cache.identity, cache.identity]
    assert check_digests(cache.path) == []


def test_copies_of_an_image_are_neighbours_and_it_is_not_its_own(tmp_path):
    features, labels = clusters(num_rows=60)
    features[:10] = features[0]
    graph = run(cache_of(tmp_path / "c", features, labels), k=5).graph
    assert not (graph.index == np.arange(60)[:, None]).any()
    assert (graph.index[:10] < 10).all()
    assert all(len(set(row)) == 5 for row in graph.index.tolist())


def test_ivf_says_its_recall_and_opening_more_lists_finds_more(tmp_path):
    features, labels = clusters(num_rows=1500, num_views=1, dim=12, classes=40)
    exact = run(cache_of(tmp_path / "exact", features, labels)).graph
    recalls = []
    for nprobe in (1, 4, 1000):
        cache = cache_of(tmp_path / str(nprobe), features, labels)
        graph = run(cache, index="ivf", nprobe=nprobe).graph
        pairs = zip(graph.index, exact.index, strict=True)
        true = np.mean([np.isin(right, found).mean() for found, right in pairs])
        assert abs(graph.attributes["recall"] - true) < 0.05  # over 1000 of 1500 images
        assert graph.attributes["parameters"] == {"nprobe": nprobe, "seed": 0}
        assert (graph.index >= 0).all()
        recalls.append(graph.attributes["recall"])
    assert recalls[0] < recalls[1] < recalls[2] == 1.0
    assert recalls[0] < 0.95


def test_ivf_fills_rows_whose_lists_hold_too_few(tmp_path):
    features, labels = clusters(num_rows=400, num_views=1, dim=12)
    cache = cache_of(tmp_path / "c", features, labels)
    graph = run(cache, index="ivf", nprobe=1, k=300).graph
    assert (graph.index >= 0).all()
    assert np.isfinite(graph.similarity).all()
    assert all(len(set(row)) == 300 for row in graph.index.tolist())


def test_embedding_is_derived_where_only_a_head_is_there(made):
    features, _, cache = made
    with pytest.raises(CacheMismatch, match="has no `embedding`") as caught:
        run(cache, array="embedding")
    assert f"kdcache head {cache.path}" in caught.value.hint
    head = ProjectionHead([{"kind": "linear", "in": 24, "out": 6, "bias": True}])
    cache = grow_cache(cache, head_files(head.layers, head.to_arrays(), {"kind": "fitted"}))
    graph = run(cache, array="embedding").graph
    weight, bias = head.to_arrays()["0.weight"], head.to_arrays()["0.bias"]
    readable = np.flatnonzero(cache.readable).tolist()
    rows, _ = slow(features @ weight.T.astype(np.float64) + bias, readable, 4)
    same = [set(graph.index[row].tolist()) == set(rows[row]) for row in readable]
    assert np.mean(same) > 0.99  # float32 may swap what is equally near
    assert graph.attributes["array"] == "embedding"


def test_cache_of_embeddings_alone_is_compared_by_them(tmp_path):
    features, labels = clusters(num_rows=50)
    cache = cache_of(tmp_path / "c", features, labels, array="embedding")
    assert run(cache).graph.attributes["array"] == "embedding"
    with pytest.raises(CacheMismatch) as caught:
        run(cache, array="feature")
    assert "--array embedding" in caught.value.hint


def test_same_graph_again_changes_nothing(made):
    *_, cache = made
    first = run(cache)
    again = run(open_cache(cache.path))
    assert first.is_new
    assert not again.is_new
    assert again.cache.identity == first.cache.identity
    assert "nothing has changed" in again.lines()[0]


@pytest.mark.parametrize("change", [{"k": 5}, {"index": "ivf"}])
def test_second_graph_is_refused(made, change):
    *_, cache = made
    grown = run(cache).cache
    with pytest.raises(
        CacheMismatch, match="4 neighbours by `feature` of 3 views, exact"
    ) as caught:
        run(grown, **change)
    assert f"manifests/{cache.identity}.json OTHER/manifest.json" in caught.value.hint
    assert open_cache(cache.path).identity == grown.identity


@pytest.mark.parametrize("k", [0, 297, 1000])
def test_more_neighbours_than_there_are_others_are_refused(made, k):
    *_, cache = made
    with pytest.raises(ConfigError, match="each of 297 images has 296 others"):
        run(cache, k=k)
    assert open_cache(cache.path).neighbours() is None


def test_share_of_the_label_is_counted_over_what_is_labelled(tmp_path):
    labels = np.array([0, 0, 1, 1, -1, 0])
    features = np.random.default_rng(0).normal(size=(6, 1, 4))
    cache = cache_of(tmp_path / "c", features, labels, unreadable=(5,))
    index = np.array([[1, 2], [0, 4], [3, 0], [2, 1], [0, 1], [-1, -1]], np.int32)
    graph = Neighbours(index, np.zeros((6, 2), np.float32), {})
    # 1 of 2, 1 of 1 (row 4 has no label), 1 of 2, 1 of 2; four labelled images in two pairs
    assert same_label(cache, graph) == (4 / 7, 4 / 12)
    bare = cache_of(tmp_path / "bare", features)
    assert same_label(bare, graph) is None


def test_classes_that_the_features_separate_are_neighbours(tmp_path):
    features, labels = clusters(num_rows=200)
    features[..., 8:] = 1.0  # without what is loud
    report = run(cache_of(tmp_path / "c", features, labels))
    share, chance = same_label(report.cache, report.graph)
    assert share > 0.9
    assert chance == pytest.approx(0.196, abs=0.001)
    assert "share the label, 19.6% by chance" in report.lines()[1]
