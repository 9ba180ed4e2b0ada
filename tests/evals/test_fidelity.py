"""Fidelity's figures are those of their formulas, live and from a cache."""

import numpy as np
import pytest
from conftest import make_folder
from small import CPU, make_cache

from kdcache.errors import CacheMismatch
from kdcache.evals import Beside, examine, open_splits, open_subject
from kdcache.evals.protocols.fidelity import (
    Pairs,
    linear_cka,
    mapped_cosine,
    neighbour_overlap,
    rank_correlation,
)
from kdcache.progress import silent_bar
from kdcache.store import open_cache


def views(seed, num=40, student=7, teacher=11, noise=0.5):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(num, 5))
    maps = np.random.default_rng(99)
    a, b = maps.normal(size=(5, student)), maps.normal(size=(5, teacher))
    sides = hidden @ a + 3, hidden @ b - 1
    return Pairs(*(s.astype(np.float32) + noise * rng.normal(size=s.shape) for s in sides))


def test_cka_is_that_of_gram_matrices():
    """Kornblith et al., equation 3: HSIC of centred linear kernels, written with N x N matrices."""
    x, y = views(0)
    centre = np.eye(40) - 1 / 40
    k, m = (centre @ side @ side.T @ centre for side in (x, y))
    expected = np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))
    assert linear_cka(x, y) == pytest.approx(expected)


def test_cka_knows_no_rotation_scale_or_shift():
    x, _ = views(0)
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(7, 7)))
    assert linear_cka(x, 3 * x @ rotation + 2) == pytest.approx(1)
    assert linear_cka(x, np.ones((40, 3))) == 0


def test_rank_correlation_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    x, y = views(0)
    cosines = []
    for side in (x, y):
        unit = side / np.linalg.norm(side, axis=1, keepdims=True)
        cosines.append(unit @ unit.T)
    each = [
        stats.spearmanr(np.delete(a, i), np.delete(b, i)).statistic
        for i, (a, b) in enumerate(zip(*cosines, strict=True))
    ]
    assert rank_correlation(x, y) == pytest.approx(np.mean(each), abs=1e-6)


def test_overlap_is_that_of_sets():
    x, y = views(0)
    shares = []
    for i in range(40):
        near = []
        for side in (x, y):
            cosine = side @ side[i] / np.linalg.norm(side, axis=1)
            cosine[i] = -np.inf
            near.append(set(np.argsort(-cosine)[:5].tolist()))
        shares.append(len(near[0] & near[1]) / 5)
    assert neighbour_overlap(x, y, 5) == pytest.approx(np.mean(shares))


def test_overlap_with_twins_never_counts_an_image_as_its_own_neighbour():
    twins = np.repeat(np.eye(6, dtype=np.float32), 2, axis=0)
    near = twins + np.random.default_rng(0).normal(0, 1e-2, twins.shape).astype(np.float32)
    assert neighbour_overlap(twins, near, 1) == 1.0


def test_cosine_is_that_of_scikit_learns_ridge():
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    fit, asked = views(0, num=200), views(1)
    penalty = 0.01 * np.square(fit.student - fit.student.mean(0)).sum() / 7
    ridge = linear.Ridge(alpha=penalty).fit(fit.student, fit.teacher)
    mapped = ridge.predict(asked.student)

    def mean_cosine(a, b):
        return ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean()

    mean = fit.teacher.mean(0)
    expected = mean_cosine(mapped, asked.teacher), mean_cosine(mapped - mean, asked.teacher - mean)
    assert mapped_cosine(fit, asked, 0.01) == pytest.approx(expected)


def test_linear_map_of_the_teacher_is_found_whole():
    fit, asked = views(0, num=200, noise=0), views(1, noise=0)
    cosine, centred = mapped_cosine(fit, asked, 1e-9)
    assert (cosine, centred) == (pytest.approx(1), pytest.approx(1))


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    root = tmp_path_factory.mktemp("fidelity")
    make_folder(root / "train", per_class=12)
    make_folder(root / "val", per_class=5, seed=9)
    return open_splits(root)


def fidelity(splits, subject, teacher, **options):
    scores = examine(
        subject, splits, ["fidelity"], overrides=["fidelity.neighbours=3"], device=CPU, workers=0,
        bar=silent_bar, beside=Beside(teacher=teacher), **options,
    )  # fmt: skip
    return {s.metric: s.value for s in scores}, scores[0]


def test_a_network_is_faithful_to_itself(splits):
    subject = open_subject("untrained:test_resnet", image_size=32)
    found, score = fidelity(splits, subject, subject)
    assert found["cka"] == pytest.approx(1)
    assert found["overlap@3"] == found["rank_correlation"] == pytest.approx(1)
    assert found["cosine"] > 0.99
    assert (score.num_queries, score.unit) == (20, "one")
    other, _ = fidelity(splits, open_subject("untrained:test_vit", image_size=32), subject)
    assert all(other[name] < found[name] for name in found)


def test_cache_is_as_good_as_its_teacher(splits, tiny_weights, tmp_path):
    """The student that is the teacher sees the cached view, and says what the cache holds."""
    make_cache(splits.train.root, tiny_weights, tmp_path / "c.zarr")
    subject = open_subject("timm:test_resnet", weights=tiny_weights, image_size=32)
    found, score = fidelity(splits, subject, open_cache(tmp_path / "c.zarr"))
    assert found["cka"] == pytest.approx(1, abs=1e-5)
    assert found["overlap@3"] == pytest.approx(1)
    assert score.num_queries == 16
    assert score.setting["views"] == "cached, view 0"


def test_cache_of_other_images_is_refused(splits, tiny_images, tiny_weights, tmp_path):
    other = make_folder(tmp_path / "other", per_class=4, seed=77)
    make_cache(other, tiny_weights, tmp_path / "c.zarr")
    subject = open_subject("untrained:test_resnet", image_size=32)
    with pytest.raises(CacheMismatch, match="holds none of the images of") as caught:
        fidelity(splits, subject, open_cache(tmp_path / "c.zarr"))
    assert "--teacher NAME" in caught.value.hint
