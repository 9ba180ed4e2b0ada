"""A fitted head makes better targets of features, the same ones each time, and says how."""

import json
import subprocess

import numpy as np
import pytest
import torch
from derive.synthetic import BAR, cache_of, clusters

from kdcache.derive import measure, run_head
from kdcache.derive.effect import _leave_one_out
from kdcache.derive.infonce import InfoNce, _batches, contrast, default_steps
from kdcache.errors import CacheMismatch, ConfigError
from kdcache.heads import ProjectionHead
from kdcache.store import check_digests, grow_cache, head_files, open_cache


def run(cache, **changes):
    settings = {"method": "infonce", "dim": 8, "steps": 60, "seed": 0, "bar": BAR}
    if changes.get("method") == "whiten":
        settings["steps"] = None
    return run_head(cache, **{**settings, **changes})


def head_of(cache):
    return ProjectionHead.from_arrays(*cache.head()).eval()


@pytest.fixture
def made(tmp_path):
    features, labels = clusters()
    return features, cache_of(tmp_path / "c", features, labels, unreadable=(3,))


def test_infonce_finds_what_two_views_share(made):
    _, cache = made
    report = run(cache)
    assert report.before.target.mean_cosine > 0.5
    assert report.after.target.mean_cosine < report.before.target.mean_cosine - 0.2
    assert report.after.knn > report.before.knn + 10
    assert report.after.same_image > report.before.same_image
    assert report.after == measure(report.cache, "embedding")


def test_whitened_directions_are_uncorrelated_and_equally_strong(made):
    features, cache = made
    grown = run(cache, method="whiten").cache
    rows = np.delete(features, 3, axis=0).reshape(-1, features.shape[2])
    variances = np.linalg.eigvalsh(np.cov(rows.T, bias=True))[::-1]
    values = head_of(grown).embed(torch.from_numpy(rows).float()).detach().numpy()
    assert np.allclose(values.mean(0), 0, atol=1e-4)
    assert np.allclose(np.cov(values.T, bias=True), np.eye(8), atol=1e-3)
    kept = grown.head_origin()["result"]["variance"]
    assert kept == pytest.approx(variances[:8].sum() / variances.sum(), rel=1e-4)


def test_whitening_keeps_weak_directions_weak(tmp_path):
    features = np.random.default_rng(0).normal(size=(300, 1, 4)) * [10, 10, 0.1, 0]
    grown = run(cache_of(tmp_path / "c", features), method="whiten", dim=4).cache
    values = head_of(grown).embed(torch.from_numpy(features[:, 0]).float())
    assert np.allclose(values.var(0)[:2], 1, atol=1e-2)
    assert values.var(0)[2] == pytest.approx(0.01 / 110 / 0.01, rel=0.2)  # floor: 1% of ~110
    assert values.var(0)[3] == 0


def test_head_takes_the_features_as_they_are_cached(made):
    """Standardising is folded into the first layer, so the loss can be had of the raw features."""
    features, cache = made
    grown = run(cache).cache
    layers, arrays = grown.head()
    assert [layer["kind"] for layer in layers] == ["linear", "relu", "linear"]
    w0, b0, w2, b2 = (
        arrays[n].astype(np.float64) for n in ("0.weight", "0.bias", "2.weight", "2.bias")
    )
    rows = np.delete(np.arange(400), 3)
    one, two = (np.maximum(features[rows, v] @ w0.T + b0, 0) @ w2.T + b2 for v in (0, 1))
    one, two = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (one, two))
    logits = one @ two.T / 0.2
    log_share = [x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (logits, logits.T)]
    loss = -np.mean([np.diag(x).mean() for x in log_share])
    assert loss == pytest.approx(grown.head_origin()["result"]["loss"], rel=0.02)


def test_contrast_is_that_of_a_plain_loop():
    random = torch.Generator().manual_seed(1)
    one, two = (torch.randn(5, 3, generator=random, dtype=torch.float64) for _ in range(2))
    total = 0.0
    for rows, others in ((one, two), (two, one)):
        for i in range(5):
            logits = [float(rows[i] @ others[j]) / 0.3 for j in range(5)]
            total += np.log(np.exp(logits).sum()) - logits[i]
    assert float(contrast(one, two, 0.3)) == pytest.approx(total / 10, rel=1e-12)


@pytest.mark.parametrize("num_views", [2, 5])
def test_batches_hold_different_images_in_two_different_views(tmp_path, num_views):
    features, labels = clusters(num_rows=50, num_views=num_views)
    cache = cache_of(tmp_path / "c", features, labels, unreadable=(3,))
    settings = InfoNce(batch_size=20, steps=30)
    seen = []
    for rows, (one, two) in _batches(cache, settings, np.random.default_rng(0)):
        assert len(rows) == len(set(rows.tolist())) == 20
        assert 3 not in rows
        assert (one != two).all()
        seen.append(np.stack([rows, one, two]))
    shown = np.concatenate(seen, axis=1)
    assert set(shown[0].tolist()) == set(range(50)) - {3}
    assert {tuple(pair) for pair in shown[1:].T.tolist()} == {
        (a, b) for a in range(num_views) for b in range(num_views) if a != b
    }


