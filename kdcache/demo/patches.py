"""Patches: a small labelled data set, cut from the photographs in scikit-image's wheel.

The class of a patch is its photograph. Every photograph is grey, of one size, brightness and
contrast, so that neither colour nor light gives the class away; test patches come from tiles of
their own, so that no pixel is in both splits.
"""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from kdcache.errors import MissingExtra
from kdcache.shapes import Float, UInt8

PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
    "text.png",
)
"""What is a photograph or a scan, large enough, and not almost empty."""

_LONGEST_SIDE = 640
_MEAN, _DEVIATION = 128.0, 50.0
_TILE, _PATCH = 64, 48
_PER_CLASS = {"train": 200, "test": 60}
_LEAST_DEVIATION = 8.0
"""Patches with less contrast (sky, the black of space) say nothing of their photograph."""


def cut_patches(folder: Path, *, seed: int = 0) -> None:
    """Write 3,200 patches below `folder`/train and 960 below `folder`/test, as PNG of 48 x 48.

    All of them or none: a folder that is there is left as it is.

    Raises:
        MissingExtra: scikit-image is not installed.
    """
    if folder.exists():
        return
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for number, name in enumerate(PHOTOGRAPHS):
        pixels = _load(_find(name))
        rng = np.random.default_rng([seed, number])
        for split, count in _PER_CLASS.items():
            tiles = _tiles(pixels, test=split == "test")
            into = partial / split / Path(name).stem
            into.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(_cut(pixels, tiles, rng)).save(into / f"{i:03}.png")
    partial.rename(folder)


def _find(name: str) -> Path:
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise MissingExtra(
            "the demo's photographs are those in scikit-image, which is not installed",
            hint="pip install 'kdcache[demo]'",
        )
    path = Path(package.origin).parent / "data" / name
    if not path.exists():
        raise MissingExtra(
            f"the installed scikit-image has no `data/{name}` in its wheel",
            hint="pip install 'scikit-image==0.26.0'",
        )
    return path


def _load(path: Path) -> UInt8[np.ndarray, "H W"]:
    """The photograph in grey, at most 640 px long, of equal mean and deviation."""
    image = Image.open(path).convert("L")
    scale = min(1.0, _LONGEST_SIDE / max(image.size))
    if scale < 1:
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
    grey: Float[np.ndarray, "H W"] = np.asarray(image, np.float64)
    evened = _MEAN + _DEVIATION * (grey - grey.mean()) / grey.std()
    pixels: UInt8[np.ndarray, "H W"] = np.clip(np.rint(evened), 0, 255).astype(np.uint8)
    return pixels


def _tiles(pixels: UInt8[np.ndarray, "H W"], *, test: bool) -> list[tuple[int, int]]:
    """Corners of the tiles of one split: every fourth is a test tile, in a knight's pattern."""
    height, width = pixels.shape
    return [
        (i * _TILE, j * _TILE)
        for i in range(height // _TILE)
        for j in range(width // _TILE)
        if ((j + 2 * i) % 4 == 0) == test
    ]


def _cut(
    pixels: UInt8[np.ndarray, "H W"], tiles: list[tuple[int, int]], rng: np.random.Generator
) -> UInt8[np.ndarray, "48 48"]:
    """A patch with something on it, at a drawn place within a drawn tile."""
    for _ in range(1000):
        place = np.add(tiles[rng.integers(len(tiles))], rng.integers(_TILE - _PATCH + 1, size=2))
        top, left = place.tolist()
        patch = pixels[top : top + _PATCH, left : left + _PATCH]
        if patch.std() >= _LEAST_DEVIATION:
            return patch
    raise AssertionError("a photograph of the list is almost empty")
