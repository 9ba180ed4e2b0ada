"""What quantisation keeps is measured as defined, and to the same digits everywhere."""

import numpy as np
import pytest
from store import making

from kdcache.store import (
    ArraySpec,
    dequantise,
    describe_fidelity,
    fidelity,
    open_cache,
    quantise,
)

SPECS = (ArraySpec("embedding", 8, "uint8"), ArraySpec("feature", 64, "uint8"))


def plainly(before, after):
    """The definitions, a row at a time."""
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (before, after)]
    overlap, same, kl = [], [], {0.01: [], 0.07: []}
    for i in range(len(before)):
        others = [j for j in range(len(before)) if j != i]
        was, now = ([float(rows[i] @ rows[j]) for j in others] for rows in unit)
        first, second = (sorted(range(len(others)), key=lambda j: -c[j])[:10] for c in (was, now))
        overlap.append(len(set(first) & set(second)) / 10)
        same.append(first[0] == second[0])
        for tau, values in kl.items():
            p, q = (np.exp(np.array(c) / tau) for c in (was, now))
            p, q = p / p.sum(), q / q.sum()
            values.append(float((p * np.log(p / q)).sum()))
    cosine = (unit[0] * unit[1]).sum(1)
    return {
        "cosine_mean": cosine.mean(),
        "cosine_min": cosine.min(),
        "knn_overlap": np.mean(overlap),
        "same_nearest": np.mean(same),
        "kl_0.01": np.mean(kl[0.01]),
        "kl_0.07": np.mean(kl[0.07]),
    }


@pytest.mark.parametrize("dim", [8, 100])
def test_figures_are_those_of_plain_loops(dim):
    rows = np.random.default_rng(0).normal(size=(300, dim)).astype(np.float32)
    after = dequantise(quantise(rows))
    expected = plainly(rows.astype(np.float64), after.astype(np.float64))
    found = fidelity.measure(rows)
    assert (found["images"], found["view"], found["neighbours"]) == (300, 0, 10)
    assert expected["knn_overlap"] < 1  # so that there is something to count
    assert expected["same_nearest"] < 1
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-7, rel=1e-3), name


@pytest.mark.parametrize("dim", [33, 2048])
def test_figures_do_not_depend_on_the_order_of_additions(dim):
    """Not by a bit: the identity of a cache hangs on them."""
    random = np.random.default_rng(1)
    rows = (random.normal(size=(40, dim)) * np.exp(random.normal(size=dim))).astype(np.float32)
    rows[7] = rows[3]  # an image that is there twice: equal cosines must stay equal
    figures = fidelity.measure(rows)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(dim)
        assert fidelity.measure(rows[:, order]) == figures


@pytest.mark.parametrize("dim", [1, 33, 2048])
def test_inner_products_are_exact_in_any_order(dim):
    rows = np.random.default_rng(6).normal(size=(9, dim)).astype(np.float32)
    rows[0] = 1  # as long as a row can be
    whole = fidelity._whole_numbers(rows)
    exact = whole.astype(np.int64)
    assert np.array_equal(exact, whole)
    assert np.array_equal(exact @ exact.T, whole @ whole.T)
    assert (exact @ exact.T).max() <= 2**53
    norms = np.linalg.norm(rows, axis=1), np.linalg.norm(whole, axis=1)
    cosine = (rows * whole).sum(axis=1) / norms[0] / norms[1]
    assert (cosine > 1 - 1e-6).all()


def test_nothing_lost_is_said_so():
    rows = np.random.default_rng(2).integers(0, 256, (30, 16)).astype(np.float32)
    rows[:, :2] = 0, 255
    rows[5] = 0  # a row of zeros is kept, too
    figures = fidelity.measure(rows)
    wanted = dict.fromkeys(("cosine_mean", "cosine_min", "knn_overlap", "same_nearest"), 1.0)
    assert {name: figures[name] for name in wanted} == wanted
    assert (figures["kl_0.01"], figures["kl_0.07"]) == (0.0, 0.0)


@pytest.mark.parametrize("num", [2, 5])
def test_few_images_have_few_neighbours(num):
    rows = np.random.default_rng(3).normal(size=(num, 8)).astype(np.float32)
    assert fidelity.measure(rows)["neighbours"] == num - 1


def test_one_image_cannot_be_compared():
    assert fidelity.fidelity_files({"feature": np.ones((1, 8), np.float32)}) == {}


def test_sample_is_of_images_wherever_they_lie():
    ids = np.random.default_rng(4).integers(0, 256, (5000, 16), np.uint8)
    rows = fidelity.sample_rows(ids)
    assert len(rows) == 2048
    assert (np.diff(rows) > 0).all()
    assert {row.tobytes() for row in ids[rows]} == set(sorted(row.tobytes() for row in ids)[:2048])
    chosen = {row.tobytes() for row in ids[rows]}
    order = np.random.default_rng(5).permutation(5000)
    assert {row.tobytes() for row in ids[order][fidelity.sample_rows(ids[order])]} == chosen
    fewer = ids[:3000]  # what was drawn of all is drawn of fewer, as far as it is there
    assert chosen & {row.tobytes() for row in fewer} <= {
        row.tobytes() for row in fewer[fidelity.sample_rows(fewer)]
    }
    assert fidelity.sample_rows(ids[:7]).tolist() == list(range(7))


def test_cache_keeps_the_figures_of_what_the_teacher_said(tmp_path, small_shards, monkeypatch):
    monkeypatch.setattr(fidelity, "_IMAGES", 90)
    making.make(tmp_path, specs=SPECS)
    rows = [r for r in fidelity.sample_rows(making.index_of().image_ids)
            if r not in making.UNREADABLE]  # fmt: skip
    assert 80 < len(rows) <= 90
    found = open_cache(tmp_path).fidelity()
    assert set(found) == {"embedding", "feature"}
    for spec in SPECS:
        assert found[spec.name] == fidelity.measure(making.values_of(spec)[rows, 0])
    assert "cosine 0.9999" in describe_fidelity(found["feature"])


def test_unreadable_images_of_the_sample_are_left_out(tmp_path, small_shards):
    making.make(tmp_path, specs=SPECS, num_rows=150, unreadable={5: "empty", 149: "empty"})
    assert open_cache(tmp_path).fidelity()["feature"]["images"] == 148


def test_caches_of_floats_have_no_figures(whole):
    assert open_cache(whole).fidelity() == {}
    assert not (whole / "fidelity").exists()
