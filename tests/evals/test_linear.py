"""The linear probe is the published one, step by step, and the same figure every time."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from kdcache.errors import DataError
from kdcache.evals import Features, extract_features, linear_probe, linear_probe_augmented
from kdcache.evals import linear as linear_module
from kdcache.evals.linear import SIMREG, Probe
from kdcache.images import open_images


def blobs(seed, num, num_classes=12, dim=7, noise=1.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=num)
    centres = np.random.default_rng(99).normal(size=(num_classes, dim))
    values = (centres[labels] + noise * rng.normal(size=(num, dim))).astype(np.float32)
    values[:, -1] *= 0.01  # so small a variance that the floor under it shows
    return Features(values, labels, tuple(f"class{c:02}" for c in range(num_classes)), "data")


def plain_loop(train, test, seed):
    """Momentum SGD written out in float64; returns the test logits and the learning rates used."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.from_numpy(train.values).double(), torch.from_numpy(train.labels)
    x = x / x.norm(dim=1, keepdim=True)
    mean = x.mean(0)
    std = (((x - mean) ** 2).sum(0) / (len(x) - 1) + 1e-5).sqrt()
    x = (x - mean) / std
    size = (len(train.classes), x.shape[1])
    bound = size[1] ** -0.5
    weight = torch.empty(size).uniform_(-bound, bound, generator=generator).double()
    bias = torch.empty(size[0]).uniform_(-bound, bound, generator=generator).double()
    speed_w, speed_b = torch.zeros_like(weight), torch.zeros_like(bias)
    for epoch in range(40):
        lr = 0.01 if epoch < 15 else 0.001 if epoch < 30 else 0.0001
        order = torch.randperm(len(x), generator=generator)
        for start in range(0, len(x), 256):
            rows = order[start : start + 256]
            p = (x[rows] @ weight.T + bias).softmax(1)
            p[torch.arange(len(rows)), y[rows]] -= 1
            grad_w = p.T @ x[rows] / len(rows) + 1e-4 * weight
            grad_b = p.mean(0) + 1e-4 * bias
            speed_w, speed_b = 0.9 * speed_w + grad_w, 0.9 * speed_b + grad_b
            weight, bias = weight - lr * speed_w, bias - lr * speed_b
    z = torch.from_numpy(test.values).double()
    z = (z / z.norm(dim=1, keepdim=True) - mean) / std
    return z @ weight.T + bias


def test_probe_is_that_of_a_plain_loop(monkeypatch):
    train, test = blobs(0, 600), blobs(1, 300)
    kept = []
    fit = linear_module._fit
    monkeypatch.setattr(
        linear_module, "_fit", lambda probe, *rest: (kept.append(probe), fit(probe, *rest))
    )
    top1, top5 = linear_probe(train, test, seed=3)
    expected = plain_loop(train, test, seed=3)
    with torch.no_grad():
        logits = kept[0](torch.from_numpy(test.values)).double()
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    ranks = (expected > expected.gather(1, torch.from_numpy(test.labels)[:, None])).sum(1)
    assert top1.value == pytest.approx(100 * float((ranks < 1).double().mean()))
    assert top5.value == pytest.approx(100 * float((ranks < 5).double().mean()))


def test_probe_learns_what_is_there_to_learn():
    (top1, _) = linear_probe(blobs(0, 2000, noise=0.2), blobs(1, 500, noise=0.2))
    assert top1.value > 90


def test_same_seed_same_layer_and_other_seed_another():
    values = torch.from_numpy(blobs(0, 50).values)
    layers = [Probe(values, 12, torch.Generator().manual_seed(seed)).linear for seed in (1, 1, 2)]
    assert torch.equal(layers[0].weight, layers[1].weight)
    assert not torch.equal(layers[0].weight, layers[2].weight)
    train, test = blobs(0, 300), blobs(1, 300)
    assert linear_probe(train, test, seed=1) == linear_probe(train, test, seed=1)


def test_scores_name_preset_and_features():
    top1, top5 = linear_probe(blobs(0, 300), blobs(1, 40))
    assert top1.label == "linear (preset=simreg, features=cached center view)"
    assert (top1.metric, top5.metric) == ("top1", "top5")
    assert (top1.num_queries, top1.num_classes) == (40, 12)


def test_top5_is_left_out_where_it_says_little():
    scores = linear_probe(blobs(0, 100, num_classes=9), blobs(1, 50, num_classes=9))
    assert [score.metric for score in scores] == ["top1"]


def test_progress_counts_epochs():
    done = []
    linear_probe(blobs(0, 100), blobs(1, 50), progress=done.append)
    assert done == [1] * SIMREG.epochs


def test_classes_are_matched_by_name_not_by_place():
    train, test = blobs(0, 600), blobs(1, 300)
    backwards = Features(test.values, 11 - test.labels, test.classes[::-1], "data")
    assert linear_probe(train, backwards) == linear_probe(train, test)


def test_class_that_training_lacks_is_refused():
    train, test = blobs(0, 50, num_classes=2), blobs(1, 50, num_classes=3)
    with pytest.raises(DataError, match="are not in `data`: `class02`"):
        linear_probe(train, test)


def test_one_training_image_is_not_enough():
    one = Features(np.ones((1, 3), np.float32), np.zeros(1, np.int64), ("ant",), "d/train")
    with pytest.raises(DataError, match="needs two or more"):
        linear_probe(one, one)


class Corners(nn.Module):
    """Mean colour of the left and of the right half: a mirrored view differs."""

    def forward(self, images):
        left, right = images.float().chunk(2, dim=2)
        return torch.cat([left.mean((1, 2)), right.mean((1, 2))], dim=1) / 255 + 0.1


@pytest.fixture
def folder(tmp_path):
    """Forty noisy images, red or blue."""
    rng = np.random.default_rng(0)
    for i in range(40):
        pixels = rng.integers(0, 80, size=(24, 24, 3))
        pixels[..., 0 if i % 2 else 2] += 120
        path = tmp_path / ("red" if i % 2 else "blue") / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return tmp_path


def test_augmented_probe_shows_another_view_of_every_readable_image_each_epoch(folder):
    (folder / "red" / "11.png").write_bytes(b"no image")
    images = open_images(folder)
    seen = []

    class Spy(Corners):
        def forward(self, images):
            seen.append(images.clone())
            return super().forward(images)

    center = extract_features(Corners(), images, image_size=8)
    optimisation = SIMREG.model_copy(update={"epochs": 3})
    scores = linear_probe_augmented(
        Spy(), images, center, center, image_size=8, optimisation=optimisation
    )
    assert [len(batch) for batch in seen] == [39, 39, 39]
    views = {bytes(view.numpy()) for batch in seen for view in batch}
    assert len(views) == 3 * 39
    assert scores[0].setting == {"preset": "simreg", "features": "augmented"}


def test_augmented_probe_learns_and_repeats_itself(folder):
    images = open_images(folder)
    center = extract_features(Corners(), images, image_size=8)
    optimisation = SIMREG.model_copy(update={"epochs": 10})
    first, again = (
        linear_probe_augmented(
            Corners(), images, center, center, image_size=8, optimisation=optimisation
        )
        for _ in range(2)
    )
    assert first == again
    assert first[0].value > 95
