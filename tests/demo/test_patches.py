"""The demo's patches are what it says they are."""

import importlib.util

import numpy as np
import pytest
from PIL import Image

from kdcache.demo import patches
from kdcache.errors import MissingExtra
from kdcache.evals import open_splits

needs_skimage = pytest.mark.skipif(
    importlib.util.find_spec("skimage") is None, reason="needs the extra `demo` (scikit-image)"
)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(patches, "_PER_CLASS", {"train": 6, "test": 3})


@needs_skimage
def test_every_photograph_is_a_class_of_both_splits(tmp_path, few):
    patches.cut_patches(tmp_path / "images")
    splits = open_splits(tmp_path / "images")
    assert len(splits.train.classes) == len(patches.PHOTOGRAPHS) == 16
    assert splits.train.classes == splits.test.classes
    assert np.bincount(splits.train.labels).tolist() == [6] * 16
    assert np.bincount(splits.test.labels).tolist() == [3] * 16
    for path in (tmp_path / "images").rglob("*.png"):
        with Image.open(path) as image:
            assert (image.size, image.mode) == ((48, 48), "L")


@needs_skimage
def test_no_pixel_is_in_both_splits():
    for name in patches.PHOTOGRAPHS:
        pixels = patches._load(patches._find(name))
        count = np.zeros(pixels.shape, int)
        for test in (False, True):
            covered = np.zeros(pixels.shape, bool)
            for top, left in patches._tiles(pixels, test=test):
                covered[top : top + patches._TILE, left : left + patches._TILE] = True
            count += covered
        assert count.max() == 1
        assert patches._tiles(pixels, test=True)


@needs_skimage
def test_patch_stays_within_its_tile():
    pixels = np.random.default_rng(1).integers(0, 256, (256, 256), np.uint8)
    where = {
        pixels[y : y + 48, x : x + 48].tobytes(): (y, x) for y in range(209) for x in range(209)
    }
    rng = np.random.default_rng(0)
    for _ in range(50):
        y, x = where[patches._cut(pixels, [(64, 128)], rng).tobytes()]
        assert 64 <= y <= 80
        assert 128 <= x <= 144


@needs_skimage
def test_patches_follow_from_the_seed_and_are_cut_once(tmp_path, few):
    for name in ("a", "b"):
        patches.cut_patches(tmp_path / name, seed=3)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.png"))
    assert all(
        (tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files
    )
    (tmp_path / "a" / files[0]).write_bytes(b"mine")
    patches.cut_patches(tmp_path / "a", seed=4)
    assert (tmp_path / "a" / files[0]).read_bytes() == b"mine"


def test_missing_library_is_named_with_the_command_that_brings_it(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="scikit-image") as caught:
        patches.cut_patches(tmp_path / "images")
    assert caught.value.hint == "pip install 'kdcache[demo]'"
    assert not (tmp_path / "images").exists()
