"""The linear probe is the published one, step by step, and the same figure every time."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from kdcache.errors import DataError
from kdcache.evals import (
    SIMREG,
    Features,
    ProbeSettings,
    Subject,
    extract_features,
    fit_augmented,
    fit_cached,
    open_labelled,
    probe_scores,
)
from kdcache.evals.probe import Probe, probe_lr


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


def scored(train, test, **options):
    return probe_scores(
        fit_cached(train, **options), train, test, protocol="fast-linear", setting={}
    )


def test_probe_is_that_of_a_plain_loop():
    train, test = blobs(0, 600), blobs(1, 300)
    probe = fit_cached(train, seed=3)
    expected = plain_loop(train, test, seed=3)
    with torch.no_grad():
        logits = probe(torch.from_numpy(test.values)).double()
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    top1, top5 = probe_scores(probe, train, test, protocol="fast-linear", setting={})
    ranks = (expected > expected.gather(1, torch.from_numpy(test.labels)[:, None])).sum(1)
    assert top1.value == pytest.approx(100 * float((ranks < 1).double().mean()))
    assert top5.value == pytest.approx(100 * float((ranks < 5).double().mean()))


def test_probe_learns_what_is_there_to_learn():
    (top1, _) = scored(blobs(0, 2000, noise=0.2), blobs(1, 500, noise=0.2))
    assert top1.value > 90


def test_same_seed_same_layer_and_other_seed_another():
    values = torch.from_numpy(blobs(0, 50).values)
    layers = [
        Probe(values, 12, SIMREG, torch.Generator().manual_seed(seed)).linear for seed in (1, 1, 2)
    ]
    assert torch.equal(layers[0].weight, layers[1].weight)
    assert not torch.equal(layers[0].weight, layers[2].weight)
    train, test = blobs(0, 600), blobs(1, 300)
    assert scored(train, test, seed=1) == scored(train, test, seed=1)


def test_top5_is_left_out_where_it_says_little():
    scores = scored(blobs(0, 100, num_classes=9), blobs(1, 50, num_classes=9))
    assert [score.metric for score in scores] == ["top1"]


def test_progress_counts_epochs():
    done = []
    fit_cached(blobs(0, 100), progress=done.append)
    assert done == [1] * SIMREG.epochs


def test_classes_are_matched_by_name_not_by_place():
    train, test = blobs(0, 600), blobs(1, 300)
    backwards = Features(test.values, 11 - test.labels, test.classes[::-1], "data")
    assert scored(train, backwards) == scored(train, test)


def test_class_that_training_lacks_is_refused():
    train, test = blobs(0, 50, num_classes=2), blobs(1, 50, num_classes=3)
    with pytest.raises(DataError, match="are not in `data`: `class02`"):
        scored(train, test)


def test_one_training_image_is_not_enough():
    one = Features(np.ones((1, 3), np.float32), np.zeros(1, np.int64), ("ant",), "d/train")
    with pytest.raises(DataError, match="needs two or more"):
        fit_cached(one)


def test_raw_layer_starts_small_and_sees_features_as_they_are():
    values = torch.from_numpy(blobs(0, 400).values)
    probe = Probe(values, 12, ProbeSettings(), torch.Generator().manual_seed(0))
    assert float(probe.linear.weight.detach().std()) == pytest.approx(0.01, rel=0.3)
    assert not probe.linear.bias.any()
    torch.testing.assert_close(probe(values), values @ probe.linear.weight.T)


def test_cosine_ends_where_it_is_told_to():
    settings = ProbeSettings(epochs=120, lr=30.0, final_lr=0.01)
    first, half, last = (probe_lr(settings, step, 10) for step in (0, 600, 1199))
    assert first == pytest.approx(30.0)
    assert half == pytest.approx(0.5 * (30.0 + 0.01))
    assert last == pytest.approx(0.01 + 29.99 * 0.5 * (1 + np.cos(np.pi * 119 / 120)))
    scaled = ProbeSettings(epochs=100, lr=0.001, lr_per_256=True, batch_size=1024)
    assert probe_lr(scaled, 0, 10) == pytest.approx(0.004)


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


QUICK = ProbeSettings(epochs=3, batch_size=16, lr=1.0, weight_decay=0.0)


def augmented(network, part, settings, **options):
    subject = Subject("it", network, 8, "it")
    center = extract_features(network, part.images, image_size=8, ids=part.ids)
    return fit_augmented(subject, part, center, settings, **options), center


def test_augmented_probe_shows_another_view_of_every_readable_image_each_epoch(folder):
    (folder / "red" / "11.png").write_bytes(b"no image")
    seen = []

    class Spy(Corners):
        def forward(self, images):
            seen.append(images.clone())
            return super().forward(images)

    done = []
    augmented(Spy(), open_labelled(folder), [QUICK], progress=done.append)
    assert [len(batch) for batch in seen[1:]] == [39, 39, 39]  # the first is the centred view
    views = {bytes(view.numpy()) for batch in seen[1:] for view in batch}
    assert len(views) == 3 * 39
    assert sum(done) == 3 * 39


def test_augmented_probe_learns_and_repeats_itself(folder):
    part = open_labelled(folder)
    settings = SIMREG.model_copy(update={"epochs": 10})
    (first,), center = augmented(Corners(), part, [settings])
    (again,), _ = augmented(Corners(), part, [settings])
    assert torch.equal(first.linear.weight, again.linear.weight)
    scores = probe_scores(first, center, center, protocol="linear", setting={})
    assert scores[0].value > 95


def test_layers_trained_together_are_those_trained_alone(folder):
    """One look at each view serves them all, whatever their batches and epochs."""
    part = open_labelled(folder)
    settings = [QUICK, SIMREG.model_copy(update={"epochs": 2}), QUICK.model_copy(
        update={"batch_size": 7, "epochs": 4, "lr": 0.1})]  # fmt: skip
    together, _ = augmented(Corners(), part, settings)
    for probe, one in zip(together, settings, strict=True):
        (alone,), _ = augmented(Corners(), part, [one])
        assert torch.equal(probe.linear.weight, alone.linear.weight)
        assert torch.equal(probe.linear.bias, alone.linear.bias)


def test_augmented_layer_is_that_of_a_plain_torch_loop(folder):
    """MoCo's main_lincls.py, written down plainly, on the very views."""
    from kdcache.evals.batches import build_maker
    from kdcache.targets import permutation
    from kdcache.views import get_policy

    settings = ProbeSettings(
        epochs=4, batch_size=16, lr=3.0, weight_decay=0.0, schedule="step", milestones=[2, 3]
    )
    part = open_labelled(folder)
    (probe,), _ = augmented(Corners(), part, [settings], seed=5)
    maker = build_maker(part.images, get_policy("compress"), 8, ids=part.ids, seed=5)
    layer = torch.nn.Linear(6, 2)
    torch.nn.init.normal_(layer.weight, std=0.01, generator=torch.Generator().manual_seed(5))
    torch.nn.init.zeros_(layer.bias)
    sgd = torch.optim.SGD(layer.parameters(), lr=3.0, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(sgd, [2, 3], 0.1)
    labels = torch.from_numpy(part.images.labels).long()
    for epoch in range(4):
        order = permutation(40, seed=5, epoch=epoch)
        for start in range(0, 40, 16):
            rows = order[start : start + 16]
            pixels = torch.from_numpy(maker.make(rows, np.array([epoch])).pixels[0])
            loss = torch.nn.functional.cross_entropy(layer(Corners()(pixels)), labels[rows])
            sgd.zero_grad()
            loss.backward()
            sgd.step()
        schedule.step()
    torch.testing.assert_close(probe.linear.weight, layer.weight, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(probe.linear.bias, layer.bias, atol=1e-5, rtol=1e-5)


class Broken(BaseException):
    """What nobody catches."""


def test_broken_training_goes_on_where_it_stopped(folder, tmp_path_factory, monkeypatch):
    from kdcache.evals import probe as module

    keep, part = tmp_path_factory.mktemp("keep"), open_labelled(folder)
    (whole,), _ = augmented(Corners(), part, [QUICK])
    shown, render = [], module.render

    def spy(maker, order, epoch, **options):
        shown.append(epoch)
        if shown == [0, 1, 2]:
            raise Broken
        return render(maker, order, epoch, **options)

    monkeypatch.setattr(module, "render", spy)
    with pytest.raises(Broken):
        augmented(Corners(), part, [QUICK], keep=keep)
    done = []
    (ended,), _ = augmented(Corners(), part, [QUICK], keep=keep, progress=done.append)
    assert shown == [0, 1, 2, 2]
    assert sum(done) == 3 * 40
    assert torch.equal(ended.linear.weight, whole.linear.weight)
    assert not list(keep.iterdir())


def test_damaged_state_of_a_training_is_refused(folder, tmp_path_factory, monkeypatch):
    from kdcache.evals import probe as module

    keep, part = tmp_path_factory.mktemp("keep"), open_labelled(folder)
    with monkeypatch.context() as patch:
        patch.setattr(module.Path, "unlink", lambda *_, **__: None)
        augmented(Corners(), part, [QUICK], keep=keep)
    (path,) = keep.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="is damaged") as caught:
        augmented(Corners(), part, [QUICK], keep=keep)
    assert caught.value.hint.startswith(f"rm {path}")
