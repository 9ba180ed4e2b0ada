"""Features come out in the order of the rows, and never of an image that could not be read."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from kdcache.errors import DataError
from kdcache.evals import (
    Features,
    extract_features,
    knn_accuracy,
    open_splits,
    pixel_features,
)
from kdcache.images import open_images
from kdcache.networks import build_backbone


class Mean(nn.Module):
    """The mean colour, with a norm and dropout that would show training mode."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3, affine=False)
        self.drop = nn.Dropout(0.5)

    def forward(self, images):
        return self.drop(self.norm(images.float().mean(dim=(1, 2)) / 255))


@pytest.fixture
def folder(tmp_path):
    """Seven plain images of grey level 0, 30, ..., 180 in two classes."""
    for i in range(7):
        path = tmp_path / ("ant" if i < 4 else "bee") / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((20, 24, 3), 30 * i, np.uint8)).save(path)
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_features_are_in_the_order_of_the_rows(folder, workers):
    images = open_images(folder)
    found = extract_features(Mean(), images, image_size=8, batch_size=3, workers=workers)
    expected = np.repeat(np.arange(7)[:, None] * 30 / 255 / np.sqrt(1 + 1e-5), 3, axis=1)
    np.testing.assert_allclose(found.values, expected, atol=1e-6)
    assert found.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert (found.classes, found.unreadable) == (("ant", "bee"), {})


def test_unreadable_images_are_left_out_and_named(folder):
    whole = extract_features(Mean(), open_images(folder), image_size=8, batch_size=2)
    (folder / "ant" / "2.png").write_bytes(b"no image")
    (folder / "ant" / "3.png").write_bytes(b"no image either")
    done = []
    found = extract_features(
        Mean(), open_images(folder), image_size=8, batch_size=2, progress=done.append
    )
    np.testing.assert_array_equal(found.values, whole.values[[0, 1, 4, 5, 6]])
    assert found.labels.tolist() == [0, 0, 1, 1, 1]
    assert found.unreadable.keys() == {2, 3}
    assert sum(done) == 7


def test_network_keeps_its_modes(folder):
    network = Mean()
    network.drop.eval()
    extract_features(network, open_images(folder), image_size=8)
    assert (network.training, network.norm.training, network.drop.training) == (True, True, False)
    assert network.norm.num_batches_tracked == 0


def test_bfloat16_stays_near_float32_and_gives_float32(folder):
    torch.manual_seed(0)
    network = nn.Sequential(Mean(), nn.Linear(3, 8))
    full, half = (
        extract_features(network, open_images(folder), image_size=8, precision=precision)
        for precision in ("fp32", "bf16")
    )
    assert half.values.dtype == np.float32
    assert not np.array_equal(half.values, full.values)
    np.testing.assert_allclose(half.values, full.values, atol=0.02)


def test_pixels_are_the_image_in_small(folder):
    found = pixel_features(open_images(folder), size=4)
    assert found.view == "full"
    assert found.values.shape == (7, 48)
    np.testing.assert_allclose(found.values[:, 0], np.arange(7) * 30 / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(bad):
    values = np.ones((4, 2), np.float32)
    values[1, 0] = values[3, 1] = bad
    with pytest.raises(DataError, match="features of 2 of 4 images of `d` are not finite"):
        Features(values, np.zeros(4, np.int64), ("ant",), "d")


def test_set_without_one_readable_image_is_refused_with_the_reason(folder):
    for path in folder.glob("*/*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="not one image of"):
        extract_features(Mean(), open_images(folder), image_size=8)


@pytest.mark.slow
def test_real_network_clears_the_floor_of_the_pixels(shared, tmp_path):
    for split, num in (("train", 20), ("test", 8)):
        for name in (shared / "data/cifar10" / split).iterdir():
            (tmp_path / split / name.name).mkdir(parents=True)
            for path in sorted(name.iterdir())[:num]:
                (tmp_path / split / name.name / path.name).symlink_to(path)
    train, test, *_ = open_splits(tmp_path)
    weights = load_file(shared / "data/weights/tf_efficientnet_lite0.safetensors")
    network = build_backbone(
        "tf_efficientnet_lite0",
        image_size=64,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        state_dict={k: v for k, v in weights.items() if not k.startswith("classifier")},
    )
    features = [extract_features(network, side, image_size=64) for side in (train, test)]
    pixels = [pixel_features(side) for side in (train, test)]
    assert knn_accuracy(*features, ks=(10,))[10] > 1.5 * knn_accuracy(*pixels, ks=(10,))[10]
