"""Search finds what sorting every inner product finds, and says so when it cannot."""

import subprocess
import sys

import faiss
import numpy as np
import pytest

from kdcache import nearest
from kdcache.errors import DataError
from kdcache.nearest import IvfIndex, gpu_is_there, search


def unit_rows(rng, num, dim=24):
    rows = rng.normal(size=(num, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clusters(rng, num, num_classes, dim=24, noise=0.15):
    centres = unit_rows(rng, num_classes, dim)
    rows = centres[rng.integers(num_classes, size=num)] + noise * rng.normal(size=(num, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("num_queries", [1, 40])
@pytest.mark.parametrize("k", [1, 7, 300])
def test_search_is_a_sort_of_all_inner_products(num_queries, k):
    rng = np.random.default_rng(k)
    queries, keys = unit_rows(rng, num_queries), unit_rows(rng, 300)
    similarity, rows = search(queries, keys, k, device="cpu")
    products = queries.astype(np.float64) @ keys.T.astype(np.float64)
    expected = np.argsort(-products, axis=1)[:, :k]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(similarity, np.take_along_axis(products, expected, 1), atol=1e-6)
    assert similarity.dtype == np.float32
    assert rows.dtype == np.int64


def test_search_sees_rows_that_were_overwritten():
    """A ring is searched where it lies, so there is nothing to keep up to date."""
    rng = np.random.default_rng(0)
    queries, ring = unit_rows(rng, 3), unit_rows(rng, 50)
    search(queries, ring, 1)
    ring[[5, 9, 2]] = queries
    assert search(queries, ring, 1)[1][:, 0].tolist() == [5, 9, 2]


def test_rows_need_not_lie_one_after_the_other_in_memory():
    rng = np.random.default_rng(0)
    queries, keys = unit_rows(rng, 4), unit_rows(rng, 60)
    expected = search(queries, np.ascontiguousarray(keys[::2, ::-1]), 5)
    found = search(queries, keys[::2, ::-1], 5)
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_refused_by_number(bad):
    rng = np.random.default_rng(0)
    queries, keys = unit_rows(rng, 3), unit_rows(rng, 20)
    broken = keys.copy()
    broken[[4, 11], 2] = bad
    with pytest.raises(DataError, match="2 of 20 keys are not finite, the first is row `4`"):
        search(queries, broken, 2)
    with pytest.raises(DataError, match="2 of 20 queries are not finite"):
        search(broken, keys, 2)
    with pytest.raises(DataError, match="2 of 20 keys are not finite"):
        IvfIndex(broken, nlist=1)
    with pytest.raises(DataError, match="2 of 20 rows are not finite"):
        IvfIndex(keys, nlist=1).replace(np.arange(20), broken)


def test_large_but_finite_rows_are_not_taken_for_broken_ones():
    keys = np.full((2, 3), 2e38, np.float32)  # their sum overflows float32
    keys[1] /= 2
    assert search(np.full((1, 3), 0.1, np.float32), keys, 1)[1].tolist() == [[0]]


@pytest.mark.parametrize("k", [0, 21])
def test_more_neighbours_than_keys_is_our_own_mistake(k):
    keys = unit_rows(np.random.default_rng(0), 20)
    with pytest.raises(AssertionError, match=f"{k} nearest of 20 keys"):
        search(keys, keys, k)
    with pytest.raises(AssertionError, match=f"{k} nearest of 20 keys"):
        IvfIndex(keys, nlist=1).search(keys, k, 1)


def test_global_setting_of_faiss_comes_back(monkeypatch):
    monkeypatch.setattr(faiss.cvar, "distance_compute_blas_threshold", 12345)
    keys = unit_rows(np.random.default_rng(0), 200)
    search(keys, keys, 1)
    index = IvfIndex(keys)
    index.search(keys, 1, 1)
    index.replace(np.array([0]), keys[:1])
    assert faiss.cvar.distance_compute_blas_threshold == 12345


@pytest.mark.skipif(gpu_is_there(), reason="is about machines without a GPU")
def test_machine_without_a_gpu_never_reaches_the_call_that_aborts():
    """`faiss.knn_gpu` ends the whole process there, so a process is what is looked at."""
    script = (
        "import numpy as np; from kdcache.nearest import search\n"
        "rows = np.eye(4, dtype=np.float32)\n"
        "search(rows, rows, 2)\n"
        "try: search(rows, rows, 2, device='cuda')\n"
        "except AssertionError: print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr


def test_all_lists_opened_is_the_exact_search():
    rng = np.random.default_rng(1)
    keys, queries = clusters(rng, 2000, 30), clusters(rng, 50, 30)
    index = IvfIndex(keys)
    assert 1 < index.nlist <= len(keys) // 39
    expected = search(queries, keys, 10)
    found = index.search(queries, 10, nprobe=index.nlist)
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[0], expected[0], atol=1e-6)


def test_few_lists_find_most_of_the_neighbours():
    keys = clusters(np.random.default_rng(2), 4000, 50)
    index, queries = IvfIndex(keys), keys[:200]
    exact = search(queries, keys, 10)[1]

    def recall(nprobe):
        found = index.search(queries, 10, nprobe)[1]
        pairs = zip(found, exact, strict=True)
        return np.mean([len(set(a) & set(b)) / 10 for a, b in pairs])

    few, many = recall(1), recall(16)
    assert few < many
    assert many > 0.9


def test_same_seed_gives_the_same_lists():
    keys = clusters(np.random.default_rng(3), 2000, 30)
    first, again, other = (IvfIndex(keys, seed=s).search(keys, 5, 1) for s in (4, 4, 5))
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[1] != other[1]).any()


def test_replaced_slots_hold_the_new_rows_and_no_other_slot_moves():
    rng = np.random.default_rng(4)
    keys = clusters(rng, 1000, 20)
    index = IvfIndex(keys)
    ring, slots = keys.copy(), rng.permutation(1000)[:300]
    for part in np.array_split(slots, 7):  # as a queue does: a few at a time
        ring[part] = clusters(rng, len(part), 20)
        index.replace(part, ring[part])
    assert len(index) == 1000
    expected = search(ring[:100], ring, 8)
    found = index.search(ring[:100], 8, nprobe=index.nlist)
    np.testing.assert_array_equal(found[1], expected[1])


def test_slot_named_twice_is_our_own_mistake():
    keys = unit_rows(np.random.default_rng(0), 100)
    index = IvfIndex(keys)
    with pytest.raises(AssertionError):
        index.replace(np.array([3, 3]), keys[:2])
    with pytest.raises(AssertionError):
        index.replace(np.array([100]), keys[:1])


def test_lists_with_too_few_keys_end_in_minus_one():
    keys = clusters(np.random.default_rng(5), 800, 20)
    index = IvfIndex(keys, nlist=20)
    similarity, slots = index.search(keys[:5], 500, nprobe=1)
    short = slots < 0
    assert short.any()
    assert np.isneginf(similarity[short]).all()
    assert np.isfinite(similarity[~short]).all()


@pytest.mark.parametrize("num_keys", [1, 38, 78, 1000, 70_000])
def test_default_number_of_lists_leaves_the_k_means_enough(num_keys):
    nlist = nearest._default_nlist(num_keys)
    assert nlist >= 1
    assert nlist == 1 or num_keys / nlist >= 39
    assert nlist <= 4 * np.sqrt(num_keys)


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_is_there(), reason="needs a GPU that FAISS and torch see")
def test_gpu_finds_the_neighbours_of_the_cpu():
    rng = np.random.default_rng(0)
    keys, queries = unit_rows(rng, 500), unit_rows(rng, 20)
    on_gpu, on_cpu = (search(queries, keys, 10, device=device) for device in ("cuda", "cpu"))
    np.testing.assert_array_equal(on_gpu[1], on_cpu[1])
    np.testing.assert_allclose(on_gpu[0], on_cpu[0], atol=1e-5)
