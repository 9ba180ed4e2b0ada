"""A folder of small images, and makers of their views."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdcache.images import index_images, open_images
from kdcache.views import ViewMaker, get_policy, get_renderer

SIDES = [(40, 60), (64, 64), (33, 90), (120, 50), (48, 48), (70, 100), (25, 25)]


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Seven images in JPEG and PNG, of smooth colours; row 3 is a torn PNG."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for row, (height, width) in enumerate(SIDES):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
        path = root / f"{row}.{'png' if row % 2 else 'jpg'}"
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(path)
        if row == 3:
            path.write_bytes(path.read_bytes()[:200])
    return root


@pytest.fixture
def make_maker(folder):
    """A function from policy, seed and size to a ViewMaker of the folder."""
    images = open_images(str(folder))
    ids = index_images(images).ids

    def make(policy="moco_v2", seed=5, size=40):
        return ViewMaker(images, ids, get_policy(policy), seed, get_renderer(), size)

    return make