def test_few_images_are_not_shown_too_often():
    assert [default_steps(n) for n in (2, 48, 512, 1000, 3072, 10_000, 1_281_167)] == [
        50, 50, 50, 98, 300, 300, 300,
    ]  # fmt: skip


@pytest.mark.parametrize("method", ["infonce", "whiten"])
def test_same_seed_gives_the_same_bytes_and_leaves_the_global_stream_alone(tmp_path, method):
    features, labels = clusters(num_rows=80)
    made = []
    for name in ("one", "two"):
        torch.manual_seed(len(made))
        cache = cache_of(tmp_path / name, features, labels)
        before = torch.get_rng_state()
        made.append(run(cache, method=method, steps=None if method == "whiten" else 5).cache)
        assert torch.equal(torch.get_rng_state(), before)
    assert made[0].identity == made[1].identity
    if method == "infonce":
        other = run(cache_of(tmp_path / "other", features, labels), steps=5, seed=1).cache
        assert other.identity != made[0].identity


def test_head_says_how_it_was_made(made):
    _, cache = made
    grown = run(cache, seed=7).cache
    origin = grown.head_origin()
    assert {k: origin[k] for k in ("kind", "method", "seed")} == {
        "kind": "fitted", "method": "infonce", "seed": 7,
    }  # fmt: skip
    assert origin["settings"]["steps"] == 60
    assert origin["settings"]["dim"] == 8
    assert origin["result"]["loss"] > 0
    assert "torch" in origin["versions"]
    assert grown.lineage[1] == cache.identity
    assert set(grown.arrays) == {"feature"}
    assert check_digests(cache.path) == []


def test_same_fit_again_changes_nothing(made):
    _, cache = made
    first = run(cache).cache
    again = run(open_cache(cache.path))
    assert again.cache.identity == first.identity
    assert "nothing has changed" in again.lines()[0]


@pytest.mark.parametrize("change", [{"seed": 1}, {"dim": 9}, {"steps": 61}, {"method": "whiten"}])
def test_second_fit_is_refused_with_the_way_back(tmp_path, made, change):
    _, cache = made
    grown = run(cache).cache
    with pytest.raises(CacheMismatch, match="a head of 8 numbers fitted by `infonce`") as caught:
        run(grown, **change)
    assert open_cache(cache.path).identity == grown.identity
    command = caught.value.hint.partition("sharing the files: ")[2]
    subprocess.run(command.replace("OTHER", str(tmp_path / "o")), shell=True, check=True)
    other = run(open_cache(tmp_path / "o"), **change).cache
    assert other.lineage[1] == cache.identity
    assert open_cache(cache.path).identity == grown.identity
    assert check_digests(cache.path) == check_digests(tmp_path / "o") == []


def test_teachers_own_head_stays(made):
    _, cache = made
    head = ProjectionHead([{"kind": "linear", "in": 24, "out": 4, "bias": True}])
    cache = grow_cache(cache, head_files(head.layers, head.to_arrays()))
    with pytest.raises(CacheMismatch, match="has the teacher's own head already"):
        run(cache)


def test_one_view_is_whitened_but_not_contrasted(tmp_path):
    features, labels = clusters(num_rows=60, num_views=1)
    cache = cache_of(tmp_path / "c", features, labels)
    with pytest.raises(CacheMismatch, match="two views") as caught:
        run(cache)
    assert "--method whiten" in caught.value.hint
    assert open_cache(cache.path).head() is None
    assert run(cache, method="whiten").after.same_image == pytest.approx(1.0)


def test_what_cannot_be_is_refused(tmp_path, made):
    _, cache = made
    with pytest.raises(ConfigError, match="30 directions are asked for, and the feature has 24"):
        run(cache, method="whiten", dim=30)
    with pytest.raises(ConfigError, match="not learnt"):
        run(cache, method="whiten", steps=5)
    features, labels = clusters(num_rows=20)
    only = cache_of(tmp_path / "only", features, labels, array="embedding")
    with pytest.raises(CacheMismatch, match="holds: embedding"):
        run(only)


def test_vote_leaves_the_image_itself_and_the_unlabelled_out():
    keys = np.eye(4, dtype=np.float32)[[0, 0, 1, 1, 2]]
    keys[1:, 3] = [0.1, 0.2, 0.3, 0.4]
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    labels = np.array([0, 1, 1, 1, -1])
    asked = np.array([0, 1, 2, 3])
    # All others vote: 1, 1, 1 for row 0; 0, 1, 1 for the rest; row 4 has no vote.
    assert _leave_one_out(keys[asked], keys, labels, asked) == 75.0


def test_unlabelled_cache_has_no_knn(tmp_path):
    features, _ = clusters(num_rows=60)
    effect = measure(cache_of(tmp_path / "c", features), "feature")
    assert effect.knn is None
    assert effect.cells()[0] == "-"


def test_report_is_a_table_of_before_and_after(made):
    _, cache = made
    report = run(cache)
    text = "\n".join(report.lines())
    assert text.index("| feature ") < text.index("| embedding ")
    assert f"{report.before.knn:.1f}" in text
    assert f"{report.after.knn:.1f}" in text
    assert json.loads((cache.path / "head/zarr.json").read_text())["attributes"]["origin"]
