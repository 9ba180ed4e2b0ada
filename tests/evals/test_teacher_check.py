"""The self-check tells teachers that see something from those that do not."""

import pytest
import torch
from conftest import make_folder
from small import CPU
from torch import nn

from kdcache.errors import ConfigError, DataError
from kdcache.evals import check_teacher
from kdcache.images import open_images
from kdcache.progress import progress_bar
from kdcache.teachers import own_teacher

SIDE = 32


class Spectrum(nn.Module):
    """The amplitudes of the two-dimensional Fourier transform: these tell stripes from rings."""

    def forward(self, pixels):
        grey = pixels.mean(dim=1)
        return torch.fft.rfft2(grey - grey.mean(dim=(1, 2), keepdim=True)).abs().flatten(1)


class Constant(nn.Module):
    def forward(self, pixels):
        return torch.ones(len(pixels), 5) + 0 * pixels.mean()


class Noise(nn.Module):
    def forward(self, pixels):
        return torch.randn(len(pixels), 64)


class Nan(nn.Module):
    def forward(self, pixels):
        return pixels.mean(dim=(2, 3)) / 0 - pixels.mean(dim=(2, 3)) / 0


def check(model, images, **options):
    teacher = own_teacher("own", model, image_size=SIDE, mean=(0.5,) * 3, std=(0.5,) * 3)
    settings = {"num_images": 200, "policy": "full", "device": CPU, "workers": 0}
    return check_teacher(teacher, images, bar=progress_bar, **{**settings, **options})


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return open_images(make_folder(tmp_path_factory.mktemp("check") / "set", per_class=40))


def test_a_teacher_that_sees_passes(images):
    found = check(Spectrum(), images)
    assert found.problems() == []
    assert found.knn > 90 > found.pixel_knn
    assert (found.num_gallery, found.num_queries, found.num_classes) == (80, 80, 4)
    assert found.chance == 25
    assert found.num_features == SIDE * (SIDE // 2 + 1)
    assert 1 < found.rank < found.num_features
    assert any("kNN" in line for line in found.lines())


def test_a_constant_teacher_is_found_out(images):
    found = check(Constant(), images)
    assert found.num_constant == found.num_features == 5
    assert found.mean_cosine == pytest.approx(1)
    assert found.rank == 0
    assert "all images look alike" in found.problems()[0]


def test_a_teacher_that_knows_no_classes_is_found_out(images):
    found = check(Noise(), images)
    assert abs(found.mean_cosine) < 0.1
    (problem,) = found.problems()
    assert "no better than that of 16 x 16 pixels" in problem


def test_a_teacher_that_gives_nan_is_refused(images):
    with pytest.raises(DataError, match="not finite"):
        check(Nan(), images)


def test_few_images_are_taken_from_all_classes(images):
    found = check(Spectrum(), images, num_images=80)
    assert (found.num_gallery, found.num_queries, found.num_classes) == (40, 40, 4)


def test_a_folder_of_splits_is_told_from_classes(tmp_path):
    for split in ("train", "val"):
        make_folder(tmp_path / split, per_class=2)
    with pytest.raises(ConfigError, match="holds train, val as its classes") as caught:
        check(Spectrum(), open_images(tmp_path))
    assert caught.value.hint == f"--data {tmp_path}/train"


def test_too_few_images_are_refused(tmp_path):
    with pytest.raises(DataError, match="too few"):
        check(Spectrum(), open_images(make_folder(tmp_path / "set", per_class=2)))
